"""Greedy soup: the mean of the models that a score wants in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from weightshare.checkpoint import Checkpoint, open_checkpoint
from weightshare.checkpoint.locate import path_text
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    OutputExistsError,
    ShapeError,
)
from weightshare.merging.elements import DTYPE_OF_CODE, promoted
from weightshare.merging.leftovers import PROVENANCE_NAME, WEIGHTS
from weightshare.merging.merge import Model, check_models, merge
from weightshare.merging.method import Settings
from weightshare.merging.plan import FileCopy, MergePlan, PlannedModel, PlannedTensor, Source
from weightshare.merging.registry import get_method
from weightshare.merging.run import run_plan

Score = Callable[[Any], float]

_METHOD = "swa"
_LARGEST_COPY = 200_000_000
# What a merge writes itself.
_WRITTEN = {"config.json", "readme.md", "mergekit_config.yml", PROVENANCE_NAME}


@dataclass(frozen=True)
class GreedySoup:
    """A greedy soup, and how it came about.

    Attributes
    ----------
    kept : tuple of int
        Places in `models` of those in the soup, in the order in which they joined it.
    score : float
        Of the soup.
    scores : tuple of float or None
        Of each model alone; None where `order` was given and it was not asked for.
    history : tuple of (int, float, bool)
        For each model in the order of trying: its place, the score of the soup with it, whether
        it stayed.
    model : array, dict of str to array, or str
        The soup: in memory, or the path where it was written.
    """

    kept: tuple[int, ...]
    score: float
    scores: tuple[float | None, ...]
    history: tuple[tuple[int, float, bool], ...]
    model: Any


def greedy_soup(
    models: Sequence[Any],
    score: Score,
    *,
    order: Sequence[int] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    memory: int | str = "512MB",
    threads: int | None = None,
) -> GreedySoup:
    """Average models one by one, keeping each that does not make the score worse.

    The models are tried from the best alone to the worst; the mean is always that of the models
    themselves, rounded once.

    Parameters
    ----------
    models : sequence of models or of paths
        Arrays or mappings as for `weightshare.merge`, or paths of checkpoints, which may be
        larger than memory.
    score : callable
        ``score(model)`` returns a number, the higher the better, such as held-out accuracy. Of
        checkpoints it is given a path: of a model itself, or of a soup that lies beside `out`
        until the call returns.
    order : sequence of int, optional
        Places in `models` in the order of trying; None is by falling score, which takes a call
        for each model.
    out : path, optional
        Where the soup of checkpoints is written: a folder, or a ``.safetensors`` file. Needed for
        checkpoints, and for them alone.
    overwrite : bool
        Whether an `out` that exists is replaced, once the soup is complete.
    memory : int or str
        Budget of the process while checkpoints are averaged.
    threads : int, optional
        As for `weightshare.merge`.

    Returns
    -------
    GreedySoup
        ``kept``, ``score``, ``scores``, ``history`` and ``model``.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        No models, an order that names a model twice or not at all, a score that is no number,
        `out` missing or superfluous.
    NamesError, ShapeError, ElementError
        Models that do not fit each other; nothing is scored then.
    OutputExistsError
        `out` exists and `overwrite` is false; nothing is scored then.

    Notes
    -----
    Wortsman et al. 2022, arXiv:2203.05482, algorithm 1.

    Examples
    --------
    >>> models = [np.float32([0.0]), np.float32([4.0]), np.float32([9.0])]
    >>> soup = greedy_soup(models, lambda model: -abs(model[0] - 3.0))
    >>> soup.kept, soup.model, soup.score
    ((1, 0), array([2.], dtype=float32), -1.0)
    """
    if not callable(score):
        raise ArgumentTypeError(f"score: expected a callable, got {type(score).__name__}")
    pot = _pot(models, out, overwrite, memory, threads)
    places = None if order is None else _checked_order(order, pot.count)
    scores: list[float | None] = [None] * pot.count
    with pot.opened():
        for place in range(pot.count) if places is None else places[:1]:
            scores[place] = _scored(pot, score, [place])
        if places is None:
            places = sorted(range(pot.count), key=lambda place: -_number(scores[place]))
        kept, best = [places[0]], _number(scores[places[0]])
        history = [(places[0], best, True)]
        for place in places[1:]:
            found = _scored(pot, score, [*kept, place])
            stays = found >= best
            history.append((place, found, stays))
            if stays:
                kept, best = [*kept, place], found
        model = pot.finish(kept)
    return GreedySoup(tuple(kept), best, tuple(scores), tuple(history), model)


class _Pot(Protocol):
    """Where soups are made."""

    @property
    def count(self) -> int:
        """How many models there are."""

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """Hold what soups need meanwhile."""

    def taste(self, places: Sequence[int]) -> contextlib.AbstractContextManager[Any]:
        """Yield the soup of these models, for as long as it is scored."""

    def finish(self, places: Sequence[int]) -> Any:
        """Return the soup of these models for good."""


def _number(score: float | None) -> float:
    assert score is not None
    return score


def _scored(pot: _Pot, score: Score, places: Sequence[int]) -> float:
    with pot.taste(places) as model:
        found = score(model)
    try:
        number = float(found)
    except (TypeError, ValueError):
        number = np.nan
    if np.isnan(number):
        raise ArgumentError(
            f"score: expected a number, got {found!r} for the soup of models {list(places)}"
        )
    return number


def _checked_order(order: Sequence[int], count: int) -> list[int]:
    places: list[Any] = list(order) if hasattr(order, "__iter__") else [order]
    if len(places) != count or set(places) != set(range(count)):
        raise ArgumentError(
            f"order: expected each of the places 0 to {count - 1} once, got {places}"
        )
    return [int(place) for place in places]


def _pot(
    models: Sequence[Any],
    out: str | os.PathLike[str] | None,
    overwrite: bool,
    memory: int | str,
    threads: int | None,
) -> _Pot:
    if isinstance(models, str | os.PathLike) or not hasattr(models, "__len__"):
        raise ArgumentTypeError(
            f"models: expected a sequence of models or paths, got {type(models).__name__}"
        )
    models = list(models)
    are_paths = [isinstance(model, str | os.PathLike) for model in models]
    if not any(are_paths):
        if out is not None:
            raise ArgumentError("out: models in memory give a soup in memory; leave it out")
        check_models(models, get_method(_METHOD))
        return _InMemory(models, threads)
    if not all(are_paths):
        raise ArgumentTypeError("models: expected models in memory or paths, got some of both")
    if out is None:
        raise ArgumentError("out: is missing; a soup of checkpoints is written to a path")
    target = Path(path_text(out, "out"))
    if not overwrite and os.path.lexists(target):
        raise OutputExistsError(f"{target}: exists; choose another or allow it with overwrite")
    return _OnDisk([path_text(model, "models") for model in models], target, memory, threads)


@dataclass(frozen=True)
class _InMemory:
    models: Sequence[Model]
    threads: int | None

    @property
    def count(self) -> int:
        return len(self.models)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def taste(self, places: Sequence[int]) -> Iterator[Any]:
        yield self.finish(places)

    def finish(self, places: Sequence[int]) -> Any:
        chosen = [self.models[place] for place in places]
        return merge(chosen, method=_METHOD, threads=self.threads)


class _OnDisk:
    def __init__(self, paths: list[str], out: Path, memory: int | str, threads: int | None) -> None:
        self._paths, self._out = paths, out
        self._memory, self._threads = memory, threads
        self._folder = ""
        self._plan(range(len(paths)))  # what does not fit is told before anything is scored

    @property
    def count(self) -> int:
        return len(self._paths)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        self._out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".soup-", dir=self._out.absolute().parent
        ) as folder:
            self._folder = folder
            yield

    @contextlib.contextmanager
    def taste(self, places: Sequence[int]) -> Iterator[str]:
        if len(places) == 1:
            yield self._paths[places[0]]
            return
        target = Path(self._folder) / self._out.name
        self._write(places, target, overwrite=False)
        yield str(target)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()

    def finish(self, places: Sequence[int]) -> str:
        self._write(places, self._out, overwrite=True)
        return str(self._out)

    def _write(self, places: Sequence[int], target: Path, *, overwrite: bool) -> None:
        run_plan(
            self._plan(places),
            target,
            overwrite=overwrite,
            memory=self._memory,
            threads=self._threads,
        )

    def _plan(self, places: Sequence[int]) -> MergePlan:
        paths = [self._paths[place] for place in places]
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(open_checkpoint(path)) for path in paths]
            return MergePlan(
                method=_METHOD,
                models=tuple(
                    PlannedModel(path, os.path.abspath(path), _files(checkpoint))
                    for path, checkpoint in zip(paths, opened, strict=True)
                ),
                tensors=tuple(_tensor(name, paths, opened) for name in _names(paths, opened)),
                config=_config(paths[0]),
                copies=_companions(paths[0]),
                recipe=_recipe(paths),
            )


def _files(checkpoint: Checkpoint) -> tuple[tuple[str, int], ...]:
    return tuple((file, os.stat(file).st_size) for file in checkpoint.files)


def _names(paths: Sequence[str], opened: Sequence[Checkpoint]) -> list[str]:
    names = set(opened[0])
    for path, checkpoint in zip(paths, opened, strict=True):
        missing, extra = sorted(names - set(checkpoint)), sorted(set(checkpoint) - names)
        if missing or extra:
            raise NamesError(
                f"{path}: lacks {missing[:5]} and has {extra[:5]} beside {paths[0]}; every model"
                " must hold the same tensors"
            )
    return list(opened[0])


def _tensor(name: str, paths: Sequence[str], opened: Sequence[Checkpoint]) -> PlannedTensor:
    infos = [checkpoint.info(name) for checkpoint in opened]
    shape = tuple(infos[0].shape)
    for path, info in zip(paths, infos, strict=True):
        if tuple(info.shape) != shape:
            raise ShapeError(
                f"{path}: tensor {name!r} has shape {tuple(info.shape)}, expected {shape} as in"
                f" {paths[0]}"
            )
    sources = tuple(Source(place, name, info.dtype) for place, info in enumerate(infos))
    codes = {info.dtype for info in infos}
    if codes <= DTYPE_OF_CODE.keys():
        settings = Settings({}, tuple({} for _ in sources))
        return PlannedTensor(name, promoted(codes), shape, "merge", sources, settings=settings)
    if len(codes) > 1 or any(code.startswith("F") for code in codes):
        raise ElementError(f"models: tensor {name!r} is {', '.join(sorted(codes))}, not averaged")
    return PlannedTensor(name, codes.pop(), shape, "copy", sources)


def _config(path: str) -> str | None:
    file = Path(path) / "config.json"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _companions(path: str) -> tuple[FileCopy, ...]:
    """Return the tokenizer and other small files of a folder."""
    if not os.path.isdir(path):
        return ()
    with os.scandir(path) as entries:
        found = [
            FileCopy(os.path.abspath(entry.path), entry.name, entry.stat().st_size)
            for entry in sorted(entries, key=lambda entry: entry.name)
            if entry.is_file()
            and not entry.name.startswith(".")
            and entry.name.lower() not in _WRITTEN
            and not entry.name.lower().endswith(WEIGHTS)
        ]
    return tuple(copy for copy in found if copy.nbytes <= _LARGEST_COPY)


def _recipe(paths: Sequence[str]) -> str:
    lines = [f"merge_method: {_METHOD}", "models:"]
    lines += [f"  - model: {json.dumps(path)}" for path in paths]
    return "\n".join(lines) + "\n"

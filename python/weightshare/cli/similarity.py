"""``weightshare similarity``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import combinations
from typing import Any

import click
import numpy as np

from weightshare.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from weightshare.cli.options import JSON, NO_PROGRESS, THREADS
from weightshare.cli.output import facts_text, print_json, remark, show, table_text
from weightshare.errors import ArgumentError, CheckpointError
from weightshare.merging.elements import DTYPE_OF_CODE
from weightshare.merging.progress import progress_callback

_ROWS_SHOWN = 40
_PAIRS_SHOWN = 6


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, type=click.Path(readable=False))
@click.option(
    "--metric",
    type=click.Choice(["cosine", "row_cosine", "sign", "procrustes", "cka"]),
    default="cosine",
    show_default=True,
    help="What is measured.",
)
@click.option("--base", metavar="MODEL", help="Subtracted first: how alike are the changes to it?")
@click.option(
    "--level",
    type=click.Choice(["model", "tensor"]),
    default="model",
    show_default=True,
    help="One matrix, or one for each tensor.",
)
@click.option("--center", is_flag=True, help="Subtract each tensor's mean first.")
@click.option("--all", "every", is_flag=True, help="Show every tensor, not the first 40.")
@JSON
@THREADS
@NO_PROGRESS
def similarity(
    models: tuple[str, ...],
    metric: str,
    base: str | None,
    level: str,
    center: bool,
    every: bool,
    as_json: bool,
    threads: int | None,
    no_progress: bool,
) -> None:
    """Say how alike the checkpoints MODEL... are, pair by pair.

    Weights are read in parts: memory does not grow with the model (procrustes
    and cka need one tensor of each). Tensors that are not in all of them with
    the same shape are left out, and so are integers.

    \b
    Example:
      weightshare similarity tuned1 tuned2 tuned3 --base base
    """
    from weightshare.sharing import similarity as measure

    if len(models) < 2:
        raise click.UsageError(f"MODEL...: expected two or more checkpoints, got {len(models)}")
    with ExitStack() as opened:
        paths = [*models, *([base] if base else [])]
        checkpoints = [opened.enter_context(open_checkpoint(path)) for path in paths]
        names, left_out = _alike(checkpoints)
        if not names:
            raise click.UsageError(
                "MODEL...: the checkpoints have no floating-point tensor of one name and shape"
            )
        told = opened.enter_context(progress_callback(not no_progress, "compared"))
        total = _bytes_read(checkpoints, names, metric, center)
        count = _Counter(told, total)
        parts = [_Part(checkpoint, names, count) for checkpoint in checkpoints]
        with _named(models, base):
            found = measure(
                parts[: len(models)],
                metric,
                base=parts[-1] if base else None,
                level=level,
                center=center,
                threads=threads,
            )
    if as_json:
        matrices = found.items() if level == "tensor" else [("matrix", found)]
        plain = {name: matrix.tolist() for name, matrix in matrices}
        print_json(
            {
                "schema": 1,
                "metric": metric,
                "base": base,
                "center": center,
                "models": list(models),
                "left_out": left_out,
                **({"tensors": plain} if level == "tensor" else plain),
            }
        )
        return
    for reason, lost in left_out.items():
        remark(
            f"left out, {reason}: {len(lost)} ({', '.join(lost[:3])}{', ...' * (len(lost) > 3)})"
        )
    facts = [(str(j), path) for j, path in enumerate(models, start=1)]
    show(facts_text(_title(metric, base), facts))
    show(_matrix_text(found) if level == "model" else _tensors_text(found, every))


@contextmanager
def _named(models: tuple[str, ...], base: str | None) -> Iterator[None]:
    """Say the paths of weights that are refused, which are then a bad input file."""
    try:
        yield
    except ArgumentError as error:
        text = str(error)
        names = {f"models[{j}]": path for j, path in enumerate(models)} | {"base:": f"{base}:"}
        for label, path in names.items():
            if text.startswith(label):
                raise CheckpointError(path + text.removeprefix(label)) from error
        raise


class _Counter:
    """Tells how many bytes were read, from any thread."""

    def __init__(self, told: Callable[[int, int], object] | None, total: int) -> None:
        self._told = told
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            if self._told is not None:
                self._told(min(self._done, self._total), self._total)


class _Part(Mapping[str, Any]):
    """Some tensors of an open checkpoint; what is read of it is counted."""

    def __init__(self, checkpoint: Checkpoint, names: list[str], count: _Counter) -> None:
        self._checkpoint = checkpoint
        self._names = dict.fromkeys(names)
        self._count = count

    def info(self, name: str) -> TensorInfo:
        return self._checkpoint.info(name)

    def read_into(self, name: str, offset_bytes: int, buffer: Any) -> None:
        self._checkpoint.read_into(name, offset_bytes, buffer)
        self._count.add(buffer.nbytes)

    def __getitem__(self, name: str) -> Any:
        return self._checkpoint[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _alike(checkpoints: list[Checkpoint]) -> tuple[list[str], dict[str, list[str]]]:
    """The tensors that can be compared, and why others are left out."""
    every = list(dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint))
    left_out: dict[str, list[str]] = {}
    names = []
    for name in every:
        infos = [checkpoint.info(name) for checkpoint in checkpoints if name in checkpoint]
        if all(info.dtype not in DTYPE_OF_CODE for info in infos):
            reason = "no floating-point numbers"
        elif len(infos) < len(checkpoints):
            reason = "not in all of them"
        elif len({tuple(info.shape) for info in infos}) > 1:
            reason = "of different shapes"
        elif any(info.dtype not in DTYPE_OF_CODE for info in infos):
            reason = "of different kinds"
        else:
            names.append(name)
            continue
        left_out.setdefault(reason, []).append(name)
    return names, left_out


def _bytes_read(checkpoints: list[Checkpoint], names: list[str], metric: str, center: bool) -> int:
    """Bytes that `weightshare.similarity` will read."""
    whole = metric in ("procrustes", "cka")
    passes = 1 + whole + (center if metric == "sign" else 2 * center)
    if whole:
        names = [name for name in names if len(checkpoints[0].info(name).shape) == 2]
    return passes * sum(c.info(name).nbytes for c in checkpoints for name in names)


def _title(metric: str, base: str | None) -> str:
    return f"Similarity ({metric})" + (f" of the changes to {base}" if base else "")


def _matrix_text(matrix: Any) -> str:
    heads = ["", *(f"{j:>7}" for j in range(1, len(matrix) + 1))]
    rows = [
        [f"  {j}", *(f"{value:7.4f}" for value in row)] for j, row in enumerate(matrix, start=1)
    ]
    return table_text([heads, *rows])


def _tensors_text(found: dict[str, Any], every: bool) -> str:
    """The tensors, the least alike first, with their pairs, or the least and the mean of many."""
    n = len(next(iter(found.values())))
    pairs = list(combinations(range(n), 2))
    values = {name: [float(matrix[i, j]) for i, j in pairs] for name, matrix in found.items()}
    ordered = sorted(values, key=lambda name: (min(values[name]), name))
    shown = ordered if every else ordered[:_ROWS_SHOWN]
    if len(pairs) <= _PAIRS_SHOWN:
        heads = [f"{i + 1}-{j + 1}" for i, j in pairs]
        numbers = values
    else:
        heads = ["least", "mean"]
        numbers = {name: [min(row), float(np.mean(row))] for name, row in values.items()}
    rows = [[name, *(f"{number:7.4f}" for number in numbers[name])] for name in shown]
    text = table_text([["tensor", *(f"{head:>7}" for head in heads)], *rows])
    rest = len(ordered) - len(shown)
    return text if not rest else f"{text}\nand {rest} more (--all shows them)"

"""The models that a recipe names: found, opened, and their configurations read."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightshare.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from weightshare.checkpoint.codes import problem
from weightshare.errors import CheckpointError
from weightshare.merging.plan import PlannedModel, Source
from weightshare.merging.registry import nearest
from weightshare.recipes.adapters import (
    CONFIG_NAME,
    Adapter,
    fit_adapter,
    is_adapter,
    open_adapter,
)
from weightshare.recipes.configuration import read_configuration
from weightshare.recipes.hub import ADAPTER_FILES, HubError, cached_snapshot, find_in_hub, is_name
from weightshare.recipes.listing import planned_files
from weightshare.recipes.packed import foreign_file
from weightshare.recipes.quantised import Quantised, read_quantised, without_quantisation
from weightshare.recipes.reference import Reference

_SIGN_BYTES = 16


@dataclass(eq=False)
class SourceModel:
    """A model that a recipe names, open.

    Iterating gives the names of its tensors; those that only serve others, such as the scales of
    8-bit floats, are left out.

    Attributes
    ----------
    label : str
        As the recipe writes it.
    path : Path
        Absolute: a folder or a ``.safetensors`` file.
    checkpoint : Checkpoint
        The tensors of its files.
    config : dict or None
        The contents of its ``config.json``; it no longer says that the model is quantised.
    quantised : Quantised
        Its 8-bit floats.
    adapter : Adapter or None
        The adapter that is added to it.
    """

    label: str
    path: Path
    checkpoint: Checkpoint
    config: dict[str, Any] | None
    quantised: Quantised = field(default_factory=Quantised)
    adapter: Adapter | None = None
    _adapter_place: int | None = None

    def __iter__(self) -> Iterator[str]:
        hidden = self.quantised.hidden
        return (name for name in self.checkpoint if name not in hidden)

    def __contains__(self, name: object) -> bool:
        return name in self.checkpoint and name not in self.quantised.hidden

    def __len__(self) -> int:
        return len(self.checkpoint) - len(self.quantised.hidden)

    def info(self, name: str) -> TensorInfo:
        """Return what a tensor is: its dtype is what the rule of the output's dtype asks for.

        That is the file's own; of a quantised tensor ``"BF16"``. What a tile of it holds, which
        may be wider, is said by `source`.
        """
        return self.quantised.info(self.checkpoint.info(name))

    def source(self, index: int, name: str) -> Source:
        """Return how a tensor is read.

        Parameters
        ----------
        index : int
            The model's place in the plan.
        name : str
            The tensor's name in this model.

        Returns
        -------
        Source
            With a view when the file's elements are not those of the tensor. `place_models` has to
            be called before, for a model with an adapter.
        """
        info = self.checkpoint.info(name)
        source = self.quantised.source(index, info)
        if self.adapter is None:
            return source
        assert self._adapter_place is not None
        return self.adapter.source(source, self._adapter_place, info.shape)

    def planned(self) -> PlannedModel:
        """Return what the plan keeps of it, its adapter left out."""
        return PlannedModel(self.label, str(self.path), planned_files(self.checkpoint))


def place_models(models: Sequence[SourceModel]) -> tuple[PlannedModel, ...]:
    """Return what the plan keeps of its models: they in their order, then their adapters.

    Every model is told where its adapter stands, so that `SourceModel.source` can name it.
    """
    planned = [model.planned() for model in models]
    for model in models:
        if model.adapter is not None:
            model._adapter_place = len(planned)
            planned.append(model.adapter.planned())
    return tuple(planned)


class SourceOpener:
    """Finds and opens models, collecting what is wrong with them.

    Parameters
    ----------
    folder : Path or None
        The recipe's folder, where relative paths are looked for after the current one.
    opened : ExitStack
        Closes what was opened.
    progress : bool
        Whether downloads show bars.
    download : bool
        Whether models that are in no cache are downloaded. When they are not, because the recipe
        is refused anyway, they are not opened, and nothing is told of them.

    Attributes
    ----------
    download : bool
        As above; may be changed between calls.
    problems : list of str
        What is wrong.
    warnings : list of str
        What is allowed, and probably not meant.
    damage : CheckpointError or None
        The first file that breaks the format.
    """

    def __init__(
        self,
        folder: Path | None,
        opened: ExitStack,
        *,
        progress: bool = False,
        download: bool = True,
    ) -> None:
        self._folder = folder
        self.download = download
        self._opened = opened
        self._progress = progress
        self._plain: dict[Path, SourceModel | None] = {}
        self._models: dict[tuple[Path, Path | None], SourceModel] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.damage: CheckpointError | None = None

    def open(self, reference: Reference | str, where: str) -> SourceModel | None:
        """Open the model of that name; None and a problem when it cannot be.

        A model that was opened already is returned again.

        Parameters
        ----------
        reference : Reference or str
            A path, or a name of the hub, and perhaps an adapter. A text is a path or a name.
        where : str
            The place in the recipe, for messages.
        """
        asked = Reference(reference) if isinstance(reference, str) else reference
        path = self._locate(asked.path, asked.revision, where)
        lora = None
        if asked.lora is not None:
            lora = self._locate(asked.lora, asked.lora_revision, where, files=ADAPTER_FILES)
        if path is None or (asked.lora is not None and lora is None):
            return None
        if (path, lora) in self._models:
            return self._models[path, lora]
        if path not in self._plain:
            self._plain[path] = self._opened_model(path, asked, where)
        model = self._plain[path]
        if model is not None and lora is not None:
            model = self._adapted(model, lora, asked, where)
        if model is not None:
            self._models[path, lora] = model
        return model

    def tell_unreadable(self, where: str, path: str, error: OSError) -> None:
        """Note a file or folder that is there and cannot be read."""
        damage = problem("E102", path=path, detail=str(error.strerror))
        self.damage = self.damage or damage
        self.problems.append(f"{where}: {damage}")

    def _locate(
        self, text: str, revision: str | None, where: str, files: tuple[str, ...] = ()
    ) -> Path | None:
        """Return where a model or an adapter lies; None and a problem when it is not found."""
        try:
            path = self._find(text) if revision is None else None
            if path is not None:
                return path
            # One word alone is far more often a path that is not there than a name of the hub.
            if is_name(text) and ("/" in text or revision is not None):
                if not self.download:
                    return cached_snapshot(text, revision, files)
                return find_in_hub(text, revision, files, progress=self._progress)
        except HubError as error:
            as_path = "" if revision is not None else f"{self._not_found(text, None)}; as a name: "
            self.problems.append(f"{where}: {as_path}{error}")
        except OSError as error:
            self.tell_unreadable(where, str(error.filename or text), error)
        else:
            self.problems.append(f"{where}: {self._not_found(text, revision)}")
        return None

    def _places(self) -> Sequence[Path]:
        places = [Path.cwd()] if self._folder is None else [Path.cwd(), self._folder]
        return list(dict.fromkeys(places))

    def _find(self, label: str) -> Path | None:
        for place in self._places():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
                try:
                    # As text: expanduser of a path refuses a user that there is not.
                    path = place / os.path.expanduser(label)
                    os.stat(path)
                    return path.resolve()
                except OSError as error:
                    if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                        raise
        return None

    def _not_found(self, label: str, revision: str | None) -> str:
        if revision is not None:
            if self._find(label) is not None:
                return f"{label!r} is a path, which has no revisions; leave out '@{revision}'"
            return f"{label!r} cannot be the name of a model of the hub, to have a revision"
        name, parent = os.path.basename(label), os.path.dirname(label)
        siblings: list[str] = []
        for place in self._places():
            with contextlib.suppress(OSError, ValueError):
                siblings += sorted(os.listdir(place / parent))[:1000]
        places = " or ".join(str(place) for place in self._places())
        looked = "" if os.path.isabs(label) else f" (looked in {places})"
        return f"there is no folder or file {label!r}{looked}{nearest(name, siblings)}"

    def _opened_model(self, path: Path, asked: Reference, where: str) -> SourceModel | None:
        refusal = _other_than_a_model(path, asked.path)
        if refusal is not None:
            self.problems.append(f"{where}: {refusal}")
            return None
        try:
            checkpoint = self._opened.enter_context(open_checkpoint(path))
        except CheckpointError as error:
            self.damage = self.damage or error
            self.problems.append(f"{where}: {error}")
            return None
        config = self._config(path, where)
        wrong: list[str] = []
        quantised = read_quantised(checkpoint, config, wrong)
        self.problems += [f"{where}: {path}: {told}" for told in wrong]
        if wrong:
            return None
        self.warnings += [f"{asked.path}: {told}" for told in quantised.warnings]
        if config is not None:
            config = without_quantisation(config)
        label = Reference(asked.path, asked.revision).label
        return SourceModel(label, path, checkpoint, config, quantised)

    def _adapted(
        self, model: SourceModel, lora: Path, asked: Reference, where: str
    ) -> SourceModel | None:
        label = Reference(str(asked.lora), asked.lora_revision).label
        try:
            config, checkpoint = open_adapter(lora, self._opened)
        except CheckpointError as error:
            self.damage = self.damage or error
            self.problems.append(f"{where}: {error}")
            return None
        except OSError as error:
            self.tell_unreadable(where, str(error.filename), error)
            return None
        except ValueError as error:
            self.problems.append(f"{where}: {error}")
            return None
        wrong: list[str] = []
        adapter = fit_adapter(label, config, checkpoint, model, wrong)
        self.problems += [f"{where}: {told}" for told in wrong]
        if adapter is None:
            return None
        self.warnings += adapter.warnings
        own = (model.path, model.checkpoint, model.config, model.quantised)
        return SourceModel(asked.label, *own, adapter)

    def _config(self, path: Path, where: str) -> dict[str, Any] | None:
        file = path / "config.json"
        if not os.path.isdir(path) or not os.path.exists(file):
            return None
        try:
            return read_configuration(file)
        except OSError as error:
            self.tell_unreadable(where, str(file), error)
        except ValueError as error:
            self.problems.append(f"{where}: {error}")
        return None


def _other_than_a_model(path: Path, written: str) -> str | None:
    """Return what lies at a path, and what to do, where it is told without reading a header."""
    if path.is_file():
        try:
            with open(path, "rb") as file:
                told = foreign_file(path.name, file.read(_SIGN_BYTES))
        except OSError:
            return None  # opening it tells
        return None if told is None else f"{path} {told}"
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return None
    if is_adapter(path) and not any(_is_weights(name) for name in names):
        return (
            f"{path} is a LoRA adapter ({CONFIG_NAME}); write the model that it belongs to before"
            f" it: MODEL+{written}"
        )
    if any(_is_weights(name) for name in names):
        return None
    found = ((name, foreign_file(name)) for name in names)
    return next((f"{path / name} {told}" for name, told in found if told is not None), None)


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json")) and not name.startswith(
        "adapter_"
    )

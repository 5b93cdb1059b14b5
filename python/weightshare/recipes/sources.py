"""The models that a recipe names: found, opened, and their configurations read."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightshare.checkpoint import Checkpoint, open_checkpoint
from weightshare.checkpoint.codes import problem
from weightshare.errors import CheckpointError
from weightshare.merging.plan import PlannedModel
from weightshare.merging.registry import nearest

_LARGEST_CONFIG = 10_000_000


@dataclass(frozen=True)
class SourceModel:
    """A model that a recipe names, open.

    Attributes
    ----------
    label : str
        As the recipe writes it.
    path : Path
        Absolute: a folder or a ``.safetensors`` file.
    checkpoint : Checkpoint
        Its tensors.
    config : dict or None
        The contents of its ``config.json``.
    """

    label: str
    path: Path
    checkpoint: Checkpoint
    config: dict[str, Any] | None

    def planned(self) -> PlannedModel:
        """Return what the plan keeps of it."""
        files = tuple((file, os.stat(file).st_size) for file in self.checkpoint.files)
        return PlannedModel(self.label, str(self.path), files)


class SourceOpener:
    """Finds and opens models, collecting what is wrong with them.

    Parameters
    ----------
    folder : Path or None
        The recipe's folder, where relative paths are looked for after the current one.
    opened : ExitStack
        Closes what was opened.

    Attributes
    ----------
    problems : list of str
        What is wrong.
    damage : CheckpointError or None
        The first file that breaks the format.
    """

    def __init__(self, folder: Path | None, opened: ExitStack) -> None:
        self._folder = folder
        self._opened = opened
        self._models: dict[Path, SourceModel] = {}
        self.problems: list[str] = []
        self.damage: CheckpointError | None = None

    def open(self, label: str, where: str) -> SourceModel | None:
        """Open the model of that name; None and a problem when it cannot be.

        A model that was opened already is returned again.
        """
        try:
            path = self._find(label)
        except PermissionError as error:
            self.tell_unreadable(where, str(error.filename), error)
            return None
        if path is None:
            self.problems.append(f"{where}: {self._not_found(label)}")
            return None
        if path not in self._models:
            try:
                checkpoint = self._opened.enter_context(open_checkpoint(path))
                config = self._config(path, where)
            except CheckpointError as error:
                self.damage = self.damage or error
                self.problems.append(f"{where}: {error}")
                return None
            self._models[path] = SourceModel(label, path, checkpoint, config)
        return self._models[path]

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

    def tell_unreadable(self, where: str, path: str, error: OSError) -> None:
        """Note a file or folder that is there and cannot be read."""
        damage = problem("E102", path=path, detail=str(error.strerror))
        self.damage = self.damage or damage
        self.problems.append(f"{where}: {damage}")

    def _not_found(self, label: str) -> str:
        if "+" in label:
            return f"{label!r}: adapters ('+lora') are not supported in this version"
        if "@" in label:
            return f"{label!r}: revisions ('@revision') are not supported in this version"
        name, parent = os.path.basename(label), os.path.dirname(label)
        siblings: list[str] = []
        for place in self._places():
            with contextlib.suppress(OSError, ValueError):
                siblings += sorted(os.listdir(place / parent))[:1000]
        places = " or ".join(str(place) for place in self._places())
        looked = "" if os.path.isabs(label) else f" (looked in {places})"
        return f"there is no folder or file {label!r}{looked}{nearest(name, siblings)}"

    def _config(self, path: Path, where: str) -> dict[str, Any] | None:
        file = path / "config.json"
        if not os.path.isdir(path) or not os.path.exists(file):
            return None
        try:
            with open(file, "rb") as opened:
                content = opened.read(_LARGEST_CONFIG + 1)
            config = json.loads(content) if len(content) <= _LARGEST_CONFIG else None
        except OSError as error:
            self.tell_unreadable(where, str(file), error)
            return None
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{where}: {file} cannot be read: {error}")
            return None
        if not isinstance(config, dict):
            self.problems.append(f"{where}: {file} is no configuration: expected a JSON object")
            return None
        if config.get("quantization_config"):
            self.problems.append(
                f"{where}: {path} is quantised (config.json has quantization_config); its codes"
                " cannot be averaged, merge the unquantised model"
            )
        return config

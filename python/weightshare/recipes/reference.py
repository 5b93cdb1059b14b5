"""How a recipe names a model: a path, and perhaps a revision and an adapter."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightshare.merging.registry import nearest

_PART_KEYS = ("path", "revision")
_KEYS = ("model", "lora", "override_architecture")


@dataclass(frozen=True, slots=True)
class Reference:
    """A model as a recipe names it.

    Attributes
    ----------
    path : str
        A folder, a file, or a name such as ``org/model``.
    revision : str or None
        Branch, tag or commit.
    lora, lora_revision : str or None
        The adapter that is added to the model, and its revision.

    Examples
    --------
    >>> Reference("org/model", "main", "org/adapter").label
    'org/model@main+org/adapter'
    """

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    @property
    def label(self) -> str:
        """The short form: ``path[@revision][+lora[@revision]]``."""
        text = self.path if self.revision is None else f"{self.path}@{self.revision}"
        if self.lora is None:
            return text
        own = self.lora if self.lora_revision is None else f"{self.lora}@{self.lora_revision}"
        return f"{text}+{own}"


def parse_reference(
    value: object, where: str, problems: list[str], *, folder: Path | None = None
) -> Reference | None:
    """Read the name of a model.

    Parameters
    ----------
    value : object
        ``path[@revision][+lora[@revision]]``, or mergekit's long form
        ``{model: {path, revision}, lora: {path, revision}, override_architecture}``. A text that
        is the path of something that exists is that path, whatever signs it holds.
    where : str
        The place in the recipe, for messages.
    problems : list of str
        Takes what is wrong.
    folder : Path, optional
        Where relative paths are looked for after the current folder.

    Returns
    -------
    Reference or None
        None, and a problem, when it is none.

    Examples
    --------
    >>> problems = []
    >>> parse_reference("a/b@v1+c/d", "models[0].model", problems)
    Reference(path='a/b', revision='v1', lora='c/d', lora_revision=None)
    >>> parse_reference("a@b@c", "models[0].model", problems), problems[0][:43]
    (None, "models[0].model: expected at most one '@' i")
    """
    if isinstance(value, Mapping):
        return _long(value, where, problems)
    if not isinstance(value, str) or not value:
        problems.append(f"{where}: expected the path of a model, got {value!r}")
        return None
    if _exists(value, folder):
        return Reference(value)
    model, plus, lora = value.partition("+")
    if "+" in lora:
        problems.append(f"{where}: expected at most one '+' before an adapter, got {value!r}")
        return None
    parts = [_short(part, where, problems) for part in ((model, lora) if plus else (model,))]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    return Reference(*known[0], *(known[1] if plus else (None, None)))


def _exists(text: str, folder: Path | None) -> bool:
    for place in (Path(), folder):
        with contextlib.suppress(OSError, ValueError):
            if place is not None and os.path.exists(place / os.path.expanduser(text)):
                return True
    return False


def _short(part: str, where: str, problems: list[str]) -> tuple[str, str | None] | None:
    path, at, revision = part.partition("@")
    if "@" in revision:
        problems.append(f"{where}: expected at most one '@' in each part, got {part!r}")
    elif not path or (at and not revision):
        problems.append(
            f"{where}: expected a path before '@' and a revision after it, got {part!r}"
        )
    else:
        return path, revision or None
    return None


def _long(value: Mapping[Any, Any], where: str, problems: list[str]) -> Reference | None:
    before = len(problems)
    flat = "path" in value and "model" not in value
    known: Iterable[str] = (*_PART_KEYS, *_KEYS[1:]) if flat else _KEYS
    _check_keys(value, known, where, problems)
    if value.get("override_architecture") is not None:
        # Layers and modules are told from names, so there is nothing to override.
        _check_text(value["override_architecture"], f"{where}.override_architecture", problems)
    own = {key: value.get(key) for key in _PART_KEYS} if flat else value.get("model")
    model = _part(own, where if flat else f"{where}.model", problems)
    lora = value.get("lora")
    adapter = (None, None) if lora is None else _part(lora, f"{where}.lora", problems)
    if model is None or adapter is None or len(problems) > before:
        return None
    return Reference(*model, *adapter)


def _part(value: object, where: str, problems: list[str]) -> tuple[str, str | None] | None:
    if isinstance(value, str) and value:
        return _short(value, where, problems)
    if not isinstance(value, Mapping):
        problems.append(f"{where}: expected a path, or the keys path and revision, got {value!r}")
        return None
    before = len(problems)
    _check_keys(value, _PART_KEYS, where, problems)
    path, revision = value.get("path"), value.get("revision")
    _check_text(path, f"{where}.path", problems)
    if revision is not None:
        _check_text(revision, f"{where}.revision", problems)
    return None if len(problems) > before else (str(path), revision)


def _check_keys(
    value: Mapping[Any, Any], known: Iterable[str], where: str, problems: list[str]
) -> None:
    problems.extend(
        f"{where}: unknown key {key!r}{nearest(key, known)}" for key in value if key not in known
    )


def _check_text(value: object, where: str, problems: list[str]) -> None:
    if not isinstance(value, str) or not value:
        problems.append(f"{where}: expected a text, got {value!r}")

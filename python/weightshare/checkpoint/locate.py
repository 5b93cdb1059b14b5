"""What a path means: one safetensors file, or a folder with one file or with shards."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass

from weightshare.checkpoint.codes import message, problem, shown
from weightshare.checkpoint.index import INDEX_NAME
from weightshare.errors import ArgumentError, ArgumentTypeError, CheckpointNotFoundError

SINGLE_NAME = "model.safetensors"
SUFFIX = ".safetensors"
SHARD_PATTERN = re.compile(r".*-(\d{5,})-of-(\d{5,})(\.[0-9a-f]{8})?\.safetensors", re.DOTALL)

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_LISTED = 10
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a checkpoint lies: `file` for one file, else `index` for a sharded one."""

    file: str = ""
    index: str = ""


def path_text(path: str | os.PathLike[str], argument: str = "path") -> str:
    """Return a path argument as text.

    Raises
    ------
    ArgumentTypeError, ArgumentError
        It is not a path, or not a usable one.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        got = type(path).__name__
        raise ArgumentTypeError(
            f"{argument}: expected a path (str or PathLike), got {got}"
        ) from None
    if not text or "\0" in text:
        raise ArgumentError(f"{argument}: expected a path, got {shown(text)!r}")
    return text


def locate(path: str) -> Location:
    """Return what `path` means: a file, an index, or a folder's ``model.safetensors``, index, or
    only safetensors file, looked for in this order.

    Raises
    ------
    CheckpointNotFoundError, CheckpointError
        E101 to E105.
    """
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in _NOTHING:
            raise _not_found("E101", path, _nothing_there(path)) from None
        raise problem("E102", path=path, detail=str(error.strerror)) from None
    if os.path.isdir(path):
        return _in_folder(path)
    if path.endswith(".json"):
        return Location(index=path)
    if path.lower().endswith(_PICKLE_SUFFIXES):
        raise problem("E103", path=path)
    return Location(file=path)


def _not_found(code: str, path: str, detail: str) -> CheckpointNotFoundError:
    text = message(code, path=path, detail=detail)
    return CheckpointNotFoundError(text, code=code, path=path)


def _nothing_there(path: str) -> str:
    if os.path.islink(path):
        return f"it is a link to {os.readlink(path)}, which does not exist"
    parent = os.path.dirname(path) or "."
    return "" if os.path.isdir(parent) else f"there is no folder {parent} either"


def _in_folder(folder: str) -> Location:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise problem("E102", path=folder, detail=str(error.strerror)) from None
    if SINGLE_NAME in names:
        return Location(file=os.path.join(folder, SINGLE_NAME))
    if INDEX_NAME in names:
        return Location(index=os.path.join(folder, INDEX_NAME))
    weights = [name for name in names if name.endswith(SUFFIX)]
    if len(weights) == 1 and not _is_one_of_several(weights[0]):
        return Location(file=os.path.join(folder, weights[0]))
    raise _no_checkpoint(folder, names, weights)


def _is_one_of_several(name: str) -> bool:
    found = SHARD_PATTERN.fullmatch(name)
    return found is not None and int(found[2]) > 1


def _no_checkpoint(folder: str, names: list[str], weights: list[str]) -> Exception:
    pickles = [name for name in names if name.lower().endswith(_PICKLE_SUFFIXES)]
    indexes = [name for name in names if name.endswith(".safetensors.index.json")]
    if any(_is_one_of_several(name) for name in weights):
        detail = f"it has shards but no {INDEX_NAME}; download that file too"
        return problem("E104", path=folder, detail=detail)
    if weights:
        listed = ", ".join(shown(name) for name in (indexes + weights)[:_LISTED])
        return problem("E105", path=folder, detail=listed)
    if pickles:
        return problem("E103", path=os.path.join(folder, pickles[0]))
    return _not_found("E104", folder, f"no *{SUFFIX} among its {len(names)} entries")

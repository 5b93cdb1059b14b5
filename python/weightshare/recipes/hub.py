"""Models that a recipe names as ``org/name``: found in the hub's local cache, or downloaded.

The cache is that of the library huggingface_hub, and read without it:
``models--org--name/refs/<revision>`` holds a commit, and ``snapshots/<commit>`` its files, which
are links into ``blobs``.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from weightshare.checkpoint.codes import shown
from weightshare.checkpoint.index import INDEX_NAME, read_index
from weightshare.checkpoint.locate import SHARD_PATTERN, SINGLE_NAME, SUFFIX
from weightshare.errors import CheckpointError
from weightshare.recipes.listing import listed
from weightshare.recipes.packed import foreign_file

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?:{_WORD}/)?{_WORD}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_COMMIT_BEGINNING = re.compile(r"[0-9a-f]{4,64}")
_LONGEST_REVISION = 300
_MOST_ENTRIES = 10_000
_YES = ("1", "on", "yes", "true")


class HubError(ValueError):
    """A model that the hub or its cache does not give; the message says why and what to do."""


def is_name(text: str) -> bool:
    """Say whether a text can be the name of a model of the hub.

    Examples
    --------
    >>> is_name("org/model"), is_name("gpt2"), is_name("./model"), is_name("a/b/c"), is_name("a--b")
    (True, True, False, False, False)
    """
    return bool(_NAME.fullmatch(text)) and "--" not in text and ".." not in text


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the hub's cache, by the variables that huggingface_hub obeys.

    Examples
    --------
    >>> str(cache_folder({"HF_HOME": "/data/hf", "HF_HUB_CACHE": ""}))
    '/data/hf/hub'
    """
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(variable):
            return _expanded(environment[variable])
    if environment.get("HF_HOME"):
        return _expanded(environment["HF_HOME"]) / "hub"
    home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(home) / "huggingface" / "hub"


def cached_snapshot(name: str, revision: str | None, files: tuple[str, ...] = ()) -> Path | None:
    """Return the folder of a model in the local cache; nothing is downloaded.

    Parameters
    ----------
    name : str
        Such as ``"org/model"``.
    revision : str, optional
        Branch, tag or commit, or the beginning of a commit; None is ``main``.
    files : tuple of str
        Names that must be there; without any, the weights must be.

    Returns
    -------
    Path or None
        None when it is not there, or not whole.

    Raises
    ------
    HubError
        What is there leads out of the cache, or is ambiguous.
    OSError
        It cannot be read.
    """
    repository = cache_folder() / f"models--{name.replace('/', '--')}"
    if not os.path.isdir(repository):
        return None
    commit = _commit(repository, revision, name)
    snapshot = None if commit is None else repository / "snapshots" / commit
    if snapshot is None or not os.path.isdir(snapshot):
        return None
    _check_links(repository, snapshot)
    return snapshot if _is_whole(snapshot, files) else None


def find_in_hub(
    name: str, revision: str | None, files: tuple[str, ...] = (), *, progress: bool = False
) -> Path:
    """Return the folder of a model: from the local cache, else downloaded into it.

    Only safetensors, their index and small files are downloaded.

    Parameters
    ----------
    name, revision, files
        As for `cached_snapshot`.
    progress : bool
        Whether a download shows bars.

    Returns
    -------
    Path

    Raises
    ------
    HubError
        It is not in the cache and cannot be downloaded; one line.
    OSError
        The cache cannot be read.
    """
    _check_revision(name, revision)
    found = cached_snapshot(name, revision, files)
    if found is not None:
        return found
    missing = f"{_at(name, revision)} is not in the hub's cache ({cache_folder()})"
    if any(
        os.environ.get(key, "").lower() in _YES
        for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ):
        raise HubError(f"{missing}, and HF_HUB_OFFLINE forbids to download it")
    # Imported when used: it is large, and in an extra.
    from weightshare.recipes.download import download

    snapshot = download(name, revision, files, missing=missing, progress=progress)
    _check_links(snapshot.parents[1], snapshot)
    if not _is_whole(snapshot, files):
        raise HubError(f"{_at(name, revision)} was downloaded to {snapshot} and is not complete")
    return snapshot


def wanted_files(every: Sequence[str], name: str, needed: tuple[str, ...] = ()) -> list[str]:
    """Return which of a repository's files are downloaded for a merge.

    Parameters
    ----------
    every : sequence of str
        All files of the repository.
    name : str
        The model, for messages.
    needed : tuple of str
        These and no others.

    Returns
    -------
    list of str
        Those that are needed; without any, the weights in safetensors, each once, and the small
        files beside them.

    Raises
    ------
    HubError
        A file that is needed is not there, or there are no safetensors at the top.

    Examples
    --------
    >>> wanted_files(["model.safetensors", "pytorch_model.bin", "config.json", "fp16/a.json"], "a/b")
    ['config.json', 'model.safetensors']
    """
    lacking = [file for file in needed if file not in every]
    if lacking:
        raise HubError(f"{name} has no {listed(lacking)} among its files ({listed(sorted(every))})")
    if needed:
        return list(needed)
    top = sorted(file for file in every if "/" not in file)
    weights = [file for file in top if file.endswith(SUFFIX)]
    if SINGLE_NAME in weights:
        weights = [SINGLE_NAME]
    elif INDEX_NAME in top:
        weights = [file for file in weights if SHARD_PATTERN.fullmatch(file)] or weights
    if not weights:
        others = [told for told in (foreign_file(file) for file in top) if told is not None]
        reason = f"; it {others[0]}" if others else "; merge a model that has some"
        raise HubError(f"{name} has no safetensors among its {len(top)} files{reason}")
    return sorted((*weights, *(file for file in top if _is_small(file))))


def _expanded(path: str) -> Path:
    return Path(os.path.abspath(os.path.expandvars(os.path.expanduser(path))))


def _at(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name}@{shown(revision)}"


def _check_revision(name: str, revision: str | None) -> None:
    if revision is None:
        return
    parts = revision.split("/")
    hostile = any(part in ("", ".", "..") for part in parts) or not revision.isprintable()
    if hostile or len(revision) > _LONGEST_REVISION or "\\" in revision:
        raise HubError(
            f"{name}: {shown(revision)!r} is no revision; expected a branch, tag or commit"
        )


def _commit(repository: Path, revision: str | None, name: str) -> str | None:
    """Return the commit that a revision means in a cached repository."""
    _check_revision(name, revision)
    refs = repository / "refs"
    reference = refs / (revision or "main")
    # A branch such as pr/1 is a folder with a file; nothing but plain files below refs is read.
    if os.path.lexists(reference) and _is_within(reference, [refs]) and reference.is_file():
        with open(reference, "rb") as file:
            commit = file.read(100).decode("ascii", "replace").strip()
        if not _COMMIT.fullmatch(commit):
            raise HubError(f"{reference} of the hub's cache is damaged: expected a commit in it")
        return commit
    if revision is None or not _COMMIT_BEGINNING.fullmatch(revision):
        return None
    fitting = [commit for commit in _snapshots(repository) if commit.startswith(revision)]
    if len(fitting) > 1:
        raise HubError(f"{name}: the commit {revision} is ambiguous: {listed(fitting)}; give more")
    return fitting[0] if fitting else None


def _snapshots(repository: Path) -> list[str]:
    try:
        names = sorted(os.listdir(repository / "snapshots"))
    except FileNotFoundError:
        return []
    return [name for name in names if _COMMIT.fullmatch(name)]


def _is_within(path: Path, folders: list[Path]) -> bool:
    try:
        real = Path(os.path.realpath(path, strict=True))
    except OSError as error:
        # A blob that is missing is no way out; a circle of links is damage.
        return error.errno == errno.ENOENT and not _leads_out(path, folders)
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def _leads_out(path: Path, folders: list[Path]) -> bool:
    real = Path(os.path.realpath(path))
    return not any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def _check_links(repository: Path, snapshot: Path) -> None:
    """Refuse a snapshot whose files lead elsewhere than to the cache's blobs."""
    # The second is the store that newer caches keep for all repositories.
    allowed = [snapshot, repository / "blobs", repository.parent / "blobs"]
    if not _is_within(snapshot, [repository]):
        raise HubError(f"{snapshot} of the hub's cache leads out of it; remove it from there")
    with os.scandir(snapshot) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST_ENTRIES:
                raise HubError(f"{snapshot} of the hub's cache has more than {_MOST_ENTRIES} files")
            if entry.is_symlink() and not _is_within(Path(entry.path), allowed):
                raise HubError(
                    f"{entry.path} of the hub's cache is a link out of it, or to itself; remove"
                    f" {snapshot} and download the model again"
                )


def _is_whole(snapshot: Path, files: tuple[str, ...]) -> bool:
    if files:
        return all((snapshot / file).is_file() for file in files)
    if (snapshot / SINGLE_NAME).is_file():
        return True
    if not (snapshot / INDEX_NAME).is_file():
        # Shards without their index are what a download leaves that was stopped.
        found = (path.name for path in snapshot.glob(f"*{SUFFIX}") if path.is_file())
        several = (SHARD_PATTERN.fullmatch(file) for file in found)
        return any(each is None or int(each[2]) == 1 for each in several)
    try:
        shards = read_index(str(snapshot / INDEX_NAME)).shards
    except CheckpointError:
        return True  # opening it tells what is wrong with it
    return all((snapshot / shard).is_file() for shard in shards)


def _is_small(file: str) -> bool:
    if file.endswith(".index.json"):
        return file == INDEX_NAME
    return file.endswith((".json", ".txt", ".model", ".jinja", ".tiktoken"))

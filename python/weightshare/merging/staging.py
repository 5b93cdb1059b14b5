"""The small files beside the weights: staged first, given their names just before the weights.

The old ones are kept under hidden names until the weights have theirs, and a hidden record says
which. Whether the weights of the folder are still those of the record then decides which small
files stay: after an error at once, after a kill in the next run that takes the folder's lock.
Between them lie a few renames, in which a reader can see new small files beside old weights.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from weightshare.checkpoint.codes import problem
from weightshare.checkpoint.output_file import partial_name, sync_folder
from weightshare.merging.files import RECORD_NAME, is_backup_name, is_plain_name, output_error

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PIECE = 1 << 20


class StagedFiles:
    """Small files written under temporary names, to be renamed together.

    Parameters
    ----------
    folder : Path
        Where they go; it exists.

    Attributes
    ----------
    names : list of str
        Of all files that were added.
    checksums : dict of str to str
        The SHA-256 of each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staged: dict[str, Path] = {}
        self.names: list[str] = []
        self.checksums: dict[str, str] = {}

    def add(self, name: str, content: bytes) -> None:
        """Write one file, durable but not yet under its name."""
        self._write(name, [content])

    def add_copy(self, name: str, source: str) -> None:
        """Copy one file in pieces, durable but not yet under its name.

        Raises
        ------
        CheckpointError
            E102, the source cannot be read.
        """
        self._write(name, _pieces(source))

    def _write(self, name: str, pieces: Iterable[bytes]) -> None:
        partial = self._folder / partial_name(name)
        self._staged[name] = partial
        digest = hashlib.sha256()
        try:
            with open(partial, "xb") as file:
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise output_error(error, self._folder / name) from error
        self.names.append(name)
        self.checksums[name] = digest.hexdigest()

    @contextlib.contextmanager
    def published(self, stale: Iterable[str] = ()) -> Iterator[None]:
        """Give every file its name, and take it back after the body if the weights stayed.

        Parameters
        ----------
        stale : iterable of str
            Old files that go.
        """
        gone = [name for name in stale if name not in self._staged]
        if not self._staged and not gone:
            yield
            return
        try:
            self.publish(gone)
            yield
        finally:
            # What cannot be settled now is left to the next run; the record stays.
            with contextlib.suppress(OSError):
                settle(self._folder)

    def publish(self, gone: Iterable[str]) -> None:
        """Record and keep the old files, then rename the new ones into their places."""
        try:
            old = {name: self._backup_name(name) for name in (*self._staged, *gone)}
            self._record(old)
            for name, backup in old.items():
                if backup is not None:
                    _keep(self._folder / name, self._folder / backup)
            for name in gone:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._folder / name)
            for name, partial in list(self._staged.items()):
                os.replace(partial, self._folder / name)
                del self._staged[name]
        except OSError as error:
            raise output_error(error, self._folder) from error

    def _backup_name(self, name: str) -> str | None:
        final = self._folder / name
        if final.is_dir() and not final.is_symlink():
            raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file", str(final))
        if not os.path.lexists(final):
            return None
        return partial_name(name).removesuffix(".partial") + ".backup"

    def _record(self, old: dict[str, str | None]) -> None:
        self.add(RECORD_NAME, json.dumps({"weights": _weights(self._folder), "old": old}).encode())
        self.names.remove(RECORD_NAME)
        os.replace(self._staged.pop(RECORD_NAME), self._folder / RECORD_NAME)
        sync_folder(str(self._folder))

    def discard(self) -> None:
        """Remove what was staged and not published."""
        for path in self._staged.values():
            with contextlib.suppress(OSError):
                path.unlink()
        self._staged.clear()


def settle(folder: Path) -> None:
    """End a publication that a record tells of: the small files are made to fit the weights.

    Parameters
    ----------
    folder : Path
        Locked by the caller. Without a record nothing is done.
    """
    record = _read_record(folder)
    if record is None:
        return
    weights, old = record
    is_old = weights == _weights(folder)
    for name, backup in old.items():
        final, kept = folder / name, None if backup is None else folder / backup
        with contextlib.suppress(FileNotFoundError):
            if is_old and kept is None:
                os.unlink(final)
            elif is_old and kept is not None:
                os.replace(kept, final)
            # Renaming one of two links to the same file leaves both.
            if kept is not None:
                os.unlink(kept)
    sync_folder(str(folder))
    os.unlink(folder / RECORD_NAME)


def _read_record(folder: Path) -> tuple[object, dict[str, str | None]] | None:
    try:
        found = json.loads((folder / RECORD_NAME).read_bytes())
        old = dict(found["old"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, {}
    sound = {
        name: backup
        for name, backup in old.items()
        if is_plain_name(name) and (backup is None or is_backup_name(backup))
    }
    return found.get("weights"), sound


def _weights(folder: Path) -> list[object] | None:
    """Return what tells the weights that a folder means from any others; None without any."""
    for name in _WEIGHTS:
        with contextlib.suppress(OSError):
            found = os.lstat(folder / name)
            return [name, found.st_ino, found.st_size, found.st_mtime_ns]
    return None


def _keep(final: Path, backup: Path) -> None:
    try:
        os.link(final, backup, follow_symlinks=False)
    except OSError:
        os.rename(final, backup)  # a file system without links


def _pieces(source: str) -> Iterator[bytes]:
    try:
        with open(source, "rb") as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise problem("E102", path=source, detail=str(error.strerror)) from error

"""The small files beside the weights: staged first, given their names just before the weights."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from weightshare.errors import OutputError, OutputExistsError, OutputLockedError, OutputSpaceError
from weightshare.merging.sizes import format_bytes

LOCK_NAME = ".weightshare.lock"
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def output_error(error: OSError, path: object) -> OutputError:
    """Return the error of ours that says what could not be written."""
    kind = OutputSpaceError if error.errno in NO_SPACE else OutputError
    return kind(f"{path}: cannot be written: {error.strerror or error}")


@contextlib.contextmanager
def locked_folder(folder: Path, name: str = LOCK_NAME) -> Iterator[None]:
    """Hold a folder's lock while the body runs; the folder is made, and removed if left empty.

    Parameters
    ----------
    folder : Path
        The output folder.
    name : str
        The lock file in it.

    Raises
    ------
    OutputLockedError
        Another run holds it; the message says which process.
    OutputExistsError
        There is a file of that name.
    OutputError
        The folder cannot be made or written.
    """
    made = _missing_folders(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(folder / name)
    except OutputError:
        raise
    except FileExistsError as error:
        raise OutputExistsError(
            f"{folder}: is a file, expected a folder; choose another output"
        ) from error
    except OSError as error:
        raise output_error(error, folder) from error
    try:
        yield
        for path in made:
            _sync(path.parent)
    finally:
        # Unlinked while still held: who opened the old file sees that it has no name and retries.
        with contextlib.suppress(OSError):
            os.unlink(folder / name)
        os.close(lock)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _missing_folders(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _take_lock(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise OutputLockedError(
                f"{path.parent}: process {holder} is writing this output; wait for it or choose"
                " another folder"
            ) from error
        if _is_current(lock, path):
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode("ascii"), 0)
            return lock
        os.close(lock)


def _is_current(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def require_empty(folder: Path) -> None:
    """Refuse an output folder that holds anything.

    Raises
    ------
    OutputExistsError
        Something other than our lock is in it.
    """
    held = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK_NAME)
    if held:
        raise OutputExistsError(
            f"{folder}: the output folder is not empty (it holds {held[0]!r}); choose another or"
            " allow it with overwrite (--overwrite)"
        )


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Parameters
    ----------
    folder : Path
        An existing folder on the disk.
    needed : int
        Bytes that will be written.

    Raises
    ------
    OutputSpaceError
        Fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputSpaceError(
            f"{folder}: the output needs {format_bytes(needed)}, the disk has {format_bytes(free)}"
            " free; free some or choose another disk"
        )


class StagedFiles:
    """Small files written under temporary names, to be renamed together.

    Parameters
    ----------
    folder : Path
        Where they go; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staged: dict[str, Path] = {}
        self._published: list[str] = []
        self._new: list[Path] = []

    def add(self, name: str, content: bytes) -> None:
        """Write one file, durable but not yet under its name."""
        partial = self._folder / f".{name}.{os.getpid()}.partial"
        try:
            with open(partial, "wb") as file:
                self._staged[name] = partial
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise output_error(error, self._folder / name) from error

    def publish(self) -> None:
        """Give every file its name."""
        try:
            for name, partial in list(self._staged.items()):
                final = self._folder / name
                if not final.exists():
                    self._new.append(final)
                os.replace(partial, final)
                del self._staged[name]
                self._published.append(name)
        except OSError as error:
            raise output_error(error, self._folder) from error

    def keep(self) -> list[str]:
        """Let the published files stay, whatever comes; return all their names."""
        self._new.clear()
        return list(self._published)

    def discard(self) -> None:
        """Remove everything that was not there before and was not kept."""
        for path in (*self._staged.values(), *self._new):
            with contextlib.suppress(OSError):
                path.unlink()
        self._staged.clear()
        self._new.clear()

"""The output folder: its lock, its room, and what of ours may already lie in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from weightshare.checkpoint.output_file import is_partial_name
from weightshare.errors import OutputError, OutputExistsError, OutputLockedError, OutputSpaceError
from weightshare.merging.recovery import is_hidden_work
from weightshare.merging.sizes import format_bytes

LOCK_NAME = ".weightshare.lock"
# Which small files were published, and where the old ones are, until the weights are there too.
RECORD_NAME = ".weightshare.undo.json"
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
    try:
        made = _missing_folders(folder)
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
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]


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
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                # Some network file systems have no locks; that is no reason not to write there.
                warnings.warn(
                    f"{path.parent}: cannot be locked ({error.strerror}); do not write to it from"
                    " two processes",
                    stacklevel=2,
                )
                return lock
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
        Something other than hidden files of ours is in it.
    """
    held = sorted(entry.name for entry in folder.iterdir() if not _is_ours(entry.name))
    if held:
        raise OutputExistsError(
            f"{folder}: the output folder is not empty (it holds {held[0]!r}); choose another or"
            " allow it with overwrite (--overwrite)"
        )


def _is_ours(name: str) -> bool:
    hidden = name == RECORD_NAME or (name.startswith(".") and name.endswith(LOCK_NAME))
    return hidden or is_hidden_work(name) or is_partial_name(name) or is_backup_name(name)


def is_backup_name(name: object) -> bool:
    """Say whether a file of that name is an old one that a publication keeps."""
    if not is_plain_name(name):
        return False
    text = str(name)
    return text.endswith(".backup") and is_partial_name(text.removesuffix("backup") + "partial")


def is_plain_name(name: object) -> bool:
    """Say whether this is the name of a file in a folder, and no way out of the folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name:
        return False
    return os.path.basename(name) == name


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

"""One output file: written under a temporary name in its folder, and given its name at the end."""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import stat

from weightshare.checkpoint.codes import message
from weightshare.checkpoint.source_file import MOST_AT_ONCE, rest_of
from weightshare.errors import OutputError, OutputExistsError, OutputSpaceError

_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_RESERVATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_PARTIAL = re.compile(r"\..+\.[A-Za-z0-9_-]+\.\d+\.[0-9a-f]{8}\.partial", re.DOTALL)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES)


class OutputFile:
    """A file that is being written as ``.{name}.{host}.{pid}.{random}.partial``.

    Parameters
    ----------
    folder : str
    name : str
        Its future name, which others may see in the temporary one.
    nbytes : int
        All its space is reserved now, so that a full disk is found before the work.
    mode : int, optional
        Permission bits; what the umask leaves of 0666 when not given.
    token : str, optional
        The temporary name is `resumable_name` of it: the file outlives its process when it is
        left by `suspend`, or by a kill.
    going_on : bool
        Whether such a file is there already, and is gone on with.
    """

    def __init__(
        self,
        folder: str,
        name: str,
        nbytes: int,
        mode: int | None = None,
        *,
        token: str | None = None,
        going_on: bool = False,
    ) -> None:
        self.folder = folder
        self.nbytes = nbytes
        temporary = partial_name(name) if token is None else resumable_name(name, token)
        self.partial = os.path.join(folder, temporary)
        self._process = os.getpid()
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        self._number = -1
        # What an earlier process wrote may not be on the disk yet.
        self._unsynced = going_on
        try:
            if going_on:
                self._number = os.open(self.partial, flags)
                return
            self._number = os.open(self.partial, flags | os.O_CREAT | os.O_EXCL, 0o666)
            if mode is not None:
                os.fchmod(self._number, mode)
            self._reserve()
        except OSError as error:
            self.discard()
            raise output_error(error, os.path.join(folder, name), nbytes) from error
        except BaseException:
            self.discard()
            raise

    def _reserve(self) -> None:
        try:
            os.posix_fallocate(self._number, 0, max(1, self.nbytes))
        except OSError as error:
            if error.errno not in _NO_RESERVATION:
                raise
            free = free_bytes(self.folder)
            if free is not None and free < self.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        os.ftruncate(self._number, self.nbytes)

    @property
    def inode(self) -> int:
        """What tells the file from others in its folder, whatever its name."""
        return os.fstat(self._number).st_ino

    def write(self, offset: int, *parts: memoryview) -> None:
        """Write flat bytes one after the other from an offset on; callable from several threads.

        Raises
        ------
        OutputError
            With the reason of the system.
        """
        try:
            for first in range(0, len(parts), MOST_AT_ONCE):
                left = [part for part in parts[first : first + MOST_AT_ONCE] if len(part)]
                while left:
                    count = os.pwritev(self._number, left, offset)
                    if count <= 0:
                        raise OSError(errno.EIO, "nothing could be written")
                    offset += count
                    left = rest_of(left, count)
            self._unsynced = True
        except OSError as error:
            raise output_error(error, self.partial, self.nbytes) from error

    def sync(self) -> None:
        """Bring to the disk what was written, if anything was since the last time."""
        if not self._unsynced:
            return
        # Before, because what is written meanwhile may or may not be caught.
        self._unsynced = False
        try:
            os.fdatasync(self._number)
        except OSError as error:
            self._unsynced = True
            raise output_error(error, self.partial, self.nbytes) from error

    def suspend(self) -> None:
        """Close it and leave it under its temporary name, for another run to go on with."""
        if self._process == os.getpid():
            self._close()

    def finish(self) -> None:
        """Bring the file to the disk and close it; it keeps its temporary name."""
        try:
            os.fsync(self._number)
            self._close()
        except OSError as error:
            raise output_error(error, self.partial, self.nbytes) from error

    def rename(self, name: str) -> None:
        """Give the finished file its name, replacing what has that name."""
        target = os.path.join(self.folder, name)
        try:
            os.rename(self.partial, target)
        except OSError as error:
            raise output_error(error, target, self.nbytes) from error
        self._temporary, self.partial = self.partial, ""

    def take_back(self, name: str) -> None:
        """Give it its temporary name again, if `rename` gave it that name; best effort."""
        if self.partial:
            return
        try:
            os.rename(os.path.join(self.folder, name), self._temporary)
        except OSError:
            remove_quietly(os.path.join(self.folder, name))
            return
        self.partial = self._temporary

    def discard(self) -> None:
        """Close and remove it, unless it has its name; a forked child leaves its parent's alone."""
        if self._process != os.getpid():
            return
        try:
            self._close()
        finally:
            if self.partial:
                remove_quietly(self.partial)
                self.partial = ""

    def _close(self) -> None:
        if self._number >= 0:
            number, self._number = self._number, -1
            os.close(number)


def output_error(error: OSError, path: str, needed: int) -> OutputError:
    """Return the `OutputError` that says what `error` means for the output at `path`."""
    if error.errno in _SPACE_ERRORS:
        free = free_bytes(os.path.dirname(path) or ".")
        detail = f"{needed} bytes needed, {'?' if free is None else free} free ({error.strerror})"
        made: OutputError = OutputSpaceError(message("E402", path=path, detail=detail))
    else:
        made = OutputError(message("E403", path=path, detail=error.strerror or str(error)))
    made.errno = error.errno
    return made


def exists_error(path: str, detail: str = "") -> OutputExistsError:
    """Return the error for an output that exists already."""
    made = OutputExistsError(message("E401", path=path, detail=detail))
    made.errno = errno.EEXIST
    return made


def free_bytes(folder: str) -> int | None:
    """Return the free bytes of the file system of `folder`, None if it does not say."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def sync_folder(folder: str) -> None:
    """Bring the names in a folder to the disk, where the file system knows how to."""
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise output_error(error, folder, 0) from error


def permissions(path: str) -> int | None:
    """Return the permission bits of a plain file, None when there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return stat.S_IMODE(found.st_mode) & 0o777 if stat.S_ISREG(found.st_mode) else None


def remove_quietly(path: str) -> bool:
    """Remove a file or link; say whether it is gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())[:60] or "host"


def partial_name(name: str) -> str:
    """Return a new temporary name for a file that will have that name.

    The host and the process stand in it, so that only a dead process's files are removed.
    """
    short = os.fsdecode(os.fsencode(name)[:100])
    return f".{short}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.partial"


def resumable_name(name: str, token: str) -> str:
    """Return the temporary name of a file that outlives its process; the token tells the run."""
    return f".{os.fsdecode(os.fsencode(name)[:100])}.{token}.resumable"


def resumable_names(folder: str, name: str) -> list[str]:
    """Return the files in a folder that runs left to be gone on with as that name."""
    start = f".{os.fsdecode(os.fsencode(name)[:100])}."
    found = re.compile(re.escape(start) + r"[0-9a-f]{16}\.resumable")
    try:
        return sorted(entry for entry in os.listdir(folder) if found.fullmatch(entry))
    except OSError:
        return []


def is_partial_name(name: str) -> bool:
    """Say whether a file of that name is one of our temporary ones, of any host and process."""
    return _PARTIAL.fullmatch(name) is not None


def remove_dead_partials(folder: str) -> None:
    """Remove the temporary files that killed processes of this host left in a folder."""
    pattern = re.compile(rf"\..+\.{re.escape(_host())}\.(\d+)\.[0-9a-f]{{8}}\.partial", re.DOTALL)
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        found = pattern.fullmatch(name)
        if found and not _is_alive(int(found[1])):
            remove_quietly(os.path.join(folder, name))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True

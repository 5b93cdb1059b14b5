"""One file that is open for reading: byte ranges by `pread`, refused once the file has changed."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import stat
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from weightshare.checkpoint.codes import message, problem
from weightshare.checkpoint.header import Header, Limits, header_length, parse_header
from weightshare.errors import CheckpointChangedError

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


# The system takes no more buffers than this in one call.
MOST_AT_ONCE = 1024


class _Descriptor:
    """A file descriptor that is closed only when its last reader has left."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._readers = 0
        self._closing = False
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        return self._closing

    def borrow(self) -> int | None:
        with self._lock:
            if self._closing:
                return None
            self._readers += 1
            return self._number

    def give_back(self) -> None:
        with self._lock:
            self._readers -= 1
            self._close_if_unused()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._closing and not self._readers and self._number >= 0:
            number, self._number = self._number, -1
            os.close(number)


class SourceFile:
    """A safetensors file, open for reading from any thread; its header is checked at once.

    Never mapped into memory: a mapped file that is cut short kills the process.
    """

    def __init__(self, path: str, limits: Limits) -> None:
        self.path = path
        number = _open_plain_file(path)
        self._descriptor = _Descriptor(number)
        self._finalizer = weakref.finalize(self, self._descriptor.close)
        try:
            self._identity = _identity(os.fstat(number))
            with collector_paused():
                self.header = self._read_header(limits)
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._descriptor.closed

    def close(self) -> None:
        """Give the file back; a read that is under way in another thread ends first."""
        self._finalizer()

    @property
    def identity(self) -> tuple[int, int, str]:
        """Size, time of change in nanoseconds, and SHA-256 of the header, as it was opened."""
        return *self._identity[:2], self._header_digest

    def read_into(self, offset: int, *targets: memoryview) -> None:
        """Fill the targets, flat bytes, one after the other from byte `offset` of the file.

        Raises
        ------
        CheckpointChangedError
            The file has another size or time than when it was opened, or ended early.
        """
        with self._borrowed() as number:
            for first in range(0, len(targets), MOST_AT_ONCE):
                offset = self._fill(number, offset, targets[first : first + MOST_AT_ONCE])
            # Afterwards, because only then what was read is known to be from the file as opened.
            self._check_unchanged(number)

    def _fill(self, number: int, offset: int, targets: Sequence[memoryview]) -> int:
        left = [target for target in targets if len(target)]
        while left:
            try:
                count = os.preadv(number, left, offset)
            except OSError as error:
                raise problem("E102", path=self.path, detail=str(error.strerror)) from error
            if count == 0:
                raise self._changed("it is shorter than its header says")
            offset += count
            left = rest_of(left, count)
        return offset

    def will_need(self, offset: int, nbytes: int) -> None:
        """Ask the system to read so many bytes ahead of need; a hint, which never fails."""
        with self._borrowed() as number, contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(number, offset, nbytes, os.POSIX_FADV_WILLNEED)

    @contextmanager
    def _borrowed(self) -> Iterator[int]:
        number = self._descriptor.borrow()
        if number is None:
            raise problem("E109", path=self.path)
        try:
            yield number
        finally:
            self._descriptor.give_back()

    def _read_header(self, limits: Limits) -> Header:
        size = self._identity[0]
        first = bytearray(min(8, size))
        self.read_into(0, memoryview(first))
        # The length of a header of 640 bytes begins like a pickle; a pickle read as one is huge.
        is_length = int.from_bytes(first, "little") <= min(size, limits.max_header_bytes)
        if bytes(first).startswith(_PICKLE_STARTS) and not is_length:
            raise problem("E103", path=self.path, detail="it starts as a pickle or a zip archive")
        raw = bytearray(header_length(bytes(first), size, self.path, limits))
        self.read_into(8, memoryview(raw))
        self._header_digest = hashlib.sha256(first + raw).hexdigest()
        return parse_header(bytes(raw), size, self.path, limits)

    def _check_unchanged(self, number: int) -> None:
        if _identity(os.fstat(number)) != self._identity:
            raise self._changed("its size or its time of change differ from those at opening")

    def _changed(self, detail: str) -> CheckpointChangedError:
        text = message("E106", path=self.path, detail=detail)
        return CheckpointChangedError(text, code="E106", path=self.path)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python from looking for cycles meanwhile, where many objects are made and none freed."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def rest_of(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Return what is left of buffers once their first `count` bytes are dealt with."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev


def _open_plain_file(path: str) -> int:
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer. It does nothing to a file.
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise problem("E102", path=path, detail=str(error.strerror)) from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise problem("E102", path=path, detail="it is not a plain file")
    return number

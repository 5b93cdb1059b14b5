"""The journal of a merge: what of the output is in its temporary files already.

A hidden file beside them, which grows only. It begins with a line of JSON that tells the plan and
the inputs; fixed records of what is done follow, each with a checksum. Records that a process
wrote hold while its machine runs, even if the process is killed; after a new start of the machine
only those hold that stand before a mark of durability, written once the data were on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from weightshare.checkpoint.output_file import sync_folder
from weightshare.merging.finite import SOUND, Flaws
from weightshare.merging.ledger import Done

SCHEMA = 2
# Bytes of output, and seconds, after which what is done is made durable.
_BYTES_BETWEEN_MARKS = 512_000_000
_SECONDS_BETWEEN_MARKS = 2.0
_LARGEST_HEADER = 100_000_000
# Kind, tensor, start, count, checksum, made, first, inherited, unsound; then a CRC-32 of those.
_RECORD = struct.Struct("<BxxxIqq16sqqqq")
_CRC = struct.Struct("<I")
_SIZE = _RECORD.size + _CRC.size
_DONE, _DURABLE = 1, 2


@dataclass(frozen=True, slots=True)
class Heading:
    """What a journal says of its merge.

    Attributes
    ----------
    plan : str
        Id of the plan.
    inputs : list of list of (size, time, header hash)
        The files of each model.
    token : str
        What the temporary files are named by.
    files : dict of str to int
        Their inodes, by their future names.
    """

    plan: str
    inputs: list[list[tuple[int, int, str]]]
    token: str
    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class Journal:
    """What an interrupted merge left.

    Attributes
    ----------
    heading : Heading
        Which merge it was.
    done : list of Done
        What can be relied on.
    nbytes : int
        Length of the file up to the last record that can be relied on.
    """

    heading: Heading
    done: list[Done]
    nbytes: int


def read_journal(path: Path, *, records: bool = True) -> Journal | None:
    """Read a journal; None when there is none, or nothing in it that can be relied on.

    Parameters
    ----------
    path : Path
        The journal's file.
    records : bool
        Whether more than the heading is read.
    """
    try:
        with open(path, "rb", opener=_no_link) as file:
            first = file.readline(_LARGEST_HEADER)
            rest = file.read() if records else b""
        crc, _, text = first.rstrip(b"\n").partition(b" ")
        if not first.endswith(b"\n") or int(crc, 16) != zlib.crc32(text):
            return None
        found = json.loads(text)
        if found["schema"] != SCHEMA:
            return None
        inputs = [[(int(s), int(t), str(h)) for s, t, h in files] for files in found["inputs"]]
        inodes = {str(name): int(inode) for name, inode in found["files"].items()}
        heading = Heading(str(found["plan"]), inputs, str(found["token"]), inodes)
        same_start = found["boot"] == _boot_id()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    done, kept = _records(rest, same_start)
    return Journal(heading, done, len(first) + kept)


def _records(data: bytes, same_start: bool) -> tuple[list[Done], int]:
    """Return the sound records, and the bytes that they take."""
    done: list[Done] = []
    durable, kept, place = 0, 0, 0
    while place + _SIZE <= len(data):
        body = data[place : place + _RECORD.size]
        if _CRC.unpack_from(data, place + _RECORD.size)[0] != zlib.crc32(body):
            break
        kind, tensor, start, count, checksum, *flaws = _RECORD.unpack(body)
        place += _SIZE
        if kind == _DURABLE:
            durable, kept = count, place
        else:
            found = Flaws(*flaws) if any(flaws) else SOUND
            done.append(Done(tensor, start, count, int.from_bytes(checksum, "little"), found))
    return (done, place) if same_start else (done[:durable], kept)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _boot_id() -> str:
    """Return what changes when the machine starts anew; something new each time if unknown."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"unknown {os.getpid()} {time.time_ns()}"


class JournalWriter:
    """Appends to a journal, and makes it durable now and then in a thread of its own.

    Parameters
    ----------
    path : Path
        The journal's file.
    heading : Heading
        Which merge it is.
    sync : callable
        Brings the data to the disk that were written so far.
    going_on : Journal or None
        The journal that is gone on with; it is rewritten, so that it is of this machine's start.

    Attributes
    ----------
    is_broken : bool
        Whether it could not be written, so that nothing can be gone on with.
    """

    def __init__(
        self, path: Path, heading: Heading, sync: Callable[[], object], going_on: Journal | None
    ) -> None:
        self._path = path
        self._sync = sync
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._ended = False
        self._count = 0
        self._unmarked = 0
        self._thread: threading.Thread | None = None
        self._is_named = False
        self._error: OSError | None = None
        self.is_broken = False
        plain = {
            "schema": SCHEMA,
            "boot": _boot_id(),
            "plan": heading.plan,
            "inputs": heading.inputs,
            "token": heading.token,
            "files": heading.files,
        }
        text = json.dumps(plain, separators=(",", ":")).encode()
        self._number = -1
        self._open(b"%08x %s\n" % (zlib.crc32(text), text), going_on)

    def _open(self, heading: bytes, going_on: Journal | None) -> None:
        made = f"{self._path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._number = os.open(made, flags, 0o666)
            self._append(heading)
            if going_on is not None:
                self.enter(going_on.done, 0)
                self.mark()
            os.rename(made, self._path)
        except OSError:
            # Without a journal a merge cannot be gone on with, which is no reason not to do it.
            self.is_broken = True

    def enter(self, done: Sequence[Done], nbytes: int) -> None:
        """Append what is done, of so many bytes of output; callable from several threads.

        Raises
        ------
        OutputError
            Data that were written could not be brought to the disk.
        """
        data = b"".join(map(_packed, done))
        with self._lock:
            if self._error is not None:
                raise self._error
            self._append(data)
            self._count += len(done)
            self._unmarked += nbytes
            if self._unmarked >= _BYTES_BETWEEN_MARKS:
                self._wake.notify()

    def start(self) -> None:
        """Begin to make durable, in a thread, what is entered."""
        self._thread = threading.Thread(target=self._keep_marking, name="journal", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the file; the journal stays."""
        with self._lock:
            self._ended = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._close()

    def mark(self) -> None:
        """Make durable what was entered so far."""
        with self._lock:
            count, self._unmarked = self._count, 0
        self._sync()
        with self._lock:
            self._append(_packed_record(_DURABLE, 0, 0, count, 0, SOUND))
        if self.is_broken:
            return
        os.fsync(self._number)
        if not self._is_named:
            sync_folder(str(self._path.parent))
            self._is_named = True

    def _keep_marking(self) -> None:
        began = time.monotonic()
        while True:
            with self._lock:
                while not self._ended and self._unmarked < _BYTES_BETWEEN_MARKS:
                    left = began + _SECONDS_BETWEEN_MARKS - time.monotonic()
                    if left <= 0 and self._unmarked:
                        break
                    self._wake.wait(max(left, 0.1))
                if self._ended:
                    return
            try:
                self.mark()
            except OSError as error:
                self._error = error
                return
            began = time.monotonic()

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view and not self.is_broken:
                view = view[os.write(self._number, view) :]
        except OSError:
            # What follows a torn record is not read, so nothing more needs to be written.
            self.is_broken = True

    def _close(self) -> None:
        if self._number >= 0:
            number, self._number = self._number, -1
            os.close(number)


def _packed(done: Done) -> bytes:
    return _packed_record(_DONE, done.tensor, done.start, done.count, done.checksum, done.flaws)


def _packed_record(
    kind: int, tensor: int, start: int, count: int, checksum: int, flaws: Flaws
) -> bytes:
    body = _RECORD.pack(
        *(kind, tensor, start, count, checksum.to_bytes(16, "little")),
        *(astuple(flaws) if flaws.found else (0, 0, 0, 0)),
    )
    return body + _CRC.pack(zlib.crc32(body))

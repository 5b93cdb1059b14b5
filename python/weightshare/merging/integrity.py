"""Checking a checkpoint: headers, index, checksums against the provenance, NaN and infinity."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import numpy as np

from weightshare._core.threads import resolve_threads
from weightshare.checkpoint import Checkpoint, open_checkpoint
from weightshare.checkpoint.locate import path_text
from weightshare.errors import CheckpointError, CheckpointNotFoundError
from weightshare.merging.elements import DTYPE_OF_CODE
from weightshare.merging.files import is_plain_name
from weightshare.merging.finite import NanPolicy, check_policy
from weightshare.merging.leftovers import PROVENANCE_NAME
from weightshare.merging.progress import progress_callback
from weightshare.merging.sizes import format_bytes

_PIECE_BYTES = 4_000_000
_LARGEST_RECORD = 1_000_000_000
_LINES_SHOWN = 12
_MODULUS = 1 << 128

# A tensor's name, the first byte in it, and the bytes.
_Part = tuple[str, int, int]


@dataclass(frozen=True, repr=False)
class VerifyReport:
    """What was found in a checkpoint.

    Attributes
    ----------
    path : str
        The folder or file.
    problems : tuple of str
        What is damaged, missing or not as its provenance says; empty when all is well.
    warnings : tuple of str
        What could not be checked, and NaN where it is no problem.
    tensors : int
        How many tensors were read.
    compared : int
        How many of them, and of the small files, have a checksum in the provenance.
    nbytes : int
        Bytes of weights that were read.
    nonfinite : mapping of str to int
        How many elements are NaN or infinite, of each tensor that has any.

    Examples
    --------
    >>> VerifyReport("out", (), (), 2, 5, 24)
    VerifyReport
      path      out
      read      24 B in 2 tensors
      compared  5 checksums
      verdict   no problem
    """

    path: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    tensors: int
    compared: int
    nbytes: int
    nonfinite: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the report as plain lists, mappings, numbers and text."""
        plain = asdict(self) | {"problems": list(self.problems), "warnings": list(self.warnings)}
        return {"schema": 1, "sound": not self.problems, **plain}

    def summary(self) -> list[tuple[str, str]]:
        """Return the main facts as pairs of a title and a sentence."""
        count = len(self.problems)
        words = {0: "no problem", 1: "1 problem"}.get(count, f"{count} problems")
        return [
            ("path", self.path),
            ("read", f"{format_bytes(self.nbytes)} in {self.tensors} tensors"),
            ("compared", f"{self.compared} checksums"),
            ("verdict", words),
        ]

    def __repr__(self) -> str:
        lines = [f"  {title:<10}{fact}" for title, fact in self.summary()]
        told = [f"  problem: {text}" for text in self.problems]
        told += [f"  warning: {text}" for text in self.warnings]
        more = len(told) - _LINES_SHOWN
        rest = [f"  and {more} more"] if more > 0 else []
        return "\n".join(["VerifyReport", *lines, *told[:_LINES_SHOWN], *rest])

    def _repr_html_(self) -> str:
        told = [("problem", text) for text in self.problems]
        told += [("warning", text) for text in self.warnings]
        rows = "".join(
            f"<tr><th>{escape(title)}</th><td>{escape(fact[:200])}</td></tr>"
            for title, fact in [*self.summary(), *told[: 2 * _LINES_SHOWN]]
        )
        return f"<table>{rows}</table>"


def verify_checkpoint(
    path: str | os.PathLike[str],
    *,
    nan: str = "warn",
    threads: int | None = None,
    progress: Callable[[int, int], object] | bool | None = None,
) -> VerifyReport:
    """Check a checkpoint whole: every header, the index, every byte that has a checksum.

    Parameters
    ----------
    path : path
        A folder, or a single file. Checksums are those of the ``provenance.json`` that a merge
        wrote; without one the headers, the index and NaN are checked.
    nan : {"warn", "error", "ignore"}
        Whether NaN and infinity in the weights are a warning, a problem, or left out. Those that
        the provenance tells of are a warning at most.
    threads : int, optional
        None means ``OMP_NUM_THREADS``, else the cores of this process.
    progress : callable or True, optional
        ``progress(done, total)`` in bytes of weights; True is a bar on stderr.

    Returns
    -------
    VerifyReport
        ``.problems`` is empty when nothing is wrong.

    Raises
    ------
    CheckpointNotFoundError
        There is nothing, or a folder without weights.
    ArgumentError
        `nan` or `threads` cannot be used.

    Examples
    --------
    >>> import tempfile
    >>> import weightshare as ws
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ws.save_checkpoint(folder, {"w": np.array([1.0, np.inf])})
    ...     report = verify_checkpoint(folder)
    >>> report.problems, report.nonfinite
    ((), {'w': 1})
    """
    policy = check_policy(nan)
    workers = resolve_threads(threads)
    text = path_text(path)
    try:
        checkpoint = open_checkpoint(text)
    except CheckpointNotFoundError:
        raise
    except CheckpointError as error:
        return VerifyReport(text, (str(error),), (), 0, 0, 0)
    with checkpoint, progress_callback(progress, "checked") as callback:
        check = _Check(checkpoint, text, policy)
        check.read_weights(workers, callback)
        check.compare()
        return check.report()


class _Check:
    """One run of `verify_checkpoint`."""

    def __init__(self, checkpoint: Checkpoint, path: str, policy: NanPolicy) -> None:
        self._checkpoint = checkpoint
        self._path = path
        self._policy = policy
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._sums: Counter[str] = Counter()
        self._nonfinite: Counter[str] = Counter()
        self._unread: set[str] = set()
        self._compared = 0
        self._record = self._read_record()

    def _read_record(self) -> dict[str, Any] | None:
        if not os.path.isdir(self._path):
            self._warnings.append("a single file has no provenance: checksums are not known")
            return None
        place = os.path.join(self._path, PROVENANCE_NAME)
        try:
            if os.path.getsize(place) > _LARGEST_RECORD:
                raise ValueError("it is too large")
            with open(place, "rb") as file:
                record = json.load(file)
            tensors, sums = record["tensors"], record.get("sha256", {})
            if not isinstance(tensors, dict) or not isinstance(sums, dict):
                raise TypeError("it holds no checksums")
            if not all(isinstance(row, dict) and "checksum" in row for row in tensors.values()):
                self._warnings.append(f"{PROVENANCE_NAME}: of a version that kept no checksums")
                return None
            return {"tensors": tensors, "sha256": sums}
        except FileNotFoundError:
            self._warnings.append(f"there is no {PROVENANCE_NAME}: checksums are not known")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._problems.append(f"{PROVENANCE_NAME}: cannot be read ({error})")
        return None

    def read_weights(self, workers: int, callback: Callable[[int, int], object] | None) -> None:
        """Read every tensor once, in pieces."""
        total, done = self._checkpoint.nbytes, 0
        with ThreadPoolExecutor(workers) as pool:
            for nbytes, sums, bad, errors in pool.map(self._read_parts, self._batches()):
                self._sums.update(sums)
                self._nonfinite.update(bad)
                for name, message in errors.items():
                    if name not in self._unread:
                        self._problems.append(message)
                        self._unread.add(name)
                done += nbytes
                if callback is not None:
                    callback(done, total)

    def _batches(self) -> Iterator[list[_Part]]:
        batch: list[_Part] = []
        held = 0
        for name in self._checkpoint:
            nbytes = self._checkpoint.info(name).nbytes
            for start in range(0, nbytes, _PIECE_BYTES):
                count = min(_PIECE_BYTES, nbytes - start)
                if batch and held + count > _PIECE_BYTES:
                    yield batch
                    batch, held = [], 0
                batch.append((name, start, count))
                held += count
        if batch:
            yield batch

    def _read_parts(
        self, parts: list[_Part]
    ) -> tuple[int, dict[str, int], dict[str, int], dict[str, str]]:
        # Imported when used, so that `weightshare` itself starts without the core.
        from weightshare._core import integrity as _integrity

        sums: Counter[str] = Counter()
        bad: Counter[str] = Counter()
        errors: dict[str, str] = {}
        for name, start, count in parts:
            raw = np.empty(count, dtype=np.uint8)
            try:
                self._checkpoint.read_into(name, start, raw)
            except CheckpointError as error:
                errors[name] = str(error)
                continue
            low, high = _integrity.digest(raw, start)
            sums[name] += low | high << 64
            dtype = DTYPE_OF_CODE.get(self._checkpoint.info(name).dtype)
            if dtype is not None:
                found = sum(_integrity.count_nonfinite(raw.view(dtype)))
                if found:
                    bad[name] += found
        return sum(count for _, _, count in parts), sums, bad, errors

    def compare(self) -> None:
        """Compare what was read with the provenance."""
        known: dict[str, Any] = {} if self._record is None else self._record["tensors"]
        if self._record is not None:
            self._compare_names(known)
            self._compare_small_files(self._record["sha256"])
        for name, row in known.items():
            if name in self._checkpoint and name not in self._unread:
                self._compare_tensor(name, row)
        if self._policy == "ignore":
            return
        for name, count in self._nonfinite.items():
            text = f"{name}: {count} elements are NaN or infinite"
            told = bool(known.get(name, {}).get("nonfinite"))
            is_problem = self._policy == "error" and not told
            (self._problems if is_problem else self._warnings).append(text)

    def _compare_names(self, known: Mapping[str, Any]) -> None:
        for name in known:
            if name not in self._checkpoint:
                self._problems.append(f"{name}: is missing, {PROVENANCE_NAME} lists it")
        for name in self._checkpoint:
            if name not in known:
                self._problems.append(f"{name}: is not in {PROVENANCE_NAME}")

    def _compare_tensor(self, name: str, row: Mapping[str, Any]) -> None:
        info = self._checkpoint.info(name)
        found = (info.dtype, list(info.shape))
        expected = (row.get("dtype"), row.get("shape"))
        if found != expected:
            self._problems.append(f"{name}: is {found[0]} {found[1]}, was written as {expected}")
            return
        self._compared += 1
        if f"{self._sums[name] % _MODULUS:032x}" != row["checksum"]:
            self._problems.append(
                f"{name}: its bytes are not those that were written (in"
                f" {os.path.basename(info.file)}, {info.nbytes} bytes from {info.offset} on)"
            )

    def _compare_small_files(self, sums: Mapping[str, Any]) -> None:
        for name, expected in sums.items():
            if not is_plain_name(name):
                continue
            digest = hashlib.sha256()
            try:
                with open(os.path.join(self._path, name), "rb") as file:
                    while piece := file.read(1 << 20):
                        digest.update(piece)
            except OSError as error:
                self._problems.append(f"{name}: cannot be read ({error.strerror})")
                continue
            self._compared += 1
            if digest.hexdigest() != expected:
                self._warnings.append(f"{name}: was changed after it was written")

    def report(self) -> VerifyReport:
        """Return what was found."""
        return VerifyReport(
            self._path,
            tuple(self._problems),
            tuple(self._warnings),
            len(self._checkpoint),
            self._compared,
            self._checkpoint.nbytes,
            dict(self._nonfinite),
        )

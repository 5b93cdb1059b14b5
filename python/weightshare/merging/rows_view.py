"""A table whose rows come from other places: own rows in another order, others' rows, means."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from weightshare.merging.elements import DTYPE_OF_CODE, Array
from weightshare.merging.plan import WIDTH_OF_CODE, Source
from weightshare.merging.views import OpenView

if TYPE_CHECKING:
    from weightshare.merging.pipeline import Reader

Ints = npt.NDArray[np.int32]

# Values of `RowsView.donor` for rows that no one table gives.
ZERO, MEAN = -1, -2
# Rows whose sum is taken apart, so that the mean of a table does not depend on how it is read.
_ROWS_SUMMED = 32
# Elements that are converted at a time.
_PIECE = 1 << 16


@dataclass(frozen=True, eq=False, slots=True)
class RowsView:
    """A table made row by row from those of one or several models.

    Row r is row ``place[r]`` of table ``donor[r]``; or zeros; or the mean over some rows, added
    in their order in float64. The padding that follows is the mean of all rows before it.

    Attributes
    ----------
    tables : tuple of Source
        What rows are taken from, the model's own table first; they may have views.
    width : int
        Elements of one row.
    dtype : str
        Code of the elements that are made.
    donor : ndarray of int32
        For each row the table; `ZERO`; or `MEAN`.
    place : ndarray of int32
        For each row the row in that table; of a mean, its number.
    starts : ndarray of int32
        Mean number m is over the entries ``starts[m]`` to ``starts[m + 1] - 1`` of the next two.
    mean_donor, mean_place : ndarray of int32
        Tables and rows of the means.
    padding : int
        Rows after the others.
    """

    tables: tuple[Source, ...]
    width: int
    dtype: str
    donor: Ints
    place: Ints
    starts: Ints
    mean_donor: Ints
    mean_place: Ints
    padding: int = 0

    @property
    def rows(self) -> int:
        """Rows, padding included."""
        return len(self.donor) + self.padding

    @property
    def reads(self) -> tuple[Source, ...]:
        """The tensors that it reads, each without a view of its own."""
        found: dict[Source, None] = {}
        for table in self.tables:
            found.update(dict.fromkeys((table,) if table.view is None else table.view.reads))
        return tuple(found)

    @property
    def held_bytes(self) -> int:
        """Bytes that an open one keeps in memory."""
        inner = sum(table.view.held_bytes for table in self.tables if table.view is not None)
        summed = (_ROWS_SUMMED + 2) * self.width * 8 if self.padding else 0
        return inner + summed + 2 * 8 * _PIECE

    def to_json(self) -> dict[str, object]:
        """Return what `weightshare plan --json` and the provenance say of it."""
        return {
            "kind": "rows",
            "rows": self.rows,
            "own": int((self.donor == 0).sum()),
            "other": int((self.donor > 0).sum()),
            "zero": int((self.donor == ZERO).sum()),
            "mean": int((self.donor == MEAN).sum()),
            "padding": self.padding,
            "tables": [[table.model, table.name] for table in self.tables],
            "digest": self._digest(),
        }

    def open(self, inputs: Sequence[Reader]) -> OpenRows:
        """Open it over the plan's models."""
        return OpenRows(self, inputs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RowsView):
            return False
        mine = (self.tables, self.width, self.dtype, self.padding)
        theirs = (other.tables, other.width, other.dtype, other.padding)
        return mine == theirs and self._digest() == other._digest()

    def __hash__(self) -> int:
        return hash((self.tables, self.width, self.dtype, self.padding))

    def _digest(self) -> str:
        told = hashlib.sha256()
        for part in (self.donor, self.place, self.starts, self.mean_donor, self.mean_place):
            told.update(len(part).to_bytes(8, "little"))
            told.update(np.ascontiguousarray(part, dtype="<i4").tobytes())
        return told.hexdigest()[:32]


class OpenRows:
    """An open `RowsView`; several threads may read from it at once.

    Parameters
    ----------
    view : RowsView
        What to make.
    inputs : sequence of Reader
        One for each of the plan's models.
    """

    def __init__(self, view: RowsView, inputs: Sequence[Reader]) -> None:
        self._view = view
        self._dtype = _dtype(view.dtype)
        self._tables = [_OpenTable(table, inputs) for table in view.tables]
        self._lock = threading.Lock()
        self._mean: Array | None = None

    def read_into(self, start: int, count: int, buffer: Any) -> None:
        """Fill the buffer with so many elements from that flat index of the table on."""
        out = np.asarray(buffer).reshape(-1).view(np.uint8).view(self._dtype)
        # A float64 that is too large for float32 becomes infinite, as it does everywhere here.
        with np.errstate(over="ignore", invalid="ignore"):
            self._fill(start, count, out)

    def _fill(self, start: int, count: int, out: Array) -> None:
        width = self._view.width
        real = len(self._view.donor) * width
        inside = max(0, min(count, real - start))
        if inside:
            self._rows_into(start, out[:inside])
        place = inside
        while place < count:
            first = (start + place) % width
            most = min(width - first, count - place)
            out[place : place + most] = self._mean_row()[first : first + most]
            place += most

    def _rows_into(self, start: int, out: Array) -> None:
        view, width = self._view, self._view.width
        stop = start + len(out)
        first, last = start // width, -(-stop // width)
        donors, places = view.donor[first:last], view.place[first:last]
        edges = _edges(donors, places)
        whose, where = donors[edges[:-1]].tolist(), places[edges[:-1]].tolist()
        marks = [row * width - start + first * width for row in edges.tolist()]
        for run, (donor, place) in enumerate(zip(whose, where, strict=True)):
            # The first and the last row may be there in part.
            skipped = max(0, -marks[run])
            part = out[marks[run] + skipped : min(len(out), marks[run + 1])]
            if donor >= 0:
                self._tables[donor].read(place * width + skipped, part)
            elif donor == ZERO:
                part[...] = 0
            else:
                self._mean_into(place, skipped, part)

    def _mean_into(self, number: int, skipped: int, out: Array) -> None:
        view = self._view
        begin, end = int(view.starts[number]), int(view.starts[number + 1])
        read = np.empty(len(out), dtype=np.float64)
        total = np.zeros(len(out), dtype=np.float64)
        for entry in range(begin, end):
            place = int(view.mean_place[entry]) * view.width + skipped
            self._tables[int(view.mean_donor[entry])].read(place, read)
            total += read
        total /= end - begin
        out[...] = total

    def _mean_row(self) -> Array:
        """Return the mean of all rows but the padding; it is taken once."""
        with self._lock:
            if self._mean is None:
                self._mean = self._mean_of_all()
            return self._mean

    def _mean_of_all(self) -> Array:
        width, rows = self._view.width, len(self._view.donor)
        total = np.zeros(width, dtype=np.float64)
        read = np.empty(_ROWS_SUMMED * width, dtype=self._dtype)
        for first in range(0, rows, _ROWS_SUMMED):
            count = min(_ROWS_SUMMED, rows - first)
            self._rows_into(first * width, read[: count * width])
            summed = read[: count * width].astype(np.float64).reshape(count, width)
            # Added pairwise by halves: the same order whatever NumPy does inside a reduction.
            while count > 1:
                half = count // 2
                summed[:half] += summed[count - half : count]
                count -= half
            total += summed[0]
        total /= max(1, rows)
        return total.astype(self._dtype)


class _OpenTable:
    """A table that rows are taken from, read and converted."""

    def __init__(self, table: Source, inputs: Sequence[Reader]) -> None:
        self._name = table.name
        self._dtype = _dtype(table.dtype)
        self._input = inputs[table.model]
        self._view: OpenView | None = None if table.view is None else table.view.open(inputs)

    def read(self, start: int, out: Array) -> None:
        """Fill an array with the elements from that flat index on, in the array's own dtype."""
        if out.dtype == self._dtype:
            self._fetch(start, out)
            return
        scratch = np.empty(min(_PIECE, len(out)), dtype=self._dtype)
        for begin in range(0, len(out), _PIECE):
            part = out[begin : begin + _PIECE]
            read = scratch[: len(part)]
            self._fetch(start + begin, read)
            part[...] = read

    def _fetch(self, start: int, out: Array) -> None:
        if self._view is None:
            raw = out.view(np.uint8)
            self._input.read_into(self._name, start * self._dtype.itemsize, raw)
        else:
            self._view.read_into(start, len(out), out.view(np.uint8))


def _edges(donor: Ints, place: Ints) -> npt.NDArray[np.intp]:
    """Return where each run of rows that one reading gives begins, and where the last one ends."""
    joined = donor[1:] == donor[:-1]
    joined &= ((donor[1:] >= 0) & (place[1:] == place[:-1] + 1)) | (donor[1:] == ZERO)
    return np.concatenate([[0], np.flatnonzero(~joined) + 1, [len(donor)]])


def _dtype(code: str) -> np.dtype[Any]:
    known = DTYPE_OF_CODE.get(code)
    return np.dtype(f"u{WIDTH_OF_CODE[code]}") if known is None else known

"""A table whose rows come from other places: own rows in another order, others' rows, means."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from weightshare.merging.elements import DTYPE_OF_CODE, Array
from weightshare.merging.plan import WIDTH_OF_CODE, Source
from weightshare.merging.spans import row_spans
from weightshare.merging.views import OpenView

if TYPE_CHECKING:
    from weightshare.merging.pipeline import Reader

Ints = npt.NDArray[np.int32]
Places = npt.NDArray[np.intp]

# Values of `RowsView.donor` for rows that no one table gives.
ZERO, MEAN = -1, -2
# Rows whose sum is taken apart, so that the mean of a table does not depend on how it is read.
_ROWS_SUMMED = 32
# Elements that are converted at a time, and elements of means that are summed at a time.
_PIECE, _MEANT = 1 << 16, 1 << 17
# Rows that are sorted at a time, so that the places of a long, narrow table stay small.
_MOST_ROWS = 1 << 16
# Rows no further apart than this in a file are read together: what lies between them costs less
# than another reading does. And the bytes that are read together at most.
_NEAR_BYTES, _SPAN_BYTES = 1 << 15, 1 << 19
# The same of tables that are made while they are read, where a reading costs far more, in rows.
_NEAR_MADE = 16


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
        summed = (_summed_at_once(self.width) + _ROWS_SUMMED + 2) * self.width * 8
        meant = 2 * 8 * max(_MEANT, self.width) if len(self.mean_donor) else 0
        return inner + (summed if self.padding else 0) + meant + _SPAN_BYTES + 8 * _PIECE

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
        width = self._view.width
        place = 0
        for span in row_spans(start, len(out), width, _MOST_ROWS):
            part = out[place : place + span.size]
            if span.size < width:
                self._part_of_row(span.top, span.left, part)
            else:
                self._whole_rows(span.top, part.reshape(-1, width))
            place += span.size

    def _part_of_row(self, row: int, left: int, out: Array) -> None:
        donor, place = int(self._view.donor[row]), int(self._view.place[row])
        if donor >= 0:
            self._tables[donor].read(place * self._view.width + left, out)
        else:
            whole = np.empty((1, self._view.width), dtype=self._dtype)
            self._whole_rows(row, whole)
            out[...] = whole[0, left : left + len(out)]

    def _whole_rows(self, top: int, out: Array) -> None:
        donors = self._view.donor[top : top + len(out)]
        places = self._view.place[top : top + len(out)]
        for donor, rows in _by_value(donors):
            if donor == ZERO:
                out[rows] = 0
            elif donor == MEAN:
                most = max(1, _MEANT // self._view.width)
                for first in range(0, len(rows), most):
                    some = rows[first : first + most]
                    out[some] = self._means(places[some])
            else:
                self._tables[donor].gather(places[rows], rows, out)

    def _means(self, numbers: Ints) -> Array:
        """Return means, in float64: entry after entry is added to all of them."""
        view = self._view
        begins, counts = view.starts[numbers], np.diff(view.starts)[numbers]
        total = np.zeros((len(numbers), view.width), dtype=np.float64)
        read = np.empty_like(total)
        for entry in range(int(counts.max())):
            longer = np.flatnonzero(counts > entry)
            found = begins[longer] + entry
            places = view.mean_place[found]
            for donor, rows in _by_value(view.mean_donor[found]):
                self._tables[donor].gather(places[rows], rows, read)
            total[longer] += read[: len(longer)]
        total /= counts[:, np.newaxis]
        return total

    def _mean_row(self) -> Array:
        """Return the mean of all rows but the padding; it is taken once."""
        with self._lock:
            if self._mean is None:
                self._mean = self._mean_of_all()
            return self._mean

    def _mean_of_all(self) -> Array:
        width, rows = self._view.width, len(self._view.donor)
        total = np.zeros(width, dtype=np.float64)
        most = _summed_at_once(width)
        read = np.empty((min(most, rows), width), dtype=self._dtype)
        for first in range(0, rows, most):
            block = read[: rows - first]
            self._rows_into(first * width, block.reshape(-1))
            for begin in range(0, len(block), _ROWS_SUMMED):
                total += _halved(block[begin : begin + _ROWS_SUMMED].astype(np.float64))
        total /= max(1, rows)
        return total.astype(self._dtype)


def _summed_at_once(width: int) -> int:
    """Return how many rows are read for the mean of all, a multiple of those that are summed."""
    return max(1, _MEANT // max(1, width * _ROWS_SUMMED)) * _ROWS_SUMMED


def _halved(rows: Array) -> Array:
    """Return the sum of rows, which are overwritten.

    They are added pairwise by halves: the same order whatever NumPy does inside a reduction.
    """
    count = len(rows)
    while count > 1:
        half = count // 2
        rows[:half] += rows[count - half : count]
        count -= half
    total: Array = rows[0]
    return total


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

    def gather(self, places: Ints, rows: Places, out: Array) -> None:
        """Fill these rows of a matrix with the table's rows of those places.

        Rows that follow each other in both are read straight to where they go; of the others those
        that lie near each other in the file are read together.
        """
        width = out.shape[1]
        row_bytes = max(1, width * self._dtype.itemsize)
        edges = _edges(places, rows)
        counts = np.diff(edges)
        long = counts * row_bytes >= _NEAR_BYTES
        for run in np.flatnonzero(long).tolist():
            first, count = edges[run], counts[run]
            into = out[rows[first] : rows[first] + count]
            self.read(int(places[first]) * width, into.reshape(-1))
        if long.all():
            return
        short = np.flatnonzero(~np.repeat(long, counts))
        short = short[np.argsort(places[short], kind="stable")]
        places, rows = places[short], rows[short]
        near, most = max(1, _NEAR_BYTES // row_bytes), max(1, _SPAN_BYTES // row_bytes)
        if self._view is not None:
            near = max(near, min(_NEAR_MADE, most))
        for begin, end in _spans(places, near, most):
            self._scatter(places[begin:end], rows[begin:end], out)

    def _scatter(self, places: Ints, rows: Places, out: Array) -> None:
        """Read the stretch of these ascending places once, and put its rows where they go."""
        width, first = out.shape[1], int(places[0])
        if len(places) == 1:
            self.read(first * width, out[rows[0]])
            return
        read = np.empty((int(places[-1]) - first + 1, width), dtype=self._dtype)
        self._fetch(first * width, read.reshape(-1))
        if out.dtype == self._dtype:
            # As whole numbers, so that what is no number keeps its bits.
            plain = np.dtype(f"u{self._dtype.itemsize}")
            read, out = read.view(plain), out.view(plain)
        most = max(1, _PIECE // width)
        for begin in range(0, len(rows), most):
            out[rows[begin : begin + most]] = read[places[begin : begin + most] - first]

    def _fetch(self, start: int, out: Array) -> None:
        if self._view is None:
            raw = out.view(np.uint8)
            self._input.read_into(self._name, start * self._dtype.itemsize, raw)
        else:
            self._view.read_into(start, len(out), out.view(np.uint8))


def _by_value(donors: Ints) -> Iterator[tuple[int, Places]]:
    """Yield every value that occurs, and where."""
    for donor in np.unique(donors).tolist():
        yield donor, np.flatnonzero(donors == donor)


def _edges(places: Ints, rows: Places) -> Places:
    """Return where each run of rows that one reading gives begins, and where the last one ends."""
    joined = (np.diff(places) == 1) & (np.diff(rows) == 1)
    return np.concatenate([[0], np.flatnonzero(~joined) + 1, [len(rows)]])


def _spans(places: Ints, near: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut ascending places where the next is not near, and where a stretch would be too long."""
    ends = np.flatnonzero(np.diff(places) > near) + 1
    begin = 0
    for end in (*ends.tolist(), len(places)):
        while begin < end:
            far = int(places[begin]) + most
            cut = end
            if places[end - 1] >= far:
                cut = begin + int(np.searchsorted(places[begin:end], far))
            yield begin, cut
            begin = cut


def _dtype(code: str) -> np.dtype[Any]:
    known = DTYPE_OF_CODE.get(code)
    return np.dtype(f"u{WIDTH_OF_CODE[code]}") if known is None else known

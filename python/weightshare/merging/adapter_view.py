"""A weight with a low-rank adapter, added while it is read: W + scaling * B A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weightshare.merging.elements import DTYPE_OF_CODE, Array
from weightshare.merging.spans import Span, row_spans
from weightshare.merging.views import OpenView

if TYPE_CHECKING:
    from weightshare.merging.pipeline import Reader
    from weightshare.merging.plan import Source

# Rows that are mixed in one call: their sums and the adapter's rows stay in the cache.
_MOST_ROWS = 64
_MOST_ELEMENTS = 1 << 19
# Elements of the other factor that are read at a time, for many such calls.
_MOST_FACTORS = 1 << 16


@dataclass(frozen=True, slots=True)
class AdapterView:
    """A matrix W to which ``scaling * B A``, or its transpose, is added while it is read.

    Attributes
    ----------
    weight : Source
        W; it may be made by a view of its own.
    down, up : Source
        A of shape (rank, n) and B of shape (m, rank).
    shape : tuple of int
        Of W: (m, n), or (n, m) when `transposed`.
    rank : int
        Rows of A.
    scaling : float
        Factor of the product, such as ``lora_alpha / r``.
    transposed : bool
        Whether W is stored as (inputs, outputs), as of embeddings, so that (B A)ᵀ is added.
    dtype : {"F32", "F64"}
        What is made.
    """

    weight: Source
    down: Source
    up: Source
    shape: tuple[int, int]
    rank: int
    scaling: float
    transposed: bool = False
    dtype: str = "F32"

    @property
    def reads(self) -> tuple[Source, ...]:
        """W, or what it is made from, then A and B."""
        own = (self.weight,) if self.weight.view is None else self.weight.view.reads
        return (*own, self.down, self.up)

    @property
    def held_bytes(self) -> int:
        """Bytes of the factor that is held whole, the one whose rows are as long as W's, and of
        the part of the other that is read at a time.
        """
        under = 0 if self.weight.view is None else self.weight.view.held_bytes
        part = 3 * 8 * min(max(_MOST_FACTORS, self.rank), self.rank * self.shape[0])
        return self.rank * self.shape[1] * DTYPE_OF_CODE[self.dtype].itemsize + part + under

    def to_json(self) -> dict[str, object]:
        """Return the adapter's tensors, its rank and its scaling."""
        under = {} if self.weight.view is None else {"weight": self.weight.view.to_json()}
        return {
            "kind": "adapter",
            "adapter": self.down.model,
            "down": self.down.name,
            "up": self.up.name,
            "rank": self.rank,
            "scaling": self.scaling,
            "transposed": self.transposed,
            **under,
        }

    def open(self, inputs: Sequence[Reader]) -> OpenView:
        """Open it over the plan's models, for one tensor of one run."""
        return _OpenAdapter(self, inputs)


@dataclass(frozen=True, slots=True)
class ReplacedView:
    """A weight that an adapter holds whole: the adapter's own is read instead of the model's.

    Attributes
    ----------
    weight : Source
        The adapter's.
    """

    weight: Source

    @property
    def reads(self) -> tuple[Source, ...]:
        """The adapter's weight."""
        return (self.weight,)

    @property
    def held_bytes(self) -> int:
        """Nothing is held."""
        return 0

    def to_json(self) -> dict[str, object]:
        """Return the adapter's place in the plan and its name for the weight."""
        return {"kind": "replaced", "adapter": self.weight.model, "weight": self.weight.name}

    def open(self, inputs: Sequence[Reader]) -> OpenView:
        """Open it over the plan's models, for one tensor of one run."""
        return _OpenReplaced(self.weight, inputs)


class _OpenReplaced:
    """A tensor of another model, as it stands there."""

    def __init__(self, weight: Source, inputs: Sequence[Reader]) -> None:
        self._weight = weight
        self._reader = inputs[weight.model]

    def read_into(self, start: int, count: int, buffer: Any) -> None:
        """Fill the buffer with so many elements from that flat index of the tensor on."""
        width = DTYPE_OF_CODE[self._weight.dtype].itemsize
        if count:
            raw = np.frombuffer(buffer, np.uint8, count * width)
            self._reader.read_into(self._weight.name, start * width, raw)


class _OpenAdapter:
    """W by rows, B (or Aᵀ) by rows, A (or Bᵀ) in memory."""

    def __init__(self, view: AdapterView, inputs: Sequence[Reader]) -> None:
        self._view = view
        self._inputs = inputs
        self._dtype = DTYPE_OF_CODE[view.dtype]
        weight = view.weight
        self._under = None if weight.view is None else weight.view.open(inputs)
        width = view.shape[1]
        if view.transposed:
            held = np.ascontiguousarray(self._read(view.up, 0, (width, view.rank)).T, self._dtype)
        else:
            held = self._read(view.down, 0, (view.rank, width)).astype(self._dtype)
        self._held = held

    def read_into(self, start: int, count: int, buffer: Any) -> None:
        """Fill the buffer with so many elements from that flat index of the tensor on."""
        if not count:
            return
        out = np.frombuffer(buffer, self._dtype, count)
        width = self._view.shape[1]
        most = max(1, _MOST_FACTORS // max(1, self._view.rank))
        place = 0
        for span in row_spans(start, count, width, most):
            self._fill(span, out[place : place + span.size])
            place += span.size

    def _fill(self, span: Span, out: Array) -> None:
        # One rounding of each product, so that its bytes are the same everywhere.
        with np.errstate(over="ignore", invalid="ignore"):
            factors = self._factors(span).astype(np.float64) * self._view.scaling
        width = span.right - span.left
        most = max(1, min(_MOST_ROWS, _MOST_ELEMENTS // width))
        for row in range(0, span.rows, most):
            few = min(most, span.rows - row)
            part = Span(span.top + row, span.top + row + few, span.left, span.right)
            into = out[row * width : (row + few) * width]
            self._add(part, into, factors[row : row + few])

    def _add(self, span: Span, out: Array, factors: Array) -> None:
        # Imported when used, so that planning does not load the core.
        from weightshare._core import mixing as _mixing

        rows = out.reshape(span.rows, -1)
        finite = np.logical_and.reduce(np.isfinite(factors), axis=1)
        lines = [line[span.left : span.right] for line in self._held]
        mixed = [row for row, is_finite in zip(rows, finite, strict=True) if is_finite]
        if mixed and lines:
            _mixing.mix(mixed, lines, factors[finite], None, 1)
        elif mixed:
            rows[:] = 0
        rows[~finite] = np.nan
        _mixing.mix([out], [self._weight(span), out], np.ones((1, 2)), None, 1)

    def _factors(self, span: Span) -> Array:
        """Return the rows of B, or the columns of A, of these rows of W."""
        view = self._view
        if not view.transposed:
            return self._read(view.up, span.top * view.rank, (span.rows, view.rank))
        columns = np.empty((view.rank, span.rows), DTYPE_OF_CODE[view.down.dtype])
        for line in range(view.rank):
            columns[line] = self._read(view.down, line * view.shape[0] + span.top, (span.rows,))
        return np.ascontiguousarray(columns.T)

    def _weight(self, span: Span) -> Array:
        first = span.top * self._view.shape[1] + span.left
        if self._under is None:
            return self._read(self._view.weight, first, (span.size,))
        made = np.empty(span.size, DTYPE_OF_CODE[self._view.weight.dtype])
        self._under.read_into(first, span.size, made.view(np.uint8))
        return made

    def _read(self, source: Source, first: int, shape: tuple[int, ...]) -> Array:
        found = np.empty(shape, DTYPE_OF_CODE[source.dtype])
        raw = found.reshape(-1).view(np.uint8)
        self._inputs[source.model].read_into(source.name, first * found.itemsize, raw)
        return found

"""Weights kept as 8-bit floats with scales for blocks of them, made float32 while they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from weightshare.checkpoint.header import numpy_dtype
from weightshare.merging.elements import Array
from weightshare.merging.spans import Span, row_spans
from weightshare.merging.views import OpenView

if TYPE_CHECKING:
    from weightshare.merging.pipeline import Reader
    from weightshare.merging.plan import Source

_MOST_ELEMENTS = 1 << 18


@dataclass(frozen=True, slots=True)
class ScaledBlocksView:
    """A tensor of 8-bit floats, each times the scale of its block, made float32.

    Attributes
    ----------
    weight : Source
        The codes, of a dtype such as ``"F8_E4M3"``.
    scale : Source or None
        The scales; None for codes that stand for themselves.
    shape : tuple of int
        Of the weight.
    scale_shape : tuple of int
        Of the scales: () for one scale, else as many axes as the weight has.
    block : tuple of int
        Lengths of a block along the weight's axes, as many as the scales have.
    """

    weight: Source
    scale: Source | None
    shape: tuple[int, ...]
    scale_shape: tuple[int, ...] = ()
    block: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[Source, ...]:
        """The codes and the scales."""
        return (self.weight,) if self.scale is None else (self.weight, self.scale)

    @property
    def held_bytes(self) -> int:
        """Bytes of the scales and of the table of all pairs of codes."""
        return 4 * math.prod(self.scale_shape) + 2**19

    def to_json(self) -> dict[str, object]:
        """Return where the scales are, and the size of a block."""
        scale = None if self.scale is None else self.scale.name
        return {
            "kind": "scaled",
            "dtype": self.weight.dtype,
            "scale": scale,
            "block": list(self.block),
        }

    def open(self, inputs: Sequence[Reader]) -> OpenView:
        """Open it over the plan's models, for one tensor of one run."""
        return _OpenScaled(self, inputs)


def _dtype(code: str) -> np.dtype[Any]:
    dtype = numpy_dtype(code)
    assert dtype is not None, code
    return dtype


@cache
def _pairs(code: str) -> Array:
    """Return the two float32 values of every two codes that lie side by side, as 64 bits each."""
    codes = np.arange(256, dtype=np.uint8)
    values = codes.view(_dtype(code)).astype(np.float32)
    side_by_side = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    return values[side_by_side].view(np.uint64).reshape(-1)


class _OpenScaled:
    """Codes by rows, scales in memory."""

    def __init__(self, view: ScaledBlocksView, inputs: Sequence[Reader]) -> None:
        self._view = view
        self._reader = inputs[view.weight.model]
        self._table = _pairs(view.weight.dtype)
        self._width = view.shape[-1] if view.shape else 1
        self._scales = self._read_scales(inputs)
        self._per_row = view.block[-1] if view.block else max(1, self._width)

    def read_into(self, start: int, count: int, buffer: Any) -> None:
        """Fill the buffer with so many elements from that flat index of the tensor on."""
        if not count:
            return
        out = np.frombuffer(buffer, np.float32, count)
        most = max(1, _MOST_ELEMENTS // self._width)
        place = 0
        for span in row_spans(start, count, self._width, most):
            part = out[place : place + span.size]
            self._decode(span.top * self._width + span.left, part)
            if self._scales is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    self._scale(span, part.reshape(span.rows, -1))
            place += span.size

    def _read_scales(self, inputs: Sequence[Reader]) -> Array | None:
        scale, shape = self._view.scale, self._view.scale_shape
        if scale is None:
            return None
        raw = np.empty(math.prod(shape), _dtype(scale.dtype))
        inputs[scale.model].read_into(scale.name, 0, raw.view(np.uint8))
        with np.errstate(over="ignore"):
            return raw.astype(np.float32).reshape(-1, shape[-1] if shape else 1)

    def _decode(self, first: int, out: Array) -> None:
        codes = np.zeros(out.size + out.size % 2, np.uint8)
        self._reader.read_into(self._view.weight.name, first, codes[: out.size])
        if out.size % 2 or out.ctypes.data % 8:
            out[:] = self._table[codes.view(np.uint16)].view(np.float32)[: out.size]
        else:
            # "clip" only spares a copy: no code lies outside the table.
            wide = out.view(np.uint64)
            np.take(self._table, codes.view(np.uint16), out=wide, mode="clip")

    def _scale(self, span: Span, rows: Array) -> None:
        assert self._scales is not None
        scales = self._scales[self._lines(span)]
        block = self._per_row
        if span.left or span.right < self._width:
            own = scales[0, np.arange(span.left, span.right) // block]
            np.multiply(rows, own, out=rows)
            return
        whole = self._width // block
        body = rows[:, : whole * block].reshape(span.rows, whole, block)
        np.multiply(body, scales[:, :whole, None], out=body)
        if whole * block < self._width:
            rest = rows[:, whole * block :]
            np.multiply(rest, scales[:, whole:], out=rest)

    def _lines(self, span: Span) -> Array:
        """Return the line of scales of each row, a row being a stretch along the last axis."""
        view = self._view
        lead = view.shape[:-1]
        if not view.block or not lead:
            return np.zeros(span.rows, np.intp)
        places = np.unravel_index(np.arange(span.top, span.bottom), lead)
        blocks = tuple(p // b for p, b in zip(places, view.block[:-1], strict=True))
        return np.ravel_multi_index(blocks, view.scale_shape[:-1])

"""A tensor that is copied, in elements of another width than those it is kept in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weightshare.merging.elements import DTYPE_OF_CODE
from weightshare.merging.finite import NonFiniteError, find_flaws
from weightshare.merging.plan import Source
from weightshare.merging.views import OpenView

if TYPE_CHECKING:
    from weightshare.merging.pipeline import Reader

# Elements that are converted at a time.
_PIECE = 1 << 15


@dataclass(frozen=True, slots=True)
class CastView:
    """A floating-point tensor rounded to another dtype, as a merge of it alone would give.

    Attributes
    ----------
    weight : Source
        What is read; it may have a view.
    dtype : str
        Code of the elements that are made.
    """

    weight: Source
    dtype: str

    @property
    def reads(self) -> tuple[Source, ...]:
        """The tensors that it reads, each without a view of its own."""
        return (self.weight,) if self.weight.view is None else self.weight.view.reads

    @property
    def held_bytes(self) -> int:
        """Bytes that an open one keeps in memory, those of a piece that is converted included."""
        inner = 0 if self.weight.view is None else self.weight.view.held_bytes
        return inner + _PIECE * DTYPE_OF_CODE[self.weight.dtype].itemsize

    def to_json(self) -> dict[str, object]:
        """Return the dtype that is read, and how that is made where it is not the file's."""
        inner = None if self.weight.view is None else self.weight.view.to_json()
        return {"kind": "cast", "from": self.weight.dtype, "of": inner}

    def open(self, inputs: Sequence[Reader]) -> OpenView:
        """Open it over the plan's models, for one tensor of one run."""
        return _OpenCast(self, inputs)


class _OpenCast:
    """An open `CastView`; several threads may read from it at once."""

    def __init__(self, view: CastView, inputs: Sequence[Reader]) -> None:
        self._weight = view.weight
        self._from, self._to = DTYPE_OF_CODE[view.weight.dtype], DTYPE_OF_CODE[view.dtype]
        self._reader = inputs[view.weight.model]
        self._under = None if view.weight.view is None else view.weight.view.open(inputs)

    def read_into(self, start: int, count: int, buffer: Any) -> None:
        """Fill the buffer with so many elements from that flat index of the tensor on.

        Raises
        ------
        NonFiniteError
            A finite weight is too large for the new dtype.
        """
        # Imported when used, so that planning does not load the core.
        from weightshare._core import mixing as _mixing

        out = np.frombuffer(buffer, self._to, count) if count else np.empty(0, self._to)
        for place in range(0, count, _PIECE):
            piece = out[place : place + _PIECE]
            held = np.empty(len(piece), self._from)
            self._read(start + place, held)
            _mixing.mix([piece], [held], np.ones((1, 1)), None, 1)
            flaws = find_flaws(piece, [held], start + place)
            if flaws.made:
                raise NonFiniteError(
                    f"{self._weight.name}: is copied, and its element {flaws.first} is too large"
                    f" for {self._to.name}; set dtype or out_dtype of the recipe to bfloat16 or"
                    " float32",
                    tensor=self._weight.name,
                    count=flaws.made,
                    first=flaws.first,
                )

    def _read(self, start: int, held: Any) -> None:
        if self._under is not None:
            self._under.read_into(start, len(held), held)
        else:
            offset = start * held.itemsize
            self._reader.read_into(self._weight.name, offset, held.view(np.uint8))

"""Tensors that are made while they are read: what a plan says of them, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from weightshare.merging.pipeline import Reader
    from weightshare.merging.plan import Source


class View(Protocol):
    """How a tensor is made from others while it is read. Plain data: it pickles.

    The dtype of what it makes is that of the `Source` which holds it.
    """

    @property
    def reads(self) -> tuple[Source, ...]:
        """The tensors that it reads, each without a view of its own."""

    @property
    def held_bytes(self) -> int:
        """Bytes that an open one keeps in memory."""

    def to_json(self) -> dict[str, object]:
        """Return what `weightshare plan --json` and the provenance say of it."""

    def open(self, inputs: Sequence[Reader]) -> OpenView:
        """Open it over the plan's models, for one tensor of one run."""


class OpenView(Protocol):
    """An open view; several threads may read from it at once."""

    def read_into(self, start: int, count: int, buffer: Any) -> None:
        """Fill the buffer with so many elements from that flat index of the tensor on."""

"""Cutting tensors into tiles whose buffers stay within a budget of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightshare.errors import OutputSpaceError
from weightshare.merging.elements import Array
from weightshare.merging.sizes import format_bytes

if TYPE_CHECKING:
    from weightshare.merging.plan import PlannedTensor

DEFAULT_MEMORY = 512_000_000
# What Python, NumPy and the stacks of the threads take, with room to spare.
PROCESS_BYTES = 144_000_000
# What headers, plan and records take: for each tensor, each tensor read, each letter of a name.
_TENSOR_BYTES, _READ_BYTES, _LETTER_BYTES = 1300, 700, 7
# Tiles in flight: one is read ahead, one is computed, one is written.
SLOTS = 3
# Larger tiles leave the processor's cache between reading, computing and writing.
_LARGEST_SLOT = 5_000_000
# Small tensors share a slot up to this size: a task for each would cost more than its work.
_SHARED_SLOT = 1_000_000
_MOST_SHARING = 256
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of one output tensor: its place in the plan, first element, number of elements."""

    tensor: int
    start: int
    count: int


def slot_bytes(tensors: Sequence[PlannedTensor], memory: int) -> int:
    """Return how large the buffer of one tile in flight may be.

    Parameters
    ----------
    tensors : sequence of PlannedTensor
        All tensors of the plan.
    memory : int
        Budget of the whole process, in bytes.

    Returns
    -------
    int
        Bytes of each of the ``SLOTS`` buffers.

    Raises
    ------
    OutputSpaceError
        The budget does not even hold the process.
    """
    floor = max((_space(tensor, 1) for tensor in tensors), default=0)
    spaces = [_space(tensor, tensor.size) for tensor in tensors]
    wanted = max(max(spaces, default=0), min(sum(spaces), _SHARED_SLOT))
    process = _process_bytes(tensors)
    room = (memory - process) // SLOTS
    if room < floor:
        needed = process + SLOTS * max(floor, _ALIGNMENT)
        raise OutputSpaceError(
            f"memory: this merge needs at least {format_bytes(needed)}, the budget is"
            f" {format_bytes(memory)}; raise memory"
        )
    return min(room, max(floor, _LARGEST_SLOT), wanted)


def peak_memory(tensors: Sequence[PlannedTensor], memory: int = DEFAULT_MEMORY) -> int:
    """Return the bytes that a merge of these tensors takes, the process included."""
    process = _process_bytes(tensors)
    # A plan that the budget does not hold can still say what it would take.
    least = process + SLOTS * max((_space(tensor, 1) for tensor in tensors), default=0)
    return process + SLOTS * slot_bytes(tensors, max(memory, least))


def _process_bytes(tensors: Sequence[PlannedTensor]) -> int:
    reads = sum(len(tensor.reads) for tensor in tensors)
    letters = sum(len(tensor.name) for tensor in tensors)
    held = _TENSOR_BYTES * len(tensors) + _READ_BYTES * reads + _LETTER_BYTES * letters
    return PROCESS_BYTES + held


def stretches(tensors: Sequence[PlannedTensor], slot: int) -> Iterator[Stretch]:
    """Cut every tensor into stretches whose tile fits a slot of that many bytes."""
    for number, tensor in enumerate(tensors):
        most = max(1, (slot - _padding(tensor)) // sum(tensor.widths))
        if tensor.size == 0:
            continue
        for start in range(0, tensor.size, most):
            yield Stretch(number, start, min(most, tensor.size - start))


def batches(tensors: Sequence[PlannedTensor], slot: int) -> Iterator[list[Stretch]]:
    """Group consecutive stretches whose tiles fit a slot of that many bytes together."""
    batch: list[Stretch] = []
    used = 0
    for stretch in stretches(tensors, slot):
        space = _space(tensors[stretch.tensor], stretch.count)
        if batch and (used + space > slot or len(batch) == _MOST_SHARING):
            yield batch
            batch, used = [], 0
        batch.append(stretch)
        used += space
    if batch:
        yield batch


def carve_batch(
    slot: Array, tensors: Sequence[PlannedTensor], batch: Iterable[Stretch]
) -> Iterator[list[Array]]:
    """Yield the buffers of each stretch of a batch, one after the other in the slot."""
    place = 0
    for stretch in batch:
        tensor = tensors[stretch.tensor]
        yield carve(slot[place:], tensor.widths, stretch.count)
        place += _space(tensor, stretch.count)


def carve(slot: Array, widths: Iterable[int], count: int) -> list[Array]:
    """Return one buffer of bytes for each width from a slot, each aligned to a cache line.

    Parameters
    ----------
    slot : ndarray of uint8
        The slot's memory.
    widths : iterable of int
        Bytes per element of each buffer.
    count : int
        Number of elements of each buffer.

    Returns
    -------
    list of ndarray of uint8
        Views of the slot that do not overlap.

    Examples
    --------
    >>> import numpy as np
    >>> [len(part) for part in carve(np.zeros(256, dtype=np.uint8), (2, 4), 10)]
    [20, 40]
    """
    place = -slot.ctypes.data % _ALIGNMENT
    parts = []
    for width in widths:
        parts.append(slot[place : place + width * count])
        place += -(-width * count // _ALIGNMENT) * _ALIGNMENT
    return parts


def _space(tensor: PlannedTensor, count: int) -> int:
    """Return the bytes of a slot that so many elements of the tensor take."""
    return _padding(tensor) + count * sum(tensor.widths)


def _padding(tensor: PlannedTensor) -> int:
    return _ALIGNMENT * (len(tensor.widths) + 1)

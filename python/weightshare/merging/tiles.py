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
# Larger tiles leave the processor's cache between reading, computing and writing.
_LARGEST_TILE = 5_000_000
# A tensor that is looked at several times is read only once if it fits so large a slot.
_LARGEST_SLOT = 64_000_000
# Small tensors share a slot up to this size: a task for each would cost more than its work.
_SHARED_SLOT = 1_000_000
_MOST_SHARING = 256
_ALIGNMENT = 64

# Elements of each tensor of a plan from which stretches are cut: they begin at its multiples.
Units = Sequence[int]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of one output tensor: its place in the plan, first element, number of elements."""

    tensor: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Room:
    """How the memory of a merge is divided.

    Attributes
    ----------
    workers : int
        Threads that each have a slot.
    slot : int
        Bytes of the buffers of one worker.
    tile : int
        Bytes of the buffers of one tile of a tensor that does not fit the slot.
    whole : int
        Bytes up to which a tensor is one tile.
    peak : int
        Bytes of the whole process.
    floor : int
        The least budget with which it could be done.
    """

    workers: int
    slot: int
    tile: int
    whole: int
    peak: int
    floor: int


def divide_memory(
    tensors: Sequence[PlannedTensor],
    memory: int,
    workers: int,
    *,
    units: Units | None = None,
    scratch: Sequence[int] = (),
    surveyed: bool = False,
) -> Room:
    """Return how many workers there are and how large their buffers may be.

    Parameters
    ----------
    tensors : sequence of PlannedTensor
        All tensors of the plan.
    memory : int
        Budget of the whole process, in bytes.
    workers : int
        The most workers; there are fewer rather than too little memory.
    units : sequence of int, optional
        For each tensor the elements that must be seen together; None is 1 for each.
    scratch : sequence of int, optional
        For each tensor the bytes that the method holds beside its tile.
    surveyed : bool
        Whether tensors are looked at several times.

    Raises
    ------
    OutputSpaceError
        The budget does not hold the process and the largest unit.
    """
    units = units or [1] * len(tensors)
    least = max(map(_unit_space, tensors, units), default=_ALIGNMENT)
    spaces = [_space(tensor, tensor.size) for tensor in tensors]
    wanted = max(max(spaces, default=0), min(sum(spaces), _SHARED_SLOT), least)
    scratch = scratch or [0] * len(tensors)
    held = max(
        (held_bytes(t) + beside for t, beside in zip(tensors, scratch, strict=True)), default=0
    )
    process = _process_bytes(tensors)
    floor = process + least + held
    workers = min(workers, (memory - process) // (least + held))
    if workers < 1:
        raise OutputSpaceError(
            f"memory: this merge needs at least {format_bytes(floor)}, the budget is"
            f" {format_bytes(memory)}; raise memory"
        )
    room = (memory - process) // workers - held
    tile = min(room, max(least, _LARGEST_TILE))
    whole = min(room, max(least, _LARGEST_SLOT)) if surveyed else tile
    fitting = max((space for space in spaces if space <= whole), default=0)
    slot = min(whole, wanted, max(tile, fitting))
    peak = process + workers * (slot + held)
    return Room(workers, slot, min(tile, slot), slot, peak, floor)


def held_bytes(tensor: PlannedTensor) -> int:
    """Return the bytes that the open views of a tensor keep in memory."""
    return sum(source.view.held_bytes for source in tensor.reads if source.view is not None)


def _unit_space(tensor: PlannedTensor, unit: int) -> int:
    return _space(tensor, min(tensor.size, unit))


def _process_bytes(tensors: Sequence[PlannedTensor]) -> int:
    reads = sum(len(tensor.reads) for tensor in tensors)
    letters = sum(len(tensor.name) for tensor in tensors)
    held = _TENSOR_BYTES * len(tensors) + _READ_BYTES * reads + _LETTER_BYTES * letters
    return PROCESS_BYTES + held


def pieces(
    tensor: PlannedTensor, unit: int, slot: int, first: int = 0, last: int | None = None
) -> list[tuple[int, int]]:
    """Cut elements `first` to `last` of a tensor into tiles that fit a slot.

    Parameters
    ----------
    tensor : PlannedTensor
        A tensor of the plan.
    unit : int
        Tiles begin at `first` and at multiples of so many elements.
    slot : int
        Bytes of the buffers of a tile.
    first, last : int
        `first` is a multiple of the unit; `last` too, or the tensor's end.

    Returns
    -------
    list of (start, count)
        They follow each other without gap.
    """
    last = tensor.size if last is None else last
    room = (slot - _space(tensor, 0)) // sum(tensor.widths)
    # Whole cache lines in each file, where the method does not ask for less.
    step = unit if room < 2 * unit * _ALIGNMENT else unit * _ALIGNMENT
    most = max(unit, room // step * step)
    return [(start, min(most, last - start)) for start in range(first, last, most)]


def jobs(
    tensors: Sequence[PlannedTensor], room: Room, finished: Iterable[int] = ()
) -> Iterator[list[Stretch] | int]:
    """Yield what is to be done, in the order of the plan.

    Parameters
    ----------
    tensors : sequence of PlannedTensor
        All tensors of the plan.
    room : Room
        The memory of each worker.
    finished : iterable of int
        Tensors that are left out.

    Yields
    ------
    list of Stretch, or int
        Whole tensors that share a slot; or one tensor that is cut into tiles.
    """
    skipped = set(finished)
    batch: list[Stretch] = []
    used = 0
    for number, tensor in enumerate(tensors):
        if number in skipped or not tensor.size:
            continue
        space = _space(tensor, tensor.size)
        if batch and (used + space > room.tile or len(batch) == _MOST_SHARING):
            yield batch
            batch, used = [], 0
        if space > room.whole:
            yield number
        elif space > room.tile:
            yield [Stretch(number, 0, tensor.size)]
        else:
            batch.append(Stretch(number, 0, tensor.size))
            used += space
    if batch:
        yield batch


def carve_batch(
    slot: Array, tensors: Sequence[PlannedTensor], batch: Iterable[Stretch]
) -> Iterator[list[Array]]:
    """Yield the buffers of each stretch of a batch, one after the other in the slot."""
    place = -slot.ctypes.data % _ALIGNMENT
    for stretch in batch:
        parts = []
        for width in tensors[stretch.tensor].widths:
            nbytes = width * stretch.count
            parts.append(slot[place : place + nbytes])
            place += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        yield parts


def carve(slot: Array, tensor: PlannedTensor, count: int) -> list[Array]:
    """Return a buffer of bytes for everything that is read, then the output if it is computed.

    Parameters
    ----------
    slot : ndarray of uint8
        The slot's memory.
    tensor : PlannedTensor
        A tensor of the plan.
    count : int
        Number of elements of each buffer.

    Returns
    -------
    list of ndarray of uint8
        Views of the slot that do not overlap, each aligned to a cache line.
    """
    return next(carve_batch(slot, [tensor], [Stretch(0, 0, count)]))


def _space(tensor: PlannedTensor, count: int) -> int:
    """Return the bytes of a slot that so many elements of the tensor take."""
    widths = tensor.widths
    return _ALIGNMENT * (len(widths) + 1) + count * sum(widths)

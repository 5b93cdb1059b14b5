"""Workers that each read, compute and write one tile after the other."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from weightshare._core.threads import resolve_threads
from weightshare.errors import ArgumentError
from weightshare.merging.ahead import ReadAhead
from weightshare.merging.elements import DTYPE_OF_CODE, Array
from weightshare.merging.finite import SOUND, Flaws, find_flaws
from weightshare.merging.ledger import Done, Ledger
from weightshare.merging.method import (
    Method,
    Tensor,
    Tile,
    anywhere,
    combine_whole,
    no_scratch,
    no_survey,
)
from weightshare.merging.plan import WIDTH_OF_CODE, MergePlan, PlannedTensor, Source
from weightshare.merging.registry import get_method
from weightshare.merging.schedule import Batch, Piece, Schedule, Stream
from weightshare.merging.tiles import (
    DEFAULT_MEMORY,
    Room,
    Stretch,
    carve,
    carve_batch,
    divide_memory,
)

Progress = Callable[[int, int], object]
# How often the caller's thread tells the progress and takes note of signals.
_SECONDS_BETWEEN_TELLING = 0.05


class Reader(Protocol):
    """Where a model's tensors are read from."""

    def read_into(self, name: str, offset: int, buffer: Any, /) -> object:
        """Fill the buffer with the tensor's bytes from that offset on."""

    def read_many(self, parts: Iterable[tuple[str, int, Any]], /) -> object:
        """Fill several buffers, each from a tensor's bytes from an offset on."""

    def will_need(self, name: str, offset: int, nbytes: int, /) -> object:
        """Read so many of the tensor's bytes ahead of need, if that can be done."""


class Writer(Protocol):
    """Where the output's tensors are written to."""

    def write_many(self, parts: Iterable[tuple[str, int, Any]], /) -> object:
        """Write several buffers, each at a byte offset of a tensor."""


def tensor_of(plan: MergePlan, number: int) -> Tensor:
    """Return what a method knows of a tensor of a plan that is merged."""
    planned = plan.tensors[number]
    assert planned.settings is not None
    read = planned.sources if planned.base is None else (*planned.sources, planned.base)
    return Tensor(
        name=planned.name,
        shape=planned.shape,
        settings=planned.settings,
        seed=plan.seed,
        dtypes=tuple(DTYPE_OF_CODE[source.dtype] for source in read),
        has_base=planned.base is not None,
    )


def units_of(plan: MergePlan, method: Method) -> list[int]:
    """Return for each tensor of a plan how many of its elements the method must see together."""
    if method.unit is anywhere:
        return [1] * len(plan.tensors)
    return [
        1 if tensor.action == "copy" or not tensor.size else method.unit(tensor_of(plan, number))
        for number, tensor in enumerate(plan.tensors)
    ]


def _scratch_of(plan: MergePlan, method: Method) -> list[int]:
    if method.scratch is no_scratch:
        return []
    return [
        0 if tensor.action == "copy" or not tensor.size else method.scratch(tensor_of(plan, number))
        for number, tensor in enumerate(plan.tensors)
    ]


def divide(plan: MergePlan, method: Method, memory: int, threads: int) -> Room:
    """Return the workers of a plan and their memory.

    Raises
    ------
    OutputSpaceError
        The budget is too small.
    """
    units = units_of(plan, method)
    surveyed = method.survey is not no_survey
    scratch = _scratch_of(plan, method)
    return divide_memory(
        plan.tensors, memory, threads, units=units, scratch=scratch, surveyed=surveyed
    )


def memory_of(plan: MergePlan) -> tuple[int, int]:
    """Return the peak of a plan at the default budget, and the least budget, in bytes."""
    method = get_method(plan.method)
    # Any budget that is large enough tells the floor.
    floor = divide(plan, method, 1 << 62, 1).floor
    room = divide(plan, method, max(DEFAULT_MEMORY, floor), resolve_threads(None))
    return room.peak, floor


@dataclass
class Pipeline:
    """Threads that each take a tile, read it, compute it and write it.

    Attributes
    ----------
    plan : MergePlan
        What to do.
    method : Method
        The plan's method.
    inputs : sequence of Reader
        One for each of the plan's models.
    writer : Writer
        The output.
    room : Room
        How many workers, and their memory.
    threads : int
        Threads of the core that each of them may use.
    ledger : Ledger
        What is done already; told of everything that is.
    done : callable
        Called by the workers with each list of `Done` once it is in the output's files.
    """

    plan: MergePlan
    method: Method
    inputs: Sequence[Reader]
    writer: Writer
    room: Room
    threads: int
    ledger: Ledger
    done: Callable[[list[Done]], object]

    def run(self, progress: Progress | None) -> None:
        """Merge every tensor; the first error of any thread is raised here.

        Parameters
        ----------
        progress : callable or None
            Called in this thread as ``progress(done, total)``, in bytes of output.
        """
        workers = [
            threading.Thread(target=self._work, name=f"merge-{number}", daemon=True)
            for number in range(self.room.workers)
        ]
        told, total = -1, self.plan.nbytes
        schedule, ahead = self._schedule, self._ahead
        try:
            ahead.start()
            for worker in workers:
                worker.start()
            while not schedule.wait_for(len(workers), _SECONDS_BETWEEN_TELLING):
                if progress is not None and self.ledger.nbytes != told:
                    told = self.ledger.nbytes
                    progress(told, total)
        except BaseException as error:
            schedule.stop(error)
            raise
        finally:
            ahead.stop()
            schedule.wait_until_idle()
        if schedule.error is not None:
            raise schedule.error
        if progress is not None and told != total:
            progress(self.ledger.nbytes, total)

    @cached_property
    def _schedule(self) -> Schedule:
        units = units_of(self.plan, self.method)
        return Schedule(self.plan, self.method, self.room, units, self.ledger, self._tensor_of)

    @cached_property
    def _ahead(self) -> ReadAhead:
        return ReadAhead(self.plan, self.inputs)

    def _tensor_of(self, number: int) -> Tensor:
        return tensor_of(self.plan, number)

    def _work(self) -> None:
        with self._schedule.worker():
            self._work_until_done()

    def _work_until_done(self) -> None:
        try:
            slot = np.empty(self.room.slot, dtype=np.uint8)
            while (work := self._schedule.take()) is not None:
                if isinstance(work, Batch):
                    self._ahead.reached(work.stretches[-1])
                    self._do_batch(work.stretches, slot)
                else:
                    self._ahead.reached(work.stretch)
                    self._schedule.end(work, self._do_piece(work, slot))
        except BaseException as error:
            self._schedule.stop(error)

    def _do_batch(self, batch: list[Stretch], slot: Array) -> None:
        tensors = [self.plan.tensors[stretch.tensor] for stretch in batch]
        buffers = list(carve_batch(slot, self.plan.tensors, batch))
        parts: list[tuple[Source, int, int, Array]] = []
        for tensor, buffer in zip(tensors, buffers, strict=True):
            reads = zip(tensor.reads, buffer, strict=False)
            parts += [(source, 0, tensor.size, part) for source, part in reads]
        self._read(parts, None)
        outs = []
        for stretch, tensor, buffer in zip(batch, tensors, buffers, strict=True):
            if tensor.action == "copy":
                self._check_equal(tensor, buffer)
                outs.append((stretch, buffer[0], _flaws_of_copy(tensor, buffer[0], 0)))
                continue
            tile = self._tile(tensor, tensor_of(self.plan, stretch.tensor), 0, buffer)
            combine_whole(self.method, tile)
            flaws = find_flaws(tile.out, (*tile.inputs, *tile.statistics), 0)
            outs.append((stretch, buffer[-1], flaws))
        self._write(outs)

    def _do_piece(self, piece: Piece, slot: Array) -> Any:
        stretch, stream = piece.stretch, piece.stream
        tensor = self.plan.tensors[stretch.tensor]
        buffer = carve(slot, tensor, stretch.count)
        reads = zip(tensor.reads, buffer, strict=False)
        self._read([(s, stretch.start, stretch.count, part) for s, part in reads], stream)
        if stream.tensor is None:
            self._check_equal(tensor, buffer)
            flaws = _flaws_of_copy(tensor, buffer[0], stretch.start)
            self._write([(stretch, buffer[0], flaws)])
            return None
        tile = self._tile(tensor, stream.tensor, stretch.start, buffer, piece.look is not None)
        if piece.look is not None:
            return piece.look.look(tile)
        self.method.combine(tile, stream.found)
        flaws = find_flaws(tile.out, (*tile.inputs, *tile.statistics), stretch.start)
        self._write([(stretch, buffer[-1], flaws)])
        return None

    def _read(self, parts: list[tuple[Source, int, int, Array]], stream: Stream | None) -> None:
        plain: dict[int, list[tuple[str, int, Array]]] = defaultdict(list)
        for place, (source, start, count, part) in enumerate(parts):
            if source.view is None:
                offset = start * WIDTH_OF_CODE[source.dtype]
                plain[source.model].append((source.name, offset, part))
            elif stream is None:
                source.view.open(self.inputs).read_into(start, count, part)
            else:
                with stream.lock:
                    if place not in stream.views:
                        stream.views[place] = source.view.open(self.inputs)
                stream.views[place].read_into(start, count, part)
        for model, wanted in plain.items():
            self.inputs[model].read_many(wanted)

    def _write(self, outs: list[tuple[Stretch, Array, Any]]) -> None:
        from weightshare._core import integrity as _integrity

        parts, done = [], []
        for stretch, out, flaws in outs:
            tensor = self.plan.tensors[stretch.tensor]
            offset = stretch.start * WIDTH_OF_CODE[tensor.dtype]
            low, high = _integrity.digest(out, offset)
            parts.append((tensor.name, offset, out))
            checksum = low | high << 64
            done.append(Done(stretch.tensor, stretch.start, stretch.count, checksum, flaws))
        self.writer.write_many(parts)
        self.done(done)
        self.ledger.enter(done)

    def _check_equal(self, tensor: PlannedTensor, parts: list[Array]) -> None:
        # Every byte but 0 is true, so equal booleans may have different bytes.
        seen = [part != 0 for part in parts] if tensor.dtype == "BOOL" else parts
        for source, other in zip(tensor.sources[1:], seen[1:], strict=False):
            if not np.array_equal(seen[0], other):
                labels = [
                    self.plan.models[i].label for i in (tensor.sources[0].model, source.model)
                ]
                raise ArgumentError(
                    f"models: tensor {tensor.name!r} is {tensor.dtype} and differs between"
                    f" {labels[0]} and {labels[1]}; integers are not merged, make them equal or"
                    " leave them out"
                )

    def _tile(
        self,
        planned: PlannedTensor,
        tensor: Tensor,
        start: int,
        parts: list[Array],
        is_survey: bool = False,
    ) -> Tile:
        dtypes = [DTYPE_OF_CODE[source.dtype] for source in planned.reads]
        dtypes.append(DTYPE_OF_CODE[planned.dtype])
        views = [part.view(dtype) for part, dtype in zip(parts, dtypes, strict=True)]
        count, base = len(planned.sources), planned.base is not None
        return Tile(
            out=views[-1][:0] if is_survey else views[-1],
            models=views[:count],
            base=views[count] if base else None,
            tensor=tensor,
            start=start,
            threads=self.threads,
            statistics=tuple(views[count + base : -1]),
        )


def _flaws_of_copy(tensor: PlannedTensor, raw: Array, start: int) -> Flaws:
    dtype = DTYPE_OF_CODE.get(tensor.dtype)
    if dtype is None:
        return SOUND
    values = raw.view(dtype)
    return find_flaws(values, [values], start)

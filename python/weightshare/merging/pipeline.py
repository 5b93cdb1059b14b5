"""Reading, computing and writing at the same time, tile by tile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from weightshare.errors import ArgumentError
from weightshare.merging.elements import DTYPE_OF_CODE, Array
from weightshare.merging.finite import Findings
from weightshare.merging.method import Method, Tensor, Tile, combine_whole
from weightshare.merging.plan import WIDTH_OF_CODE, MergePlan, PlannedTensor
from weightshare.merging.tiles import SLOTS, Stretch, batches, carve_batch

Progress = Callable[[int, int], object]


class Reader(Protocol):
    """Where a model's tensors are read from."""

    def read_into(self, name: str, offset: int, buffer: Any, /) -> object:
        """Fill the buffer with the tensor's bytes from that offset on."""


class Writer(Protocol):
    """Where the output's tensors are written to."""

    def write(self, name: str, offset: int, buffer: Any, /) -> object:
        """Write the buffer at that byte offset of the tensor."""


@dataclass
class Pipeline:
    """One reader thread that reads ahead, one writer thread, and the core's own threads.

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
    slot : int
        Bytes of each tile in flight.
    threads : int
        Threads of the core.
    findings : Findings
        Told of every tile of the output.
    """

    plan: MergePlan
    method: Method
    inputs: Sequence[Reader]
    writer: Writer
    slot: int
    threads: int
    findings: Findings

    def run(self, progress: Progress | None) -> None:
        """Merge every tensor; the first error of any thread is raised here.

        Parameters
        ----------
        progress : callable or None
            Called in this thread as ``progress(done, total)``, in bytes of output.
        """
        slots = [np.empty(self.slot, dtype=np.uint8) for _ in range(SLOTS)]
        written: list[Future[object] | None] = [None] * SLOTS
        ahead: deque[tuple[list[Stretch], int, Future[list[list[Array]]]]] = deque()
        done, total = 0, self.plan.nbytes
        # The reader waits for writes, so it is the pool that has to end first.
        with ThreadPoolExecutor(1) as writes, ThreadPoolExecutor(1) as reads:

            def finish_first() -> None:
                nonlocal done
                batch, place, future = ahead.popleft()
                outs = [self._compute(*pair) for pair in zip(batch, future.result(), strict=True)]
                written[place] = writes.submit(self._write, batch, outs)
                done += sum(out.nbytes for out in outs)
                if progress is not None:
                    progress(done, total)

            for number, batch in enumerate(batches(self.plan.tensors, self.slot)):
                place = number % SLOTS
                future = reads.submit(self._read, batch, slots[place], written[place])
                ahead.append((batch, place, future))
                if len(ahead) == SLOTS - 1:
                    finish_first()
            while ahead:
                finish_first()
            for write in written:
                if write is not None:
                    write.result()

    def _read(
        self, batch: list[Stretch], slot: Array, last: Future[object] | None
    ) -> list[list[Array]]:
        if last is not None:
            last.result()  # the slot is free once the batch before it is written
        buffers = list(carve_batch(slot, self.plan.tensors, batch))
        for stretch, parts in zip(batch, buffers, strict=True):
            reads = self.plan.tensors[stretch.tensor].reads
            for source, part in zip(reads, parts, strict=False):
                offset = stretch.start * WIDTH_OF_CODE[source.dtype]
                self.inputs[source.model].read_into(source.name, offset, part)
        return buffers

    def _write(self, batch: list[Stretch], outs: list[Array]) -> None:
        for stretch, out in zip(batch, outs, strict=True):
            tensor = self.plan.tensors[stretch.tensor]
            self.writer.write(tensor.name, stretch.start * WIDTH_OF_CODE[tensor.dtype], out)

    def _compute(self, stretch: Stretch, parts: list[Array]) -> Array:
        tensor = self.plan.tensors[stretch.tensor]
        if tensor.action == "copy":
            self._check_equal(tensor, parts)
            return parts[0]
        tile = self._tile(tensor, stretch, parts)
        combine_whole(self.method, tile)
        self.findings.look(tile.out, tile.inputs, stretch.start)
        if stretch.start + stretch.count == tensor.size:
            self.findings.close(tensor.name, tensor.size)
        return parts[-1]

    def _check_equal(self, tensor: PlannedTensor, parts: list[Array]) -> None:
        # Every byte but 0 is true, so equal booleans may have different bytes.
        seen = [part != 0 for part in parts] if tensor.dtype == "BOOL" else parts
        for source, other in zip(tensor.sources[1:], seen[1:], strict=True):
            if not np.array_equal(seen[0], other):
                labels = [
                    self.plan.models[i].label for i in (tensor.sources[0].model, source.model)
                ]
                raise ArgumentError(
                    f"models: tensor {tensor.name!r} is {tensor.dtype} and differs between"
                    f" {labels[0]} and {labels[1]}; integers are not merged, make them equal or"
                    " leave them out"
                )

    def _tile(self, tensor: PlannedTensor, stretch: Stretch, parts: list[Array]) -> Tile:
        assert tensor.settings is not None
        codes = [source.dtype for source in tensor.reads] + [tensor.dtype]
        views = [part.view(DTYPE_OF_CODE[code]) for part, code in zip(parts, codes, strict=True)]
        count = len(tensor.sources)
        dtypes = tuple(view.dtype for view in views[: count + (tensor.base is not None)])
        return Tile(
            out=views[-1],
            models=views[:count],
            base=views[count] if tensor.base is not None else None,
            tensor=Tensor(
                *(tensor.name, tensor.shape, tensor.settings, self.plan.seed, dtypes),
                has_base=tensor.base is not None,
            ),
            start=stretch.start,
            threads=self.threads,
        )

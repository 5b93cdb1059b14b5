"""Reading ahead of need: the system is told which bytes come next."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from weightshare.merging.plan import WIDTH_OF_CODE, MergePlan, Source

if TYPE_CHECKING:
    from weightshare.merging.pipeline import Reader
    from weightshare.merging.tiles import Stretch

# So many bytes are asked for before the tile that is being read, all models together.
_BYTES_AHEAD = 96_000_000
_STEP_BYTES = 8_000_000
# Smaller tensors are left to the system's own reading ahead.
_LEAST_BYTES = 500_000


class ReadAhead:
    """Asks the system for what the tiles after the present one need, in a thread of its own.

    The system may make whoever asks wait until its queue has room, which no worker should.

    Parameters
    ----------
    plan : MergePlan
        What is done, in its order.
    inputs : sequence of Reader
        One for each of the plan's models.
    """

    def __init__(self, plan: MergePlan, inputs: Sequence[Reader]) -> None:
        self._plan = plan
        self._inputs = inputs
        self._widths = [
            sum(WIDTH_OF_CODE[source.dtype] for source in tensor.reads) for tensor in plan.tensors
        ]
        sizes = (
            tensor.size * width for tensor, width in zip(plan.tensors, self._widths, strict=True)
        )
        self._begins = [0, *accumulate(sizes)]
        self._place = -1
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def start(self) -> None:
        """Begin; nothing is asked for before the first stretch is told."""
        self._thread.start()

    def reached(self, stretch: Stretch) -> None:
        """Ask for what comes after a stretch that is about to be read; returns at once."""
        place = self._begins[stretch.tensor] + stretch.start * self._widths[stretch.tensor]
        with self._changed:
            if place > self._place:
                self._place = place
                self._changed.notify()

    def stop(self) -> None:
        """Ask for nothing more, and wait for what is being asked for."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        for begin, sources, start, count in self._all_steps():
            with self._changed:
                while not self._stopped and self._waits(begin):
                    self._changed.wait()
                if self._stopped:
                    return
                if begin < self._place:
                    continue  # too late to be of use
            for source in sources:
                width = WIDTH_OF_CODE[source.dtype]
                self._inputs[source.model].will_need(source.name, start * width, count * width)

    def _waits(self, begin: int) -> bool:
        return self._place < 0 or begin > self._place + _BYTES_AHEAD

    def _all_steps(self) -> Iterator[tuple[int, list[Source], int, int]]:
        for number, tensor in enumerate(self._plan.tensors):
            width = self._widths[number]
            plain = [source for source in tensor.reads if source.view is None]
            if tensor.size * width < _LEAST_BYTES * len(tensor.reads) or not plain:
                continue
            most = max(1, _STEP_BYTES // width)
            for start in range(0, tensor.size, most):
                yield (
                    self._begins[number] + start * width,
                    plain,
                    start,
                    min(most, tensor.size - start),
                )

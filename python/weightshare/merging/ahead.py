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
    """Asks the system for what the tiles after the present one need.

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
        self._steps = self._all_steps()
        self._asked = 0
        self._lock = threading.Lock()

    def reached(self, stretch: Stretch) -> None:
        """Ask for what comes after a stretch that is about to be read."""
        place = self._begins[stretch.tensor] + stretch.start * self._widths[stretch.tensor]
        if self._asked > place + _BYTES_AHEAD - _STEP_BYTES or not self._lock.acquire(False):
            return
        try:
            while self._asked <= place + _BYTES_AHEAD:
                step = next(self._steps, None)
                if step is None:
                    self._asked = self._begins[-1] + _BYTES_AHEAD
                    return
                self._asked, sources, start, count = step
                if self._asked < place:
                    continue  # too late to be of use
                for source in sources:
                    width = WIDTH_OF_CODE[source.dtype]
                    self._inputs[source.model].will_need(source.name, start * width, count * width)
        finally:
            self._lock.release()

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

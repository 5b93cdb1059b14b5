"""One SGD step with Nesterov momentum and weight decay, beside NumPy in place and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from material import TILE, error_of_tiles, repeated, tiles
from report import Case, Context
from timing import Contestant, race
from worker import Ready

ELEMENTS = 64 * TILE
LR, MOMENTUM, DECAY = 0.01, 0.9, 0.1
_WORDS = 5  # read and write the weights and the velocity, read the gradient
_CHECKED_STEPS = 2


def _data(size: int) -> tuple[Any, Any, Any, Any]:
    """Weights with an offset and gradients about zero, and their tiles in float64."""
    weights, gradient = tiles(1, seed=2), tiles(1, 0.0, seed=3)
    large = [repeated(rows, size)[0] for rows in (weights, gradient)]
    return (*large, weights.astype(np.float64), gradient.astype(np.float64))


def _exact(w: Any, g: Any, *, coupled: bool) -> Any:
    """The weights after the checked steps; torch couples the decay with the gradient."""
    v = np.zeros_like(w)
    for _ in range(_CHECKED_STEPS):
        slope = g + DECAY * w if coupled else g
        kept = 1.0 if coupled else 1.0 - LR * DECAY
        v = MOMENTUM * v + slope
        w = kept * w - LR * (slope + MOMENTUM * v)
    return w


def _checked(step: Callable[[], Any], w: Any, exact: Any) -> Ready:
    """Take the checked steps now, compare, and go on stepping in the runs."""
    for _ in range(_CHECKED_STEPS):
        step()
    error = error_of_tiles(np.asarray(w)[None], exact)
    return Ready(step, facts=lambda: {"error": error})


def ours(size: int, threads: int) -> Ready:
    """``ws.SGD``."""
    import weightshare as ws

    w, g, w64, g64 = _data(size)
    optimizer = ws.SGD(LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY, threads=threads)
    return _checked(lambda: optimizer.step(w, g), w, _exact(w64, g64, coupled=False))


def numpy_in_place(size: int) -> Ready:
    """The same arithmetic, an array operation at a time, with one array for what is between."""
    w, g, w64, g64 = _data(size)
    v, update = np.zeros_like(w), np.zeros_like(w)
    rate, momentum, kept = np.float32([LR, MOMENTUM, 1.0 - LR * DECAY])

    def step() -> None:
        np.multiply(v, momentum, out=v)
        np.add(v, g, out=v)
        np.multiply(v, momentum, out=update)
        np.add(update, g, out=update)
        np.multiply(update, rate, out=update)
        np.multiply(w, kept, out=w)
        np.subtract(w, update, out=w)

    return _checked(step, w, _exact(w64, g64, coupled=False))


def torch_sgd(size: int, threads: int, fused: bool) -> Ready:
    """``torch.optim.SGD``, its default on a CPU or its fused form."""
    import torch

    torch.set_num_threads(threads)
    w, g, w64, g64 = _data(size)
    parameter = torch.nn.Parameter(torch.from_numpy(w))
    parameter.grad = torch.from_numpy(g)
    optimizer = torch.optim.SGD(
        [parameter], LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY, fused=fused or None
    )
    return _checked(optimizer.step, w, _exact(w64, g64, coupled=True))


def run(context: Context) -> list[Case]:
    """One table."""
    size = context.size(ELEMENTS)
    threaded: dict[str, Any] = {"size": size, "threads": context.threads}
    contestants = [
        Contestant("ws.SGD", "bench_step:ours", threaded),
        Contestant("NumPy in place (1 thread)", "bench_step:numpy_in_place", {"size": size}),
    ]
    if context.torch():
        for name, fused in (("torch.optim.SGD", False), ("torch.optim.SGD fused", True)):
            arguments = {**threaded, "fused": fused}
            contestants.append(Contestant(name, "bench_step:torch_sgd", arguments))
    found = race(contestants, threads=context.threads, repeats=context.repeats())
    title = f"SGD step, Nesterov momentum, weight decay: {size / 1e6:.1f}M float32"
    case = Case("step", title, found, 4 * _WORDS * size, context.bandwidth, most_error=1e-6)
    case.notes.append("error after two steps, each against its own rule: torch couples the decay")
    return [case]

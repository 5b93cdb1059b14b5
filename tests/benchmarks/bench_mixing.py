"""`ws.mix` of eight models by a dense 8x8 matrix, beside one matrix product over all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import bench_stream
import numpy as np
from material import TILE, error_of_tiles, repeated, tiles
from report import Case, Context, Target
from timing import Contestant, race
from worker import Ready

N_MODELS = 8
ELEMENTS = 64 * TILE
# Half a unit in the last place of the output, and what float32 sums of eight terms may add.
_MOST_ERROR = {"float32": 1e-6, "bfloat16": 4e-3, "float16": 6e-4}
# Rows of a power of two fall into the same sets of the caches; these do not.
_APART = 16576
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def _data(size: int, dtype: str, pad: int = 0) -> tuple[Any, Any, Any]:
    """The models, the matrix, and one tile of the exact result."""
    rows = tiles(N_MODELS, dtype=dtype)
    A = np.random.default_rng(1).standard_normal((N_MODELS, N_MODELS)).astype(np.float32)
    exact = A.astype(np.float64) @ rows.astype(np.float64)
    return repeated(rows, size, pad), A, exact


def _ready(call: Callable[[], Any], fresh: bool, out: Any, exact: Any) -> Ready:
    """A contestant that writes to `out`, or to memory that is new at every run."""
    held = {"result": out}

    def forget() -> None:
        if fresh:
            held["result"] = None

    def run() -> None:
        held["result"] = call()

    def facts() -> dict[str, Any]:
        result = np.asarray(held["result"])
        return {"error": error_of_tiles(result, exact)}

    return Ready(run, forget, facts)


def ours(size: int, dtype: str, fresh: bool, pad: int, threads: int) -> Ready:
    """``ws.mix(W, A, out=out)``."""
    import weightshare as ws

    w, A, exact = _data(size, dtype, pad)
    out = None if fresh else np.zeros((N_MODELS, size + pad), w.dtype)[:, :size]

    def call() -> Any:
        return ws.mix(w, A, out=out, threads=threads)

    return _ready(call, fresh, out, exact)


def numpy_dot(size: int, fresh: bool) -> Ready:
    """``np.dot(A, W, out=out)`` in float32."""
    w, A, exact = _data(size, "float32")
    out = None if fresh else np.zeros_like(w)
    return _ready(lambda: np.dot(A, w, out=out), fresh, out, exact)


def torch_mm(size: int, dtype: str, threads: int) -> Ready:
    """``torch.mm(A, W, out=out)``, A rounded to the dtype of the models as it wants."""
    import torch

    torch.set_num_threads(threads)
    w, A, exact = _data(size, dtype)
    kind = getattr(torch, dtype)
    bits = w.view(np.int16) if dtype == "bfloat16" else w
    models, matrix = torch.from_numpy(bits).view(kind), torch.from_numpy(A).to(kind)
    out = torch.zeros_like(models)

    def facts() -> dict[str, Any]:
        return {"error": error_of_tiles(out[:, :TILE].to(torch.float64).numpy(), exact)}

    return Ready(lambda: torch.mm(matrix, models, out=out), facts=facts)


def _contestants(context: Context, dtype: str, fresh: bool, pad: int) -> list[Contestant]:
    size = context.size(ELEMENTS)
    sized: dict[str, Any] = {"size": size, "threads": context.threads}
    mixed = {**sized, "dtype": dtype, "fresh": fresh, "pad": pad}
    found = [Contestant(f"ws.mix {dtype}", "bench_mixing:ours", mixed)]
    if dtype == "float32" and not pad:
        peer = {"size": size, "fresh": fresh}
        found.append(Contestant("np.dot float32", "bench_mixing:numpy_dot", peer))
    elif dtype == "bfloat16" and context.torch():
        peer = {**sized, "dtype": dtype}
        found.append(Contestant(f"torch.mm {dtype}", "bench_mixing:torch_mm", peer))
    if not fresh:
        found.append(bench_stream.contestant(context, context.threads, 2))
    return found


def _case(context: Context, dtype: str, fresh: bool, pad: int = 0) -> Case:
    contestants = _contestants(context, dtype, fresh, pad)
    found = race(contestants, threads=context.threads, repeats=context.repeats())
    notes = ["a fresh output is also faulted in and zeroed by the kernel, 2 MiB at a time"]
    if not fresh:
        bench_stream.remember(context, found, "STREAM", context.threads)
        rounds = found.results.pop().facts["rounds"]
        notes = [_limit_note(context, rounds)]
    size = context.size(ELEMENTS)
    state = "fresh output" if fresh else "warm out=, rows apart" if pad else "warm out="
    title = f"mix: {N_MODELS} models x {size / 1e6:.1f}M {dtype}, A 8x8, {state}"
    nbytes = 2 * N_MODELS * size * _BYTES[dtype]
    case = Case(f"mix {dtype} {state}", title, found, nbytes, context.bandwidth)
    case.most_error, case.notes = _MOST_ERROR[dtype], notes
    if pad:
        case.notes.append(
            f"{4 * pad} bytes between the rows: none begins at another's place in a page"
        )
    elif dtype == "float32" and not fresh:
        case.targets.append(_target(case))
        case.notes.append(_paired_note(case, rounds))
    return case


def _limit_note(context: Context, rounds: list[float]) -> str:
    # the best figure may be of another moment of a shared machine: say what this moment gave
    now = f"median {statistics.median(rounds) / 1e9:.1f}, best {max(rounds) / 1e9:.1f}"
    return f"limit: {context.limit_text()}; STREAM in these rounds: {now}"


def _paired_note(case: Case, rounds: list[float]) -> str:
    pairs = zip(case.race.ours.seconds, rounds, strict=True)
    shares = [case.nbytes / seconds / stream for seconds, stream in pairs]
    return f"ours over STREAM's best of the same round: median {statistics.median(shares):.0%}"


def _target(case: Case) -> Target:
    least = case.fraction(case.race.ours) or 0.0
    median = case.fraction(case.race.ours, median=True) or 0.0
    text = f"mix float32 warm at {least:.0%} of the best STREAM (median {median:.0%})"
    return Target(f"{text}, at least 80 %", least, least >= 0.8)


def run(context: Context) -> list[Case]:
    """float32 warm (rows as they come, then apart) and fresh, then the two half-width types."""
    kinds = (("float32", False), ("float32", True), ("bfloat16", False), ("float16", False))
    cases = [_case(context, dtype, fresh) for dtype, fresh in kinds]
    cases.insert(1, _case(context, "float32", False, _APART))
    wide = cases[0].race.ours.median
    for case in cases[3:]:
        ratio = case.race.ours.median / wide
        case.notes.append(f"time over that of float32: {ratio:.2f} (half the bytes: 0.50 at best)")
    return cases

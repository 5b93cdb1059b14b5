"""Memory bandwidth as STREAM counts it, the limit that the other benchmarks are held against."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

from report import Case, Context
from timing import HERE, Contestant, Race, race
from worker import Ready

KERNELS = ("copy", "scale", "add", "triad")
_WORDS = (2, 2, 3, 3)  # that STREAM counts for an element of each kernel
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
# else the compiler makes copy a call of memcpy, which picks its own stores
_NO_MEMCPY = "-fno-tree-loop-distribute-patterns"


def library(folder: str) -> str:
    """Compile stream.cpp into the folder, once."""
    path = Path(folder) / "stream.so"
    if not path.exists():
        source = str(HERE / "stream.cpp")
        subprocess.run(["g++", *_FLAGS, _NO_MEMCPY, source, "-o", str(path)], check=True)
    return str(path)


def passes(path: str, count: int, threads: int, repeats: int) -> Ready:
    """A contestant whose run is `repeats` passes of all eight kernels."""
    stream = ctypes.CDLL(path)
    stream.stream_make.argtypes = (ctypes.c_size_t, ctypes.c_int)
    if stream.stream_make(count, threads):
        raise MemoryError(f"three arrays of {count} doubles")
    best = (ctypes.c_double * 8)(*[float("inf")] * 8)

    rounds: list[float] = []

    def bandwidths(seconds: Any) -> list[float]:
        return [8 * count * words / s for words, s in zip(_WORDS * 2, seconds, strict=True)]

    def run() -> None:
        now = (ctypes.c_double * 8)(*[float("inf")] * 8)
        stream.stream_run(repeats, now)
        rounds.append(max(bandwidths(now)))
        best[:] = [min(pair) for pair in zip(best, now, strict=True)]

    return Ready(run, facts=lambda: {"bandwidth": bandwidths(best), "rounds": rounds[1:]})


def contestant(context: Context, threads: int, repeats: int, name: str = "STREAM") -> Contestant:
    """STREAM over three arrays, 768 MiB together (256 in the small form)."""
    count = (2**25 if not context.small else 3 * 2**22) // 4 * 4
    arguments = {"path": library(context.folder), "count": count, "threads": threads}
    return Contestant(name, "bench_stream:passes", {**arguments, "repeats": repeats})


def remember(context: Context, found: Race, name: str, threads: int) -> None:
    """Raise the limit of the context to the best figure of this race."""
    for k, figure in enumerate(found[name].facts["bandwidth"]):
        if figure > context.bandwidth:
            context.bandwidth = figure
            stores = "non-temporal" if k >= 4 else "ordinary"
            plural = "threads" if threads > 1 else "thread"
            context.bandwidth_name = f"{KERNELS[k % 4]}, {stores}, {threads} {plural}"


def run(context: Context) -> list[Case]:
    """Best of 12 passes (6 in the small form) for 1 thread and for all."""
    figures = {}
    counts = sorted({1, context.threads})
    others = steal = 0.0
    for threads in counts:
        found = race([contestant(context, threads, 2)], threads=threads, repeats=context.repeats(5))
        remember(context, found, "STREAM", threads)
        figures[threads] = found["STREAM"].facts["bandwidth"]
        others, steal = max(others, found.others), max(steal, found.steal)
    header = ["", *(f"{stores} {t} thr" for t in counts for stores in ("ordinary", "non-temp"))]
    rows = [
        [kernel, *(f"{figures[t][k + nt] / 1e9:.1f}" for t in counts for nt in (0, 4))]
        for k, kernel in enumerate(KERNELS)
    ]
    passes_each = 2 * (context.repeats(5) + 1)
    notes = [
        f"copy and scale count 2 words for an element, add and triad 3; best of {passes_each} passes each",
        f"the limit below is the best figure so far in this run, here {context.limit_text()}",
    ]
    case = Case("stream", "STREAM, GB/s", Race([], others, steal), notes=notes)
    case.table = [header, *rows]
    case.data = {str(t): dict(zip(_names(), figures[t], strict=True)) for t in counts}
    return [case]


def _names() -> list[str]:
    return [f"{kernel} {stores}" for stores in ("ordinary", "non-temporal") for kernel in KERNELS]

"""How many threads a call uses."""

from __future__ import annotations

import operator
import os
from functools import cache

from weightshare.errors import ArgumentError, ArgumentTypeError

_MOST = 1024


def available_cores() -> int:
    """Cores that this process may use: its affinity, cut by the control group's quota."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(cores, _quota()))


@cache
def _quota() -> int:
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            limit, period = file.read().split()[:2]
        return _MOST if limit == "max" else -(-int(limit) // int(period))
    except (OSError, ValueError):
        return _MOST


def resolve_threads(threads: int | None) -> int:
    """Threads to use: as told, else ``OMP_NUM_THREADS``, else the cores this process may use.

    Raises
    ------
    ArgumentError
        If ``threads`` is not a number from 1 to 1024.
    """
    if threads is None:
        first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        return min(int(first), _MOST) if first.isdigit() and int(first) > 0 else available_cores()
    try:
        number = operator.index(threads)
    except TypeError:
        raise ArgumentTypeError(f"threads: expected an integer, got {threads!r}") from None
    if isinstance(threads, bool) or not 1 <= number <= _MOST:
        raise ArgumentError(f"threads: expected 1 to {_MOST}, or None, got {threads!r}")
    return number

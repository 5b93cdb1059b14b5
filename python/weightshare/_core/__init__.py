"""The compiled core: picks the instruction-set level that this CPU runs, once, at import.

``WEIGHTSHARE_ISA`` overrides the choice (``v3`` or ``v2`` on x86-64, ``plain`` elsewhere).
Only arrays and numbers cross into the core; nothing of it is ever in a pickle.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from weightshare._core import cpu_probe


def _choose(wanted: str | None, runnable: tuple[str, ...]) -> str:
    if not wanted:
        if not runnable:
            raise ImportError("weightshare needs an x86-64-v2 CPU (SSE4.2, POPCNT), or newer")
        return runnable[0]
    if wanted not in runnable:
        known = ", ".join(runnable)
        raise ImportError(f"WEIGHTSHARE_ISA: this CPU runs {known}; got {wanted!r}")
    return wanted


level = _choose(os.environ.get("WEIGHTSHARE_ISA"), cpu_probe.levels())
_native = import_module(f"weightshare._core.{level}.native")

if TYPE_CHECKING:
    from weightshare._core import (
        elementary,
        elementwise,
        fusion,
        integrity,
        mixing,
        network,
        parallel,
        selection,
        similarity,
        sparsity,
        spherical,
        step,
    )
else:
    for _room in (
        "elementary",
        "elementwise",
        "fusion",
        "integrity",
        "mixing",
        "network",
        "parallel",
        "selection",
        "similarity",
        "sparsity",
        "spherical",
        "step",
    ):
        globals()[_room] = sys.modules[f"{__name__}.{_room}"] = getattr(_native, _room)

# libgomp's threads do not survive a fork: a child that used them would hang.
os.register_at_fork(after_in_child=parallel.after_fork_in_child)

__all__ = [
    "elementary",
    "elementwise",
    "fusion",
    "integrity",
    "level",
    "mixing",
    "network",
    "parallel",
    "selection",
    "similarity",
    "sparsity",
    "spherical",
    "step",
]

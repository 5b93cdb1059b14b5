"""What importing costs, in fresh processes: the package after NumPy, its first use, the command."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from report import Case, Context, Target
from timing import Contestant, Result, command, race
from worker import Ready

_MOST_SECONDS = 0.060
_MIX = "ws.mix(numpy.ones((2, 4), numpy.float32), [0.5, 0.5])"
# What runs before the clock, and what is timed.
_CODES = {
    "import weightshare, after numpy": ("import numpy", "import weightshare"),
    "the same and the first ws.mix": ("import numpy", f"import weightshare as ws; {_MIX}"),
    "the same and every public name": (
        "import numpy",
        "import weightshare as ws; [getattr(ws, name) for name in ws.__all__]",
    ),
    "import numpy": ("", "import numpy"),
    "import ml_dtypes, after numpy": ("import numpy", "import ml_dtypes"),
}


def timed_inside(before: str, code: str) -> Ready:
    """A fresh interpreter that times a piece of code by itself."""
    program = (
        f"{before}\nimport time\nbegan = time.perf_counter()\n{code}\n"
        "print(time.perf_counter() - began)"
    )
    inside: list[float] = []

    def run() -> None:
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        inside.append(float(found.stdout))

    return Ready(run, facts=lambda: {"inside": inside[1:]})


def whole(arguments: list[str]) -> Ready:
    """A process from its start to its end."""
    return Ready(lambda: subprocess.run(arguments, capture_output=True, check=True))


def run(context: Context) -> list[Case]:
    """One table, in milliseconds."""
    contestants = [
        Contestant(name, "bench_import:timed_inside", {"before": before, "code": code})
        for name, (before, code) in _CODES.items()
    ]
    commands = {
        "weightshare --help, whole process": [*command(), "--help"],
        "python -c pass, whole process": [sys.executable, "-c", "pass"],
    }
    contestants += [
        Contestant(name, "bench_import:whole", {"arguments": arguments})
        for name, arguments in commands.items()
    ]
    repeats = 3 if context.small else 15
    found = race(contestants, threads=context.threads, repeats=repeats)
    case = Case("import", f"import time, ms: {repeats} fresh processes each, in turn", found)
    case.table = [["", "least", "median"], *map(_row, found.results)]
    median = statistics.median(_seconds(found.ours))
    text = f"import weightshare adds {1e3 * median:.1f} ms to NumPy's, at most 60"
    case.targets = [Target(text, median, median <= _MOST_SECONDS)]
    case.notes = ["imports are timed inside the process, with the files in the page cache"]
    case.data = {"milliseconds": {r.name: [1e3 * s for s in _seconds(r)] for r in found.results}}
    return [case]


def _seconds(result: Result) -> list[float]:
    inside: list[float] = result.facts.get("inside", result.seconds)
    return inside


def _row(result: Result) -> list[str]:
    seconds: Any = _seconds(result)
    return [result.name, f"{1e3 * min(seconds):.1f}", f"{1e3 * statistics.median(seconds):.1f}"]

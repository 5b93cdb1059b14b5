"""What a case is, and how it is printed: aligned tables under 100 columns, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from timing import LOAD_TO_WARN_OF, Race, Result

_PACKAGES = ("numpy", "ml_dtypes", "torch", "safetensors")
_COLUMNS = (
    *("", "least s", "median s", "GB/s", "of limit", "ours/it", "error", "RSS MB"),
    *("others",),
)


@dataclass
class Context:
    """What every benchmark is told: its size, its threads, its folder, and the limit found so far."""

    small: bool
    threads: int
    folder: str
    bandwidth: float = 0.0
    bandwidth_name: str = "not measured"
    mergekit: str | None = None
    layers: int = 4
    methods: tuple[str, ...] = ()
    peer_repeats: int = 2

    def size(self, full: int) -> int:
        """The size of a case, a sixteenth in the small form."""
        return full // 16 if self.small else full

    def repeats(self, full: int = 7) -> int:
        """Runs of each contestant."""
        return min(full, 2) if self.small else full

    def torch(self) -> bool:
        """Whether torch runs too: not in the small form, since its import takes seconds."""
        return not self.small and find_spec("torch") is not None

    def limit_text(self) -> str:
        """The limit in words."""
        return f"{self.bandwidth / 1e9:.1f} GB/s ({self.bandwidth_name})"


@dataclass
class Target:
    """What has to be reached, what was, and whether that is enough."""

    text: str
    value: float
    reached: bool


@dataclass
class Case:
    """One table. `nbytes` are those that the work has to move at least; `limit` in bytes a second."""

    name: str
    title: str
    race: Race
    nbytes: int = 0
    limit: float = 0.0
    notes: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    most_error: float | None = None
    by_least: bool = False
    table: list[list[str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        """Whether our own result is further from float64's than the case allows."""
        error = self.race.ours.facts.get("error") if self.race.results else None
        # not above, but not within: an error of NaN is wrong too
        return self.most_error is not None and not (error is not None and error <= self.most_error)

    def ratio(self, peer: Result) -> float:
        """Our time over the peer's: medians, or the least of the runs where the case says so."""
        ours = self.race.ours
        return ours.least / peer.least if self.by_least else ours.median / peer.median

    def fraction(self, result: Result, *, median: bool = False) -> float | None:
        """The fraction of the limit reached in the least (or median) run."""
        if not (self.nbytes and self.limit) or result.facts.get("no_limit"):
            return None
        return self.nbytes / (result.median if median else result.least) / self.limit

    def as_json(self) -> dict[str, Any]:
        """The case as plain numbers and text."""
        plain = {
            "name": self.name,
            "title": self.title,
            "bytes": self.nbytes,
            "limit_bytes_per_second": self.limit,
            "load_of_others": self.race.others,
            "steal": self.race.steal,
            "ratio_by": "least" if self.by_least else "median",
            "notes": self.notes,
            "targets": [vars(target) for target in self.targets],
            "results": [self._result_json(result) for result in self.race.results],
        }
        return plain | self.data

    def _result_json(self, result: Result) -> dict[str, Any]:
        return {
            "name": result.name,
            "seconds": result.seconds,
            "least": result.least,
            "median": result.median,
            "fraction_of_limit": self.fraction(result),
            "ours_over_it": self.ratio(result),
            "peak_rss": result.peak_rss,
            **result.facts,
        }


def print_case(case: Case, *, judged: bool = True) -> None:
    """Print one table with its notes, its targets and the load of others."""
    below = "BELOW TARGET" if judged else "below (small form: not judged)"
    print(f"\n{case.title}")
    if case.nbytes:
        print(f"  moves at least {case.nbytes / 1e9:.3f} GB", end="")
        print(f"; limit {case.limit / 1e9:.1f} GB/s" if case.limit else "")
    rows = case.table or [list(_COLUMNS[:-1]), *(_row(case, r) for r in case.race.results)]
    for line in aligned(rows):
        print(f"  {line}")
    for note in case.notes:
        print(f"  {note}")
    for target in case.targets:
        print(f"  {'reached' if target.reached else below}: {target.text}")
    if case.wrong:
        print(f"  WRONG: our error is above {case.most_error:g}")
    if case.race.others > LOAD_TO_WARN_OF or case.race.steal > LOAD_TO_WARN_OF:
        busy, stolen = case.race.others, case.race.steal
        print(f"  WARNING: other processes took {busy:.0%} of the cores, the host {stolen:.0%}")
    sys.stdout.flush()


def _row(case: Case, result: Result) -> list[str]:
    fraction = case.fraction(result)
    error = result.facts.get("error")
    speed = case.nbytes / result.least / 1e9 if case.nbytes else None
    return [
        result.name,
        f"{result.least:.4g}",
        f"{result.median:.4g}",
        "" if speed is None or result.facts.get("no_limit") else f"{speed:.1f}",
        "" if fraction is None else f"{fraction:.0%}",
        "" if result is case.race.ours else f"{case.ratio(result):.3f}",
        "" if error is None else f"{error:.1e}",
        f"{result.facts.get('peak_rss', result.peak_rss) / 1e6:.0f}",
    ]


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines of equal columns, the first to the left and the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])  # noqa: B905
        for row in rows
    ]


def machine(threads: int) -> dict[str, str]:
    """What this was measured on."""
    code = "from weightshare._core.versions import versions; import json; print(json.dumps(versions()))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    ours: dict[str, str] = json.loads(found)
    packages = {name: _version(name) for name in _PACKAGES}
    return {
        "cpu": _first_line("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(threads),
        "memory": _first_line("/proc/meminfo", "MemTotal"),
        "huge pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "weightshare": f"{ours['weightshare']}, level {ours['instruction set']}, {ours['compiler']}",
        **packages,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _first_line(path: str, key: str) -> str:
    for line in _read(path).splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return "unknown"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return "unknown"

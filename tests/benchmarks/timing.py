"""How every case is measured: contestants in turn, one process each, threads pinned by its own knob.

A **race** warms each contestant once, then runs them in rounds, forwards and backwards in turn, so
that a drift of the machine meets all alike. The load of other processes is taken from /proc/stat.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOAD_TO_WARN_OF = 0.05

_KNOBS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Contestant:
    """What runs: a factory ``module:function`` that returns a `worker.Ready`, and its arguments."""

    name: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """What one contestant did in a race."""

    name: str
    seconds: list[float] = field(default_factory=list)
    peak_rss: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def least(self) -> float:
        """The shortest of the runs."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.seconds)


@dataclass
class Race:
    """The results, ours first, and the share of all cores that others took meanwhile."""

    results: list[Result]
    others: float
    steal: float

    def __getitem__(self, name: str) -> Result:
        return next(result for result in self.results if result.name == name)

    @property
    def ours(self) -> Result:
        """The first contestant."""
        return self.results[0]


class ContestantError(RuntimeError):
    """The process of a contestant ended before it was told to."""


def environment(threads: int) -> dict[str, str]:
    """The environment in which every library uses that many threads."""
    return {**os.environ, **dict.fromkeys(_KNOBS, str(threads)), "PYTHONDONTWRITEBYTECODE": "1"}


class _Runner:
    """The worker process of one contestant."""

    def __init__(self, contestant: Contestant, threads: int) -> None:
        self.result = Result(contestant.name)
        self.cpu = 0.0
        module, _, function = contestant.factory.partition(":")
        command = [sys.executable, str(HERE / "worker.py"), module, function]
        self.process = subprocess.Popen(
            [*command, json.dumps(contestant.arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(threads),
        )

    def ask(self, word: str | None = None) -> dict[str, Any]:
        """Send a word, if any, and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if word is not None:
            with contextlib.suppress(BrokenPipeError):
                print(word, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise ContestantError(f"{self.result.name}: its process ended with {code}")
        answer: dict[str, Any] = json.loads(line)
        self.cpu = answer.get("cpu", self.cpu)
        return answer

    def close(self) -> None:
        """End the process, kindly when it still listens."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=20)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def race(contestants: Sequence[Contestant], *, threads: int, repeats: int) -> Race:
    """Warm each contestant once, then run all of them in turn, `repeats` times each."""
    with contextlib.ExitStack() as opened:
        runners = []
        for contestant in contestants:
            runner = _Runner(contestant, threads)
            opened.callback(runner.close)
            runner.ask()  # made ready one after another: making data is work too
            runners.append(runner)
        for runner in runners:
            runner.ask("run")
        clock = _MachineClock()
        spent = sum(runner.cpu for runner in runners) + time.process_time()
        for number in range(repeats):
            for runner in runners if number % 2 == 0 else reversed(runners):
                time.sleep(0.02)  # threads that spin after their work have to be asleep again
                runner.result.seconds.append(runner.ask("run")["seconds"])
        spent = sum(runner.cpu for runner in runners) + time.process_time() - spent
        others, steal = clock.others(spent)
        for runner in runners:
            end = runner.ask("end")
            runner.result.peak_rss = end["peak_rss"]
            runner.result.facts = end["facts"]
    return Race([runner.result for runner in runners], others, steal)


def perform(factory: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a factory in a process of its own, outside any race, and return its facts."""
    runner = _Runner(Contestant(factory, factory, arguments), 1)
    with contextlib.closing(runner):
        runner.ask()
        facts: dict[str, Any] = runner.ask("end")["facts"]
        return facts


def command() -> list[str]:
    """How ``weightshare`` is called: the script beside this Python, else through the package."""
    script = Path(sys.executable).parent / "weightshare"
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "from weightshare.cli import main; main()"]


class _MachineClock:
    """Busy and stolen time of all cores since it was made, from /proc/stat."""

    def __init__(self) -> None:
        self.start = _machine_seconds()

    def others(self, ours: float) -> tuple[float, float]:
        """Shares of all cores' time: what others used, and what the host took away."""
        busy, stolen, total = (
            now - then for now, then in zip(_machine_seconds(), self.start, strict=True)
        )
        if total <= 0:
            return 0.0, 0.0
        return max(0.0, busy - ours) / total, stolen / total


def _machine_seconds() -> tuple[float, float, float]:
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0.0, 0.0, 0.0
    user, nice, system, idle, waiting, irq, soft, stolen = ticks
    busy = user + nice + system + irq + soft
    hertz = os.sysconf("SC_CLK_TCK")
    return busy / hertz, stolen / hertz, (busy + idle + waiting + stolen) / hertz

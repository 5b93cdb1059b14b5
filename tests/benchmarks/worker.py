"""The process of one contestant: makes it ready, runs it when told to, answers in lines of JSON.

Started by `timing.race` as ``python worker.py MODULE FACTORY ARGUMENTS`` with its threads pinned in
the environment, so that every library reads its own knob when it is first imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass
class Ready:
    """A contestant that is ready to run; `before` is not timed, `facts` are asked for at the end."""

    run: Callable[[], object]
    before: Callable[[], object] | None = None
    facts: Callable[[], dict[str, Any]] | None = None


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def peak_rss() -> int:
    """The largest resident memory of this process so far, in bytes."""
    # getrusage would also count the parent's memory at the fork
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(module: str, factory: str, arguments: str) -> None:
    """Answer ``run`` and ``end`` on stdin until the end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers

    def say(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    ready: Ready = getattr(import_module(module), factory)(**json.loads(arguments))
    say(cpu=cpu_seconds())
    for line in sys.stdin:
        if line.strip() == "end":
            break
        if ready.before is not None:
            ready.before()
        began = time.perf_counter()
        ready.run()
        say(seconds=time.perf_counter() - began, cpu=cpu_seconds())
    peak = peak_rss()  # before the check, which is not what is measured
    say(peak_rss=peak, facts=ready.facts() if ready.facts is not None else {})


if __name__ == "__main__":
    # the factories import Ready from `worker`: let it be this very module
    sys.modules["worker"] = sys.modules["__main__"]
    serve(*sys.argv[1:4])

"""Measure weightshare beside its peers: ``python tests/benchmarks [--small] [--only NAME]``.

Needs numpy; torch, safetensors and g++ where they are peers or measure the limit. Exit code 1 if a
result of ours is wrong; speed below its target is printed, not punished: machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from report import Case, Context, machine, print_case

_ROOMS = ("stream", "mixing", "similarity", "step", "checkpoint", "merging", "import")
_NEED_THE_LIMIT = {"mixing", "similarity", "step", "checkpoint"}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the same numbers as JSON")
    parser.add_argument("--only", action="append", choices=_ROOMS, help="may be given again")
    parser.add_argument("--small", action="store_true", help="a sixteenth of the size, few repeats")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--mergekit",
        metavar="FILE",
        default=os.environ.get("WEIGHTSHARE_MERGEKIT"),
        help="its mergekit-yaml program, to race with; or WEIGHTSHARE_MERGEKIT",
    )
    parser.add_argument(
        "--layers", type=int, default=4, help="of the models that are merged; 4 are 0.63 GB each"
    )
    parser.add_argument(
        "--method", action="append", default=[], help="merge by this one only; may be given again"
    )
    parser.add_argument("--peer-repeats", type=int, default=2, help="runs of mergekit")
    parser.add_argument("--folder", help="where temporary files go (12 GB in full form)")
    return parser.parse_args()


def rooms_of(only: list[str] | None) -> list[str]:
    """The rooms to run, with the limit first where one of them needs it."""
    wanted = [room for room in _ROOMS if only is None or room in only]
    if "stream" not in wanted and _NEED_THE_LIMIT & set(wanted):
        wanted.insert(0, "stream")
    return wanted


def main() -> int:
    """Run, print, and write the JSON."""
    given = arguments()
    # a terminated run must still remove its files and end its workers
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    facts = machine(given.threads)
    print("\n".join(f"{name:<12} {value}" for name, value in facts.items()))
    print("ours/it: our time over the peer's, medians unless said; of limit and GB/s: least run;")
    print("error: against float64, as each case says; RSS: peak of the contestant's whole process")
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="weightshare-bench-") as folder:
        context = Context(
            *(given.small, given.threads, folder),
            mergekit=given.mergekit,
            layers=given.layers,
            methods=tuple(given.method),
            peer_repeats=given.peer_repeats,
        )
        for room in rooms_of(given.only):
            print(f"\n--- {room}, after {time.monotonic() - began:.0f} s")
            for case in import_module(f"bench_{room}").run(context):
                cases.append(case)
                print_case(case, judged=not given.small)
    remark = ", not judged in the small form" if given.small else ""
    below = [
        (case.name, target.text) for case in cases for target in case.targets if not target.reached
    ]
    print(f"\n{time.monotonic() - began:.0f} s in all; {len(below)} below target{remark}")
    for name, text in below:
        print(f"  {name}: {text}")
    if given.json:
        form = {"small": given.small, "machine": facts, "cases": [case.as_json() for case in cases]}
        Path(given.json).write_text(json.dumps(form, indent=1) + "\n", encoding="utf-8")
    return int(any(case.wrong for case in cases))


if __name__ == "__main__":
    sys.exit(main())

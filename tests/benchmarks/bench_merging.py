"""`weightshare merge` of three bfloat16 checkpoints, a whole process, beside `cp` of the same bytes.

The worker of a contestant imports no NumPy until it checks: the peak memory that the kernel tells of a
child would else begin with its parent's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from report import Case, Context, Target
from timing import Contestant, Result, command, perform, race
from worker import Ready

WEIGHTS = (0.5, 0.3, 0.2)
_MODELS = ("a", "b", "c")
_FILE = "model.safetensors"
_MOST_TIME = 1.5
_MOST_MEMORY = 512e6
_RECIPES = {
    "linear": {
        "merge_method": "linear",
        "models": [
            {"model": name, "parameters": {"weight": weight}}
            for name, weight in zip(_MODELS, WEIGHTS, strict=True)
        ],
    },
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "c",
        "models": [
            {"model": name, "parameters": {"weight": weight}}
            for name, weight in zip(_MODELS[:2], WEIGHTS[:2], strict=True)
        ],
        "parameters": {"normalize": False, "lambda": 1.0},
    },
}


def _shapes(small: bool) -> dict[str, tuple[int, ...]]:
    shrink = 4 if small else 1
    width, inner, words = 2048 // shrink, 5632 // shrink, 24000 // shrink
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width)}
    for layer in range(4):
        stem = f"model.layers.{layer}"
        found |= {f"{stem}.self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
        found |= {f"{stem}.mlp.{x}_proj.weight": (inner, width) for x in ("gate", "up")}
        found[f"{stem}.mlp.down_proj.weight"] = (width, inner)
        found[f"{stem}.input_layernorm.weight"] = (width,)
    return found


def sources(folder: str, small: bool) -> Ready:
    """Write the three models and the recipes; no contestant."""
    import numpy as np
    from material import tiles

    import weightshare as ws

    for name, tile in zip(_MODELS, tiles(3, dtype="bfloat16", seed=5), strict=True):
        made = {key: np.resize(tile, shape) for key, shape in _shapes(small).items()}
        ws.save_checkpoint(os.path.join(folder, name), made)
        config = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
        Path(folder, name, "config.json").write_text(config, encoding="utf-8")
    for method, recipe in _RECIPES.items():
        text = json.dumps({**recipe, "dtype": "bfloat16"})  # JSON is YAML too
        Path(folder, f"{method}.yml").write_text(text, encoding="utf-8")
    size = os.path.getsize(os.path.join(folder, "a", _FILE))
    return Ready(lambda: None, facts=lambda: {"bytes": size})


def merge(folder: str, method: str, threads: int, small: bool) -> Ready:
    """The command line, then fsync of what it wrote."""
    out = os.path.join(folder, f"merged-{method}")
    arguments = ["merge", f"{method}.yml", out, "--threads", str(threads), "--quiet"]
    peaks: list[int] = []

    def run() -> None:
        process = subprocess.Popen([*command(), *arguments], cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"weightshare merge ended with {process.returncode}")
        peaks.append(usage.ru_maxrss * 1024)
        subprocess.run(["sync", os.path.join(out, _FILE)], check=True)

    def facts() -> dict[str, Any]:
        return {"peak_rss": max(peaks), "error": _error(out, method), "no_limit": True}

    return Ready(run, lambda: _clear(out), facts)


def _error(out: str, method: str) -> float:
    """Largest error over the largest value, of the first tile of every tensor that has one."""
    import numpy as np
    from material import TILE, tiles

    import weightshare as ws

    a, b, c = tiles(3, dtype="bfloat16", seed=5).astype(np.float64)
    first, second, third = WEIGHTS
    exact = first * a + second * b + third * c
    if method == "task_arithmetic":
        exact = c + first * (a - c) + second * (b - c)
    wrong = 0.0
    with ws.open_checkpoint(out) as merged:
        for name in merged:
            found = merged[name].reshape(-1)[:TILE].astype(np.float64)
            wrong = max(wrong, float(np.abs(found - exact[: len(found)]).max()))
    return wrong / float(np.abs(exact).max())


def copy(folder: str, kind: str) -> Ready:
    """`cp` and `sync`: of four files, or of what a merge reads and writes and no byte more."""
    out = os.path.join(folder, f"copied-{kind}")
    a, b, c = (os.path.join(folder, name, _FILE) for name in _MODELS)
    # the last file stands for the output: it is as large as an input
    copied = {"four": (a, b, c, a), "one": (a,)}[kind]

    def run() -> None:
        os.mkdir(out)
        if kind == "one":
            for name in (b, c):
                subprocess.run(
                    ["dd", f"if={name}", "of=/dev/null", "bs=1M", "status=none"], check=True
                )
        targets = [os.path.join(out, f"{k}.safetensors") for k in range(len(copied))]
        for name, target in zip(copied, targets, strict=True):
            subprocess.run(["cp", name, target], check=True)
        subprocess.run(["sync", *targets], check=True)

    return Ready(run, lambda: _clear(out), lambda: {"no_limit": True})


def _clear(out: str) -> None:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()


def run(context: Context) -> list[Case]:
    """One race of two merges and two ways to copy."""
    told: dict[str, Any] = {"folder": context.folder}
    nbytes = perform("bench_merging:sources", {**told, "small": context.small})["bytes"]
    os.sync()
    merged = {**told, "threads": context.threads, "small": context.small}
    contestants = [
        *(
            Contestant(f"weightshare merge, {m}", "bench_merging:merge", {**merged, "method": m})
            for m in _RECIPES
        ),
        Contestant("cp of 4 files + sync", "bench_merging:copy", {**told, "kind": "four"}),
        Contestant("read 2, cp 1, + sync", "bench_merging:copy", {**told, "kind": "one"}),
    ]
    found = race(contestants, threads=context.threads, repeats=min(5, context.repeats()))
    title = f"merge three bfloat16 checkpoints of {nbytes / 1e9:.2f} GB each"
    case = Case("merge", f"{title}, whole process; ours/it: linear, least runs", found)
    case.by_least, case.most_error = True, 4e-3
    case.notes = _notes(nbytes)
    case.targets = _targets(case)
    return [case]


def _notes(nbytes: int) -> list[str]:
    each = f"{nbytes / 1e9:.2f} GB"
    return [
        f"a merge reads 3 x {each} (page cache) and writes 1 x {each}, then fsync",
        f"cp of 4 files: the 3 inputs and one more of the output's size, 4 x {each} read and",
        "  written, all synced: inputs + output, which the target names",
        "read 2, cp 1: dd of two inputs to /dev/null, cp of the third: the bytes a merge moves,",
        "  3 read and 1 written and synced; the harder figure",
        "RSS of a merge: the kernel's peak for the child; those of cp are of the Python around it",
    ]


def _targets(case: Case) -> list[Target]:
    copied = case.race["cp of 4 files + sync"].least
    targets = []
    for result in case.race.results[:2]:
        targets.append(_time_target(result, copied))
        peak = result.facts["peak_rss"]
        text = f"{result.name}: peak {peak / 1e6:.0f} MB, at most {_MOST_MEMORY / 1e6:.0f}"
        targets.append(Target(text, peak, peak <= _MOST_MEMORY))
    return targets


def _time_target(result: Result, copied: float) -> Target:
    ratio = result.least / copied
    text = f"{result.name}: {ratio:.2f} x cp of 4 files, at most {_MOST_TIME}"
    return Target(text, ratio, ratio <= _MOST_TIME)

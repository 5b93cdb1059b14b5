"""`weightshare merge` of bfloat16 checkpoints by every method, a whole process, beside `cp` and mergekit.

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
from timing import Contestant, Race, Result, command, perform, race
from worker import Ready

_MODELS = ("a", "b", "c")
_FILE = "model.safetensors"
_CHECKED = "model.layers.0.self_attn.k_proj.weight"
_MOST_TIME = 1.5
_MOST_MEMORY = 512e6
_MOST_ERROR = 4e-3
_COPY, _LEAST_COPY = "cp of {} files + sync", "read {}, cp 1, + sync"
_COLUMNS = ("", "least s", "GB/s", "x cp", "x least cp", "RSS MB", "error")
_PEER_COLUMNS = ("mergekit s", "faster", "its RSS", "its error")


def _shapes(small: bool, layers: int) -> dict[str, tuple[int, ...]]:
    shrink = 4 if small else 1
    width, inner, words = 2048 // shrink, 5632 // shrink, 27200 // shrink
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width)}
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        found |= {f"{stem}.self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
        found |= {f"{stem}.mlp.{x}_proj.weight": (inner, width) for x in ("gate", "up")}
        found[f"{stem}.mlp.down_proj.weight"] = (width, inner)
        found |= {f"{stem}.{x}_layernorm.weight": (width,) for x in ("input", "post_attention")}
    return found | {"model.norm.weight": (width,), "lm_head.weight": (words, width)}


def _config(shapes: dict[str, tuple[int, ...]], layers: int) -> str:
    words, width = shapes["lm_head.weight"]
    told = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        **{"vocab_size": words, "hidden_size": width, "num_hidden_layers": layers},
        "intermediate_size": shapes["model.layers.0.mlp.up_proj.weight"][0],
        **{"num_attention_heads": 16, "num_key_value_heads": 16, "torch_dtype": "bfloat16"},
        **{"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
    }
    return json.dumps(told)


def _rows() -> Any:
    """One tile of the base's numbers, and of two fine-tunes of it."""
    from material import tiles

    drawn = tiles(3, mean=0.0, seed=5)
    drawn *= [[0.01], [0.01], [0.02]]
    drawn[:2] += drawn[2]
    return drawn


def sources(folder: str, small: bool, layers: int) -> Ready:
    """Write the three models and the recipes; no contestant."""
    import ml_dtypes
    import numpy as np
    from merge_formulas import TASKS

    import weightshare as ws

    shapes = _shapes(small, layers)
    for name, row in zip(_MODELS, _rows().astype(ml_dtypes.bfloat16), strict=True):
        made = {key: np.resize(row, shape) for key, shape in shapes.items()}
        ws.save_checkpoint(os.path.join(folder, name), made)
        Path(folder, name, "config.json").write_text(_config(shapes, layers), encoding="utf-8")
    for task in TASKS.values():
        entries = [
            {
                "model": os.path.join(folder, name),
                "parameters": {key: values[k] for key, values in task.per_model.items()},
            }
            for k, name in enumerate(_MODELS[: task.models])
        ]
        recipe = {"merge_method": task.method, "models": entries, "parameters": task.shared}
        if task.base:
            recipe["base_model"] = os.path.join(folder, "c")
        text = json.dumps({**recipe, "dtype": "bfloat16"})  # JSON is YAML too
        Path(folder, f"{task.method}.yml").write_text(text, encoding="utf-8")
    size = os.path.getsize(os.path.join(folder, "a", _FILE))
    tasks = {t.method: [t.files, t.elementwise, t.times_faster] for t in TASKS.values()}
    missing = sorted(set(TASKS) - set(ws.methods()))
    return Ready(lambda: None, facts=lambda: {"bytes": size, "tasks": tasks, "missing": missing})


def merge(folder: str, method: str, threads: int, out: str, check: bool) -> Ready:
    """The command line, then fsync of what it wrote."""
    arguments = ["merge", f"{method}.yml", out, "--threads", str(threads), "--quiet"]
    return _process([*command(), *arguments], folder, method, out, check=check)


def mergekit(folder: str, method: str, program: str, out: str) -> Ready:
    """The released mergekit's command line; to warm it up, its help is enough, which loads it."""
    arguments = [program, f"{method}.yml", out, "--quiet", "--no-copy-tokenizer"]
    return _process(arguments, folder, method, out, check=True, warm=[program, "--help"])


def _process(
    arguments: list[str],
    folder: str,
    method: str,
    out: str,
    *,
    check: bool,
    warm: list[str] | None = None,
) -> Ready:
    target, peaks, waiting = os.path.join(folder, out), [], [warm] if warm else []

    def run() -> None:
        called = waiting.pop() if waiting else arguments
        # what a peer says on stderr is not ours to show
        errors = subprocess.DEVNULL if warm else None
        told = subprocess.Popen(called, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(told.pid, 0)
        told.returncode = os.waitstatus_to_exitcode(status)
        if told.returncode:
            raise RuntimeError(f"{' '.join(called)} ended with {told.returncode}")
        if called is warm:
            return
        peaks.append(usage.ru_maxrss * 1024)
        written = [str(path) for path in Path(target).glob("*.safetensors")]
        subprocess.run(["sync", *written], check=True)

    def facts() -> dict[str, Any]:
        told = {"peak_rss": max(peaks, default=0), "no_limit": True}
        if check:
            told["error"] = _error(target, folder, method)
            _clear(target)
        return told

    return Ready(run, lambda: _clear(target), facts)


def _error(out: str, folder: str, method: str) -> float:
    """The error of one matrix of a layer, by the formula in float64."""
    import numpy as np
    from merge_formulas import TASKS, error_of

    import weightshare as ws

    models = []
    for name in (*(os.path.join(folder, name) for name in _MODELS), out):
        with ws.open_checkpoint(name) as checkpoint:
            models.append(checkpoint[_CHECKED].astype(np.float64))
    return error_of(TASKS[method], models[3], models[:3], models[2])


def copy(folder: str, files: int, least: bool) -> Ready:
    """`cp` and `sync`: of as many files as a merge reads and writes; or read all and write one."""
    out = os.path.join(folder, "out")
    given = [os.path.join(folder, name, _FILE) for name in _MODELS]
    # an input stands for the output: it is as large
    copied = given[:1] if least else (given * 2)[:files]

    def run() -> None:
        os.mkdir(out)
        for name in given[1 : files - 1] if least else ():
            arguments = ["dd", f"if={name}", "of=/dev/null", "bs=1M", "status=none"]
            subprocess.run(arguments, check=True)
        targets = [os.path.join(out, f"{k}.safetensors") for k in range(len(copied))]
        for name, target in zip(copied, targets, strict=True):
            subprocess.run(["cp", name, target], check=True)
        subprocess.run(["sync", *targets], check=True)

    return Ready(run, lambda: _clear(out), lambda: {"no_limit": True})


def _clear(out: str) -> None:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()


class _Bench:
    """The three races of the case: beside copies, checks of each result, beside mergekit."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.told: dict[str, Any] = {"folder": context.folder}
        sizes = {"small": context.small, "layers": context.layers}
        made = perform("bench_merging:sources", {**self.told, **sizes})
        os.sync()
        self.nbytes: int = made["bytes"]
        self.missing: list[str] = made["missing"]
        self.tasks: dict[str, Any] = {
            name: facts
            for name, facts in made["tasks"].items()
            if name not in self.missing and (not context.methods or name in context.methods)
        }

    def _ours(self, method: str, out: str, check: bool) -> Contestant:
        told = {**self.told, "threads": self.context.threads, "method": method, "out": out}
        return Contestant(method, "bench_merging:merge", {**told, "check": check})

    def beside_copies(self) -> Race:
        """Every method of ours, and every way to copy, in turn; small ones keep what they wrote."""
        small = self.context.small
        outs = {method: f"out-{method}" if small else "out" for method in self.tasks}
        contestants = [self._ours(method, out, small) for method, out in outs.items()]
        for files in sorted({files + 1 for files, _, _ in self.tasks.values()}):
            for least, name in (
                (False, _COPY.format(files)),
                (True, _LEAST_COPY.format(files - 1)),
            ):
                told = {**self.told, "files": files, "least": least}
                contestants.append(Contestant(name, "bench_merging:copy", told))
        repeats = 1 if self.context.small else 5
        return race(contestants, threads=self.context.threads, repeats=repeats)

    def errors(self, found: Race) -> dict[str, float]:
        """The error of each method of ours, by one more run where its output is not there."""
        if self.context.small:
            return {method: found[method].facts["error"] for method in self.tasks}
        errors = {}
        for method in self.tasks:
            once = race(
                [self._ours(method, "checked", True)], threads=self.context.threads, repeats=1
            )
            errors[method] = once.ours.facts["error"]
        return errors

    def beside_mergekit(self) -> dict[str, Race]:
        """Each method of ours and mergekit's, in turn."""
        if self.context.mergekit is None:
            return {}
        found = {}
        for method in self.tasks:
            told = {**self.told, "method": method, "program": self.context.mergekit, "out": "its"}
            peer = Contestant("mergekit", "bench_merging:mergekit", told)
            pair = [self._ours(method, "out", False), peer]
            repeats = self.context.repeats(self.context.peer_repeats)
            found[method] = race(pair, threads=self.context.threads, repeats=repeats)
        return found


def run(context: Context) -> list[Case]:
    """Every method, in one table."""
    bench = _Bench(context)
    found = bench.beside_copies()
    errors = bench.errors(found)
    for method, error in errors.items():
        found[method].facts["error"] = error
    peers = bench.beside_mergekit()
    title = f"merge bfloat16 checkpoints of {bench.nbytes / 1e9:.2f} GB each, whole processes"
    case = Case("merge", title, found, by_least=True, most_error=_MOST_ERROR)
    # the case is as wrong as its worst method
    found.ours.facts["error"] = max(errors.values())
    case.table = [[*_COLUMNS, *(_PEER_COLUMNS if peers else ())]]
    for method, (files, elementwise, factor) in bench.tasks.items():
        row = _Row(bench.nbytes, found, method, files + 1, errors[method], peers.get(method))
        case.table.append(row.cells())
        case.targets += row.targets(elementwise, factor)
    case.table += [
        [result.name, f"{result.least:.4g}", *[""] * (len(case.table[0]) - 2)]
        for result in found.results[len(bench.tasks) :]
    ]
    case.notes = _notes(bench)
    case.data = {
        "mergekit": {name: [vars(r) for r in told.results] for name, told in peers.items()}
    }
    return [case]


def _notes(bench: _Bench) -> list[str]:
    notes = [
        "a merge reads its inputs (page cache), writes one file of their size, then fsync",
        "x cp: beside cp of as many files as it reads and writes, synced, which the target names",
        "x least cp: beside reading all inputs and writing one, synced: the bytes that a merge moves",
        "GB/s: inputs and output over the least of the runs; RSS: the kernel's peak of the process",
        "error: of one matrix against float64, length of the error over the length of the result;",
        "  random methods: of the length of the change, against one drawn by NumPy",
        "mergekit s, faster: least of both in a race of two; its warm-up loads the program only",
    ]
    if bench.missing:
        notes.append(f"not there: {', '.join(bench.missing)}")
    return notes


class _Row:
    """What the table and the targets say of one method."""

    def __init__(
        self,
        nbytes: int,
        found: Race,
        method: str,
        files: int,
        error: float,
        pair: Race | None,
    ) -> None:
        self.ours = found[method]
        self.moved = nbytes * files
        self.copied = self.ours.least / found[_COPY.format(files)].least
        self.least = self.ours.least / found[_LEAST_COPY.format(files - 1)].least
        self.error = error
        self.pair = pair
        self.peak = max(
            [self.ours.facts["peak_rss"], *([pair.ours.facts["peak_rss"]] if pair else [])]
        )

    @property
    def faster(self) -> float:
        """How many times faster than mergekit."""
        assert self.pair is not None
        return self.pair["mergekit"].least / self.pair.ours.least

    def cells(self) -> list[str]:
        """The row of the table."""
        speed = self.moved / self.ours.least / 1e9
        told = [self.ours.name, f"{self.ours.least:.4g}", f"{speed:.2f}", f"{self.copied:.2f}"]
        told += [f"{self.least:.2f}", f"{self.peak / 1e6:.0f}", f"{self.error:.1e}"]
        if self.pair is None:
            return told
        peer: Result = self.pair["mergekit"]
        told += [f"{peer.least:.1f}", f"{self.faster:.1f}", f"{peer.facts['peak_rss'] / 1e6:.0f}"]
        return [*told, f"{peer.facts['error']:.1e}"]

    def targets(self, elementwise: bool, factor: float | None) -> list[Target]:
        """Time beside cp for elementwise methods, beside mergekit for others; memory for all."""
        name = self.ours.name
        text = f"{name}: peak {self.peak / 1e6:.0f} MB, at most {_MOST_MEMORY / 1e6:.0f}"
        told = [Target(text, self.peak, self.peak <= _MOST_MEMORY)]
        if elementwise:
            text = f"{name}: {self.copied:.2f} x cp, at most {_MOST_TIME}"
            told.append(Target(text, self.copied, self.copied <= _MOST_TIME))
        if factor is not None and self.pair is not None:
            text = f"{name}: {self.faster:.1f} x faster than mergekit, at least {factor:g}"
            told.append(Target(text, self.faster, self.faster >= factor))
        return told

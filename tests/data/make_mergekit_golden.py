"""Make the golden outputs: run the released mergekit as a black box, store what it wrote.

    python tests/data/make_mergekit_golden.py --mergekit PATH/bin/mergekit-yaml

mergekit is a program in an environment of its own; nothing of it is imported or read. Needs NumPy.
Written beside this file: ``mergekit/golden.json`` (recipes, layouts, what config and tokenizer say,
statistics of the random methods) and ``mergekit/golden.npz`` (inputs and outputs, each one run of
bytes).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import mergekit_documents  # noqa: E402
import mergekit_methods  # noqa: E402
from mergekit_models import MODELS, read_safetensors, write_model  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]
SEEDS = (1, 2, 3, 4)
CONFIG_KEYS = ("num_hidden_layers", "vocab_size", "torch_dtype", "dtype", "tie_word_embeddings")


class Runner:
    """mergekit's programs, and the folders that they read and write."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.models = folder / "models"
        self.cache = folder / "adapted"
        self.cache.mkdir(exist_ok=True)
        self.environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

    def text(self, recipe: Mapping[str, Any]) -> str:
        """The recipe with the models' folder put in; JSON is YAML too."""
        return json.dumps(recipe).replace("MODELS/", f"{self.models}/")

    def _call(self, *arguments: str) -> int:
        told = subprocess.run(
            arguments,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return told.returncode

    def one(self, recipe: Mapping[str, Any], out: Path, *options: str) -> bool:
        """Run one recipe in a process of its own; whether it succeeded."""
        path = self.folder / "recipe.yml"
        path.write_text(self.text(recipe), encoding="utf-8")
        return self._call(str(self.program), str(path), str(out), "--quiet", *options) == 0

    def many(self, recipes: Mapping[str, Mapping[str, Any]], out: Path, seed: int) -> bool:
        """Run all recipes in one process, each to a folder of its name below `out`."""
        # a document of the name of a method would be taken for a model that it refers to
        documents = [self.text({**told, "name": f"{name}.out"}) for name, told in recipes.items()]
        path = self.folder / "recipes.yml"
        path.write_text("\n---\n".join(documents) + "\n", encoding="utf-8")
        program = self.program.with_name("mergekit-multi")
        options = ["-I", str(out), "--no-lazy", "--quiet", "--random-seed", str(seed)]
        options += ["--lora-merge-cache", str(self.cache)]
        done = self._call(str(program), str(path), *options) == 0
        for folder in out.glob("*.out"):
            folder.replace(folder.with_suffix(""))
        return done

    def each(self, recipes: Mapping[str, Mapping[str, Any]], out: Path, seed: int) -> list[str]:
        """Run all recipes, many to a process, halves of those where one failed; return failures."""
        failed = []
        waiting = [list(recipes)[first : first + 16] for first in range(0, len(recipes), 16)]
        while waiting:
            names = waiting.pop()
            group = {name: recipes[name] for name in names}
            if len(names) == 1:
                done = self.one(group[names[0]], out / names[0], "--random-seed", str(seed))
            else:
                done = self.many(group, out, seed)
            if done:
                continue
            for name in names:
                shutil.rmtree(out / name, ignore_errors=True)
            if len(names) == 1:
                failed += names
            else:
                half = len(names) // 2
                waiting += [names[:half], names[half:]]
        return failed


class Store:
    """The bytes and layouts of models, and the two files that hold them."""

    def __init__(self) -> None:
        self.layouts: list[Any] = []
        self.arrays: dict[str, Array] = {}

    def keep(self, key: str, folder: Path) -> int:
        """Keep a model's tensors; return the number of its layout."""
        layout: dict[str, Any] = {}
        parts = []
        for path in sorted(folder.glob("*.safetensors")):
            for name, (code, shape, data) in read_safetensors(path).items():
                layout[name] = [code, list(shape)]
                parts.append(data)
        self.arrays[key] = np.frombuffer(b"".join(parts), np.uint8)
        if layout not in self.layouts:
            self.layouts.append(layout)
        return self.layouts.index(layout)

    def write(self, index: dict[str, Any], folder: Path) -> None:
        """Write the two files."""
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / "golden.npz", **self.arrays)
        lines = []
        for key, value in {**index, "layouts": self.layouts}.items():
            # one line for each entry: a change of one case is a change of one line
            entries = value.items() if isinstance(value, dict) else None
            if entries is None:
                inner = ",\n  ".join(json.dumps(item) for item in value)
                lines.append(f" {json.dumps(key)}: [\n  {inner}\n ]")
            else:
                inner = ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in entries)
                lines.append(f" {json.dumps(key)}: {{\n  {inner}\n }}")
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        json.loads(text)
        (folder / "golden.json").write_text(text, encoding="utf-8")


def facts_of(folder: Path) -> dict[str, Any]:
    """What a written model's config and tokenizer say."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts: dict[str, Any] = {"config": {k: config[k] for k in CONFIG_KEYS if k in config}}
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists():
        told = json.loads(tokenizer.read_text(encoding="utf-8"))
        known = dict(told["model"]["vocab"])
        known.update({token["content"]: token["id"] for token in told["added_tokens"]})
        facts["vocabulary"] = known
        facts["chat_template"] = _template(folder)
    return facts


def _template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    template: str | None = told.get("chat_template")
    return template


def _float32(code: str, shape: tuple[int, ...], data: bytes) -> Array:
    if code == "BF16":
        bits = np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(data, np.float32).reshape(shape)


def statistics(base: Path, tuned: Path, out: Path) -> dict[str, list[float]]:
    """For each tensor of the last axis and another: how much of a task vector is kept, and where.

    The count of nonzero elements of the task vector, of those kept, the sums of magnitudes of the
    task vector and of what is kept, then the kept counts by quarter of magnitude (of each row).
    """
    models = [read_safetensors(folder / "model.safetensors") for folder in (base, tuned, out)]
    found = {}
    for name, (_, shape, _) in models[0].items():
        if len(shape) < 2:
            continue
        first, second, merged = (_float32(*told[name]).astype(np.float64) for told in models)
        task, kept = np.abs(second - first), np.abs(merged - first)
        order = np.argsort(np.argsort(task, axis=1, kind="stable"), axis=1, kind="stable")
        quarter = 4 * order // shape[1]
        alive = task > 0
        counts = [int((alive & (kept > 0) & (quarter == k)).sum()) for k in range(4)]
        totals = [int((alive & (quarter == k)).sum()) for k in range(4)]
        found[name] = [float(task.sum()), float(kept.sum()), *counts, *totals]
    return found


def make(program: Path, folder: Path, only: str) -> None:
    """Run everything and write the golden files."""
    runner, store = Runner(program, folder), Store()
    models = {}
    for name, maker in MODELS.items():
        write_model(runner.models / name, maker)
        layout = store.keep(f"model/{name}", runner.models / name)
        others = {
            path.name: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((runner.models / name).glob("*.json"))
        }
        models[name] = {"layout": layout, "files": others}
    exact = {**mergekit_methods.exact(), **mergekit_documents.exact()}
    recipes = {name: told for name, told in exact.items() if name.startswith(only)}
    failed = runner.each(recipes, folder / "exact", 0)
    print("failed:", failed)
    cases = {}
    for name, recipe in recipes.items():
        if name in failed:
            cases[name] = {"recipe": recipe, "failed": True}
            continue
        layout = store.keep(f"case/{name}", folder / "exact" / name)
        cases[name] = {"recipe": recipe, "layout": layout, **facts_of(folder / "exact" / name)}
    index: dict[str, Any] = {"models": models, "cases": cases, "drawn": {}, "refused": {}}
    for seed in SEEDS if not only else ():
        out = folder / f"drawn-{seed}"
        failed = runner.each(mergekit_methods.drawn(), out, seed)
        print(f"seed {seed}, failed:", failed)
        for name, recipe in mergekit_methods.drawn().items():
            case = index["drawn"].setdefault(name, {"recipe": recipe, "statistics": []})
            base, tuned = runner.models / "large", runner.models / "large-a"
            case["statistics"].append(statistics(base, tuned, out / name))
    for name, recipe in mergekit_documents.refused().items() if not only else ():
        accepted = runner.one(recipe, folder / "refused" / name)
        index["refused"][name] = {"recipe": recipe, "accepted": accepted}
        print(name, "is accepted" if accepted else "is refused")
    store.write(index, HERE / "mergekit")


def main() -> None:
    """Read the command line and make the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", type=Path, required=True, help="its mergekit-yaml program")
    parser.add_argument("--folder", type=Path, help="an empty folder to work in, which is kept")
    parser.add_argument("--only", default="", help="only exact cases whose names begin so")
    given = parser.parse_args()
    if given.folder is not None:
        make(given.mergekit.resolve(), given.folder.resolve(), given.only)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(given.mergekit.resolve(), Path(folder), given.only)


if __name__ == "__main__":
    main()

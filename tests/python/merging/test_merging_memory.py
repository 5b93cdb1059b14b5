"""The memory of a merge: within the budget, whatever the model's size and number of tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml

import weightshare as ws
from weightshare.errors import OutputSpaceError

Recipe = Callable[..., dict[str, Any]]

MERGE = """
import sys, weightshare as ws
report = ws.merge_checkpoints(sys.argv[1], sys.argv[2], memory=sys.argv[3])
print(report.peak_memory)
"""


def sparse_model(folder: Path, rows: int) -> None:
    """Write a model whose data are a hole in the file: rows x 1024 bfloat16 in two tensors."""
    half = rows // 2 * 2048
    header = json.dumps(
        {
            "embed": {"dtype": "BF16", "shape": [rows // 2, 1024], "data_offsets": [0, half]},
            "head": {"dtype": "BF16", "shape": [rows // 2, 1024], "data_offsets": [half, 2 * half]},
        }
    ).encode()
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * half)


def peak_of_a_merge(tmp_path: Path, rows: int, memory: str) -> int:
    for name in ("a", "b"):
        sparse_model(tmp_path / name, rows)
    recipe = "parameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\nmerge_method: linear\n"
    (tmp_path / "r.yml").write_text(recipe)
    command = [sys.executable, "-c", MERGE, "r.yml", "out", memory]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_stays_below_the_budget(tmp_path: Path) -> None:
    """The whole process, as the kernel counts it, on models of 128 MB each."""
    assert peak_of_a_merge(tmp_path, 62_500, "160MB") <= 160_000_000


ROW = """
import json, sys
import numpy as np, weightshare as ws
def mean(models, base):
    return (models[0] + models[1]) / np.float32(2)
ws.register_method("mean_of_all", mean, sees="tensor")
recipe = json.loads(sys.argv[1])
plan = ws.plan_merge(recipe)
report = ws.merge_checkpoints(recipe, sys.argv[2], memory=plan.memory_floor, threads=1, nan="ignore")
print(plan.memory_floor, report.peak_memory)
"""


@pytest.mark.parametrize("method", ["della", "arcee_fusion", "mean_of_all"])
def test_what_a_method_holds_beside_its_tile_is_in_the_floor(method: str, tmp_path: Path) -> None:
    """A row of 6 million elements: ranked, beside a base, or copied for a Python function."""
    generator = np.random.default_rng(5)
    for name in "abc":
        values = generator.normal(size=6_000_000).astype(np.float32)
        ws.save_checkpoint(tmp_path / name, {"w": values})
    models = [{"model": str(tmp_path / name)} for name in "ab"]
    recipe: dict[str, Any] = {"merge_method": method, "models": models}
    if method != "mean_of_all":
        recipe["base_model"] = str(tmp_path / "c")
    if method == "arcee_fusion":
        del models[1]
    if method == "della":
        recipe["parameters"] = {"weight": 1, "density": 0.5, "epsilon": 0.1}
    command = [sys.executable, "-c", ROW, json.dumps(recipe), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    floor, peak = map(int, done.stdout.split())
    assert peak <= floor


MANY = """
import json, sys, weightshare as ws
report = ws.merge_checkpoints(json.loads(sys.argv[1]), sys.argv[2], memory="256MB", threads=8)
print(report.peak_memory)
"""


def test_ranking_stays_within_the_budget_where_many_magnitudes_are_alike(tmp_path: Path) -> None:
    """A third of the task vector has one magnitude, just where the threshold falls."""
    rows = (1000, 1700)
    zeros = {f"w{i}": np.zeros(rows, ml_dtypes.bfloat16) for i in range(8)}
    ws.save_checkpoint(tmp_path / "base", zeros)
    for seed, name in enumerate("ab"):
        generator = np.random.default_rng(seed)
        model = {}
        for tensor in zeros:
            values = generator.normal(size=rows) * 2.0**-12
            values[generator.random(rows) < 0.33] = 0.25
            model[tensor] = values.astype(ml_dtypes.bfloat16)
        ws.save_checkpoint(tmp_path / name, model)
    recipe = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / name)} for name in "ab"],
        "parameters": {"weight": 1, "density": 0.1},
    }
    command = [sys.executable, "-c", MANY, json.dumps(recipe), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 256_000_000


def small_tensors(folder: Path, count: int) -> None:
    header = {
        f"model.layers.{i}.self_attn.q_proj.weight": {
            "dtype": "F32",
            "shape": [2],
            "data_offsets": [8 * i, 8 * i + 8],
        }
        for i in range(count)
    }
    text = json.dumps(header).encode()
    folder.mkdir()
    data = len(text).to_bytes(8, "little") + text + bytes(8 * count)
    (folder / "model.safetensors").write_bytes(data)


def test_a_plan_counts_the_memory_of_many_small_tensors(linear: Recipe, tmp_path: Path) -> None:
    """The memory that 20,000 tensors take beside a few is within what the plan adds for them."""
    measured, planned = [], []
    for count in (10, 20_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for name in "ab":
            small_tensors(folder / name, count)
        recipe = folder / "r.yml"
        recipe.write_text(yaml.safe_dump(linear(folder / "a", folder / "b")))
        command = [sys.executable, "-c", MERGE, str(recipe), str(folder / "out"), "512MB"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        measured.append(int(done.stdout))
        planned.append(ws.plan_merge(recipe).peak_memory)
    assert measured[1] <= planned[1]
    assert measured[1] - measured[0] <= planned[1] - planned[0]
    least = planned[1] - 10_000_000
    with pytest.raises(OutputSpaceError, match="needs at least"):
        ws.merge_checkpoints(recipe, tmp_path / "no", memory=least)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Two models of 2 GB, a single tensor of 1 GB: 512 MB for the whole process."""
    assert peak_of_a_merge(tmp_path, 1_000_000, "512MB") <= 512_000_000

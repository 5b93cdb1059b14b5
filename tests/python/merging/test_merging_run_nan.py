"""NaN and infinity in a merge from file to file: error, warning or nothing, and always counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws
from weightshare.merging.plan import MergePlan, PlannedModel, PlannedTensor, Source
from weightshare.merging.run import run_plan

Make = Callable[..., Path]
Recipe = Callable[..., dict[str, Any]]


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a user sees; a failed merge may leave hidden files to be gone on with."""
    seen = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    return {file.name: file.read_bytes() for file in seen}


def test_overflow_is_an_error_a_warning_or_allowed(
    make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """Finite weights that overflow the output are told by tensor, count and first index."""
    big = np.float32([1, 1e30, 2, -1e30])
    recipe = linear(make_model("a", {"w": big}), make_model("b", {"w": big}), out_dtype="float16")
    with pytest.raises(ws.merging.NonFiniteError) as caught:
        ws.merge_checkpoints(recipe, tmp_path / "out")
    message = str(caught.value)
    assert contents(tmp_path / "out") == {}
    assert "w: 2 of 4 elements became NaN or infinite from finite inputs" in message
    assert "first at flat index 1" in message
    report = ws.merge_checkpoints(recipe, tmp_path / "warned", nan="warn")
    assert len(report.warnings) == 1
    for word in ("ignore", "allow"):
        report = ws.merge_checkpoints(recipe, tmp_path / word, nan=word)
        assert report.warnings == ()
        assert report.nonfinite == {"w": 2}
    record = json.loads((tmp_path / "ignore" / "provenance.json").read_text())
    assert record["tensors"]["w"]["nonfinite"] == {"made": 2, "inherited": 0}
    assert contents(tmp_path / "ignore") == contents(tmp_path / "warned")


def test_inputs_that_are_not_finite_are_a_warning(
    make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """A model that holds NaN already merges, and the report says so."""
    spoiled = np.float32([1, np.nan, np.inf, 4])
    recipe = linear(make_model("a", {"w": spoiled}), make_model("b", {"w": np.ones(4, np.float32)}))
    report = ws.merge_checkpoints(recipe, tmp_path / "out")
    assert report.warnings == ("w: 2 of 4 elements are NaN or infinite in the inputs",)


def test_warnings_about_many_tensors_are_ten_and_a_count(
    make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """A model full of NaN does not print a line for each tensor."""
    model = {f"w{i}": np.float32([np.nan, 1]) for i in range(25)}
    report = ws.merge_checkpoints(linear(make_model("a", model)), tmp_path / "out")
    assert len(report.warnings) == 11
    assert report.warnings[-1].endswith("15 more lines like these")


def test_one_nan_that_spoils_a_tensor_is_told_as_such(make_model: Make, tmp_path: Path) -> None:
    """A norm of NaN spoils finite neighbours: the message says where it is from."""
    spoiled, sound = np.float32([1, np.nan, 3, 4]), np.float32([4, 3, 2, 1])
    recipe = {
        "merge_method": "slerp",
        "base_model": str(make_model("a", {"w": spoiled})),
        "models": [{"model": str(make_model("b", {"w": sound}))}],
        "parameters": {"t": 0.5},
    }
    with pytest.raises(ws.merging.NonFiniteError) as caught:
        ws.merge_checkpoints(recipe, tmp_path / "out")
    message = str(caught.value)
    assert "w: 3 of 4 elements became NaN or infinite where the inputs are finite" in message
    assert "1 of its elements are not finite in the inputs" in message
    assert "mend the inputs" in message
    assert "from finite inputs" not in message


def test_nan_in_a_tensor_that_is_copied_is_told(tmp_path: Path) -> None:
    """A copy takes NaN along, which is a warning and a count as in a merge."""
    copied = np.float32([1, np.nan, np.inf])
    source = Source(0, "w", "F32")
    ws.save_checkpoint(tmp_path / "a", {"w": copied})
    size = (tmp_path / "a" / "model.safetensors").stat().st_size
    file = (str(tmp_path / "a" / "model.safetensors"), size)
    model = PlannedModel("a", str(tmp_path / "a"), (file,))
    plan = MergePlan("linear", (model,), (PlannedTensor("w", "F32", (3,), "copy", (source,)),))
    report = run_plan(plan, tmp_path / "out")
    assert report.nonfinite == {"w": 2}
    assert report.warnings == ("w: 2 of 3 elements are NaN or infinite in the inputs",)

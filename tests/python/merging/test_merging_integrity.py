"""Verifying a checkpoint: what a merge wrote passes, and any damage is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare._core import integrity
from weightshare.errors import ArgumentError, CheckpointNotFoundError
from weightshare.merging.cast_view import CastView
from weightshare.merging.integrity import verify_checkpoint
from weightshare.merging.plan import MergePlan, PlannedModel, PlannedTensor, Source
from weightshare.merging.run import run_plan

Make = Callable[..., Path]
Recipe = Callable[..., dict[str, Any]]
MASK = (1 << 64) - 1


def expected_digest(data: bytes, start: int) -> int:
    """Return the formula of the checksum, byte by byte."""
    total = 0
    for index, byte in enumerate(data):
        place, shift = divmod(start + index, 8)
        key = (place + 1) * 0x9E3779B97F4A7C15 & MASK
        key ^= key >> 32
        key = key * 0xD6E8FEB86659FD93 & MASK
        key ^= key >> 32
        total += (byte << 8 * shift) * (key | 1)
    return total % (1 << 128)


@pytest.mark.parametrize("start", [0, 3, 8, 1021])
def test_the_checksum_is_its_formula_and_adds_up(start: int) -> None:
    """Parts of any length, from any byte on."""
    data = np.random.default_rng(start).integers(0, 256, 777, dtype=np.uint8)
    low, high = integrity.digest(data, start)
    assert low | high << 64 == expected_digest(data.tobytes(), start)
    for cut in (0, 1, 5, 8, 400, 777):
        parts = [integrity.digest(data[:cut], start), integrity.digest(data[cut:], start + cut)]
        assert sum(a | b << 64 for a, b in parts) % (1 << 128) == low | high << 64


@pytest.fixture
def merged(make_model: Make, linear: Recipe, tmp_path: Path) -> Path:
    """The output of a merge in two shards, of every kind of tensor."""
    generator = np.random.default_rng(1)
    tensors = {
        "half": generator.normal(size=(9, 7)).astype(ml_dtypes.bfloat16),
        "wide": generator.normal(size=(300, 7)),
        "ids": np.arange(5),
        "none": np.ones((0, 2), np.float32),
    }
    config = {"torch_dtype": "float32"}
    models = [make_model("a", tensors, config=config), make_model("b", tensors)]
    ws.merge_checkpoints(linear(*models), tmp_path / "out", max_shard_size=200)
    return tmp_path / "out"


def test_what_a_merge_wrote_has_no_problem(merged: Path) -> None:
    """All checksums agree, of weights and of small files; progress ends at the total."""
    seen: list[tuple[int, int]] = []
    report = verify_checkpoint(merged, progress=lambda done, total: seen.append((done, total)))
    assert (report.problems, report.warnings) == ((), ())
    small = len(json.loads((merged / "provenance.json").read_text())["sha256"])
    assert report.compared == 4 + small
    assert seen[-1] == (report.nbytes, report.nbytes)
    assert json.loads(json.dumps(report.to_json()))["sound"] is True
    assert "no problem" in repr(report)


def test_every_changed_byte_of_the_weights_is_found(merged: Path) -> None:
    """A bit of each eleventh byte of the data: the problem names the tensor, or the header."""
    for file in merged.glob("*.safetensors"):
        data = file.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        for place in range(begin, len(data), 211):
            spoiled = bytearray(data)
            spoiled[place] ^= 1 << place % 8
            file.write_bytes(spoiled)
            report = verify_checkpoint(merged, nan="ignore")
            assert len(report.problems) == 1
            assert "are not those that were written" in report.problems[0]
        file.write_bytes(data)
    assert verify_checkpoint(merged).problems == ()


def test_swapped_shards_lost_tensors_and_cut_files_are_problems(merged: Path) -> None:
    """Damage to headers and to the index is told without an exception."""
    first, second, *_ = sorted(merged.glob("*.safetensors"))
    kept = first.read_bytes(), second.read_bytes()
    first.write_bytes(kept[1])
    second.write_bytes(kept[0])
    assert verify_checkpoint(merged).problems
    second.write_bytes(kept[1][:-1])
    first.write_bytes(kept[0])
    assert verify_checkpoint(merged).problems
    second.write_bytes(kept[1])
    record = json.loads((merged / "provenance.json").read_text())
    record["tensors"]["more"] = record["tensors"]["half"]
    record["tensors"]["wide"]["shape"] = [7, 300]
    del record["tensors"]["ids"]
    (merged / "provenance.json").write_text(json.dumps(record))
    problems = verify_checkpoint(merged).problems
    assert len(problems) == 3
    assert any(text.startswith("more: is missing") for text in problems)
    assert any(text.startswith("ids: is not in") for text in problems)
    assert any(text.startswith("wide: is F64 [300, 7]") for text in problems)


def test_changed_small_files_are_warnings_and_lost_ones_problems(merged: Path) -> None:
    """A card may be edited by hand; a configuration that is gone makes the model useless."""
    (merged / "README.md").write_text("mine")
    (merged / "config.json").unlink()
    report = verify_checkpoint(merged)
    assert report.warnings == ("README.md: was changed after it was written",)
    assert report.problems == ("config.json: cannot be read (No such file or directory)",)


@pytest.mark.parametrize(
    "text", ["", "[]", "7", '{"tensors": 1}', '{"tensors": {"a": 1}}', "[" * 100_000, "\udc00"]
)
def test_a_provenance_that_is_none_is_told(text: str, merged: Path) -> None:
    """It is a problem or a warning, never an exception."""
    (merged / "provenance.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    report = verify_checkpoint(merged)
    assert report.problems or report.warnings
    assert report.tensors == 4


def test_names_that_lead_out_of_the_folder_are_not_read(merged: Path) -> None:
    """A hostile provenance lists ../ files; they are left alone."""
    record = json.loads((merged / "provenance.json").read_text())
    record["sha256"] = {"../a/config.json": "0", "/etc/passwd": "0"}
    (merged / "provenance.json").write_text(json.dumps(record))
    assert verify_checkpoint(merged).compared == 4


def test_nan_is_a_warning_a_problem_or_nothing(make_model: Make) -> None:
    """By the word that is given."""
    folder = make_model("nan", {"w": np.float32([1, np.nan, np.inf]), "v": np.ones(3)})
    assert verify_checkpoint(folder).problems == ()
    assert "w: 2 elements are NaN or infinite" in verify_checkpoint(folder).warnings
    assert verify_checkpoint(folder, nan="error").problems == ("w: 2 elements are NaN or infinite",)
    report = verify_checkpoint(folder, nan="ignore")
    assert report.problems == ()
    assert report.nonfinite == {"w": 2}
    with pytest.raises(ArgumentError, match="nan: expected"):
        verify_checkpoint(folder, nan="maybe")
    with pytest.raises(CheckpointNotFoundError):
        verify_checkpoint(folder / "nothing")


def test_the_html_is_escaped_and_short(tmp_path: Path) -> None:
    """Tensor names come from files of strangers."""
    tensors = {f"<script>{i}": np.float32([np.nan]) for i in range(3000)}
    ws.save_checkpoint(tmp_path / "m", tensors)
    report = verify_checkpoint(tmp_path / "m", nan="error")
    html = report._repr_html_()
    assert "<script>" not in html
    assert len(html) < 50_000
    assert repr(report).count("\n") < 20


def test_the_provenance_tells_how_a_tensor_was_made_while_it_was_read(tmp_path: Path) -> None:
    """A view is in the provenance as it is in the plan; a tensor without one has none."""
    ws.save_checkpoint(tmp_path / "a", {"v": np.ones(3, np.float32), "w": np.ones(3, np.float32)})
    file = tmp_path / "a" / "model.safetensors"
    model = PlannedModel("a", str(tmp_path / "a"), ((str(file), file.stat().st_size),))
    made = Source(0, "w", "BF16", CastView(Source(0, "w", "F32"), "BF16"))
    tensors = (
        PlannedTensor("v", "F32", (3,), "copy", (Source(0, "v", "F32"),)),
        PlannedTensor("w", "BF16", (3,), "copy", (made,)),
    )
    plan = MergePlan("linear", (model,), tensors)
    run_plan(plan, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())["tensors"]
    view = {"kind": "cast", "from": "F32", "of": None}
    assert record["w"]["views"] == [{"model": 0, "name": "w", "view": view}]
    assert "views" not in record["v"]
    assert json.loads(json.dumps(plan.to_json()))["tensors"][1]["reads"][0]["view"] == view

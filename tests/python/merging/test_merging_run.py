"""Merges from file to file: right numbers, bounded memory, whole output or none."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml

import weightshare as ws
from weightshare.errors import (
    ArgumentError,
    CheckpointChangedError,
    OutputError,
    OutputExistsError,
    OutputLockedError,
    OutputSpaceError,
)
from weightshare.merging import tiles
from weightshare.merging.files import locked_folder
from weightshare.merging.run import run_plan

Make = Callable[..., Path]
Recipe = Callable[..., dict[str, Any]]
NAMES = ("model.embed_tokens.weight", "model.layers.0.w", "model.layers.1.w", "model.norm.weight")
SHAPES = ((37, 8), (16, 24), (16, 24), (5,))
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
# Half a unit in the last place of the result, relative to the largest element.
TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 3e-7, "float64": 1e-15}


def tensors(seed: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(size=shape).astype(dtype)
        for name, shape in zip(NAMES, SHAPES, strict=True)
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a user sees; a failed merge may leave hidden files to be gone on with."""
    seen = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    return {file.name: file.read_bytes() for file in seen}


def assert_merged(out: Path, exact: dict[str, np.ndarray], dtype: Any) -> None:
    with ws.open_checkpoint(out) as merged:
        assert set(merged) == set(exact)
        for name, value in exact.items():
            assert merged[name].dtype == dtype
            tolerance = TOLERANCE[str(np.dtype(dtype))] * max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(
                merged[name].astype(np.float64), value, rtol=0, atol=tolerance
            )


def mean(models: list[dict[str, np.ndarray]], weights: list[float]) -> dict[str, np.ndarray]:
    return {
        name: sum(
            w * model[name].astype(np.float64) for w, model in zip(weights, models, strict=True)
        )
        / sum(weights)
        for name in NAMES
    }


@pytest.fixture
def pair(make_model: Make, linear: Recipe) -> dict[str, Any]:
    """A linear recipe of two small models."""
    return linear(make_model("a", tensors(1)), make_model("b", tensors(2)))


@pytest.mark.parametrize("dtypes", [[d] * 3 for d in DTYPES] + [DTYPES[:3], DTYPES[1:]])
@pytest.mark.parametrize("out_dtype", [None, *DTYPES])
def test_linear_equals_the_formula_in_float64(
    dtypes: list[Any], out_dtype: Any, make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """Every element, mixed ones too, into every element, within its rounding."""
    models = [tensors(i, dtype) for i, dtype in enumerate(dtypes)]
    recipe = linear(*(make_model(str(i), model) for i, model in enumerate(models)))
    weights = [0.5, 2.0, 1.25]
    for entry, weight in zip(recipe["models"], weights, strict=True):
        entry["parameters"]["weight"] = weight
    expected = dtypes[0] if len(set(dtypes)) == 1 else np.result_type(np.float32, *dtypes[2:])
    if out_dtype is not None:
        recipe["out_dtype"] = str(np.dtype(out_dtype))
        expected = out_dtype
    report = ws.merge_checkpoints(recipe, tmp_path / "out")
    assert_merged(tmp_path / "out", mean(models, weights), expected)
    assert (report.merged, report.copied) == (4, 0)


def test_task_arithmetic_equals_the_formula(make_model: Make, tmp_path: Path) -> None:
    """base + lambda * sum w (x - base), per tensor where the recipe says so."""
    models, base = [tensors(1), tensors(2)], tensors(3)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(make_model("base", base)),
        "parameters": {"lambda": [{"filter": "norm", "value": 0}, {"value": 0.5}]},
        "models": [
            {"model": str(make_model(str(i), model)), "parameters": {"weight": weight}}
            for i, (model, weight) in enumerate(zip(models, [0.4, -1.5], strict=True))
        ],
    }
    ws.merge_checkpoints(recipe, tmp_path / "out")
    exact = {}
    for name in NAMES:
        x0, x1, b = (m[name].astype(np.float64) for m in (*models, base))
        strength = 0.0 if "norm" in name else 0.5
        exact[name] = b + strength * (0.4 * (x0 - b) - 1.5 * (x1 - b))
    assert_merged(tmp_path / "out", exact, np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_task_arithmetic_of_equal_models_is_the_base(
    dtype: Any, make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """Fine-tunes that changed nothing give the base bit for bit."""
    base = tensors(3, dtype)
    paths = [make_model(name, base) for name in ("a", "b", "base")]
    recipe = linear(*paths[:2], base_model=str(paths[2])) | {"merge_method": "task_arithmetic"}
    ws.merge_checkpoints(recipe, tmp_path / "out")
    with ws.open_checkpoint(tmp_path / "out") as merged:
        for name in NAMES:
            assert merged[name].tobytes() == base[name].tobytes()


def test_files_and_memory_give_the_same_bits(pair: dict[str, Any], tmp_path: Path) -> None:
    """ws.merge of the same models returns what the file path writes."""
    ws.merge_checkpoints(pair, tmp_path / "out")
    held = ws.merge([tensors(1), tensors(2)])
    assert isinstance(held, dict)
    with ws.open_checkpoint(tmp_path / "out") as merged:
        for name in NAMES:
            assert merged[name].tobytes() == held[name].tobytes()


def test_sharded_in_and_out(make_model: Make, linear: Recipe, tmp_path: Path) -> None:
    """Shards of different cuts are read, and the output is cut as the plan says."""
    ws.save_checkpoint(tmp_path / "a", tensors(1), max_shard_size=1500)
    ws.save_checkpoint(tmp_path / "b", tensors(2), max_shard_size=2500)
    recipe = linear(tmp_path / "a", tmp_path / "b")
    plan = ws.plan_merge(recipe, max_shard_size=2000)
    report = ws.merge_checkpoints(recipe, tmp_path / "out", max_shard_size=2000)
    assert_merged(tmp_path / "out", mean([tensors(1), tensors(2)], [1, 1]), np.float32)
    planned = [name for name, _ in plan.shards]
    assert len(planned) > 1
    assert sorted(planned) == sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert set(planned) | {"model.safetensors.index.json"} <= set(report.files)


def test_one_file_in_and_out(pair: dict[str, Any], tmp_path: Path) -> None:
    """Single files merge too, and an OUT that ends in .safetensors is only that file."""
    for entry in pair["models"]:
        entry["model"] += "/model.safetensors"
    out = tmp_path / "deep" / "merged.safetensors"
    report = ws.merge_checkpoints(pair, out)
    assert_merged(out, mean([tensors(1), tensors(2)], [1, 1]), np.float32)
    assert [file.name for file in out.parent.iterdir()] == ["merged.safetensors"]
    assert report.files == ("merged.safetensors",)
    with pytest.raises(OutputExistsError, match=r"merged\.safetensors: exists"):
        ws.merge_checkpoints(pair, out)
    ws.merge_checkpoints(pair, out, overwrite=True)


def test_bytes_depend_on_neither_threads_nor_memory(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole output folder is the same, down to tiles of a few elements."""
    plan = ws.plan_merge(pair)
    found = []
    for threads, tile in ((1, 5_000_000), (2, 5_000_000), (1, 700), (2, 4096), (5, 900)):
        monkeypatch.setattr(tiles, "_LARGEST_TILE", tile)
        out = tmp_path / f"out-{threads}-{tile}"
        run_plan(plan, out, threads=threads, memory="400MB")
        found.append(contents(out))
    assert all(other == found[0] for other in found)


def test_integers_and_empty_tensors_are_written(
    make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """Integers come from the first model; a tensor without elements and a 0-d one survive."""
    one = {"ids": np.arange(5), "none": np.ones((0, 3), np.float32), "one": np.float32(1)}
    two = {"ids": np.arange(5), "none": np.ones((0, 3), np.float32), "one": np.float32(3)}
    report = ws.merge_checkpoints(
        linear(make_model("a", one), make_model("b", two)), tmp_path / "out"
    )
    assert (report.merged, report.copied) == (2, 1)
    with ws.open_checkpoint(tmp_path / "out") as merged:
        np.testing.assert_array_equal(merged["ids"], np.arange(5))
        assert merged["none"].shape == (0, 3)
        assert merged["one"] == 2.0


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.bool_])
def test_integers_that_differ_are_an_error(
    kind: Any, make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """As in memory: named are the tensor and both models, and nothing is written."""
    ids = np.array([1, 0, 1, 1])
    models = [{"ids": i.astype(kind), "w": np.ones(2)} for i in (ids, ids, 1 - ids)]
    paths = [make_model(name, model) for name, model in zip("abc", models, strict=True)]
    with pytest.raises(ArgumentError, match=r"'ids' is .* differs between .*a and .*c; integers"):
        ws.merge_checkpoints(linear(*paths), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArgumentError, match=r"'ids' is .* differs"):
        ws.merge(models)


def test_equal_booleans_may_have_different_bytes(
    make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """Any byte but 0 is true, and the first model's bytes are kept."""
    paths = [make_model(name, {"mask": np.array([True, False])}) for name in "ab"]
    with open(paths[1] / "model.safetensors", "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x07")
    ws.merge_checkpoints(linear(*paths), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes()[-2:] == b"\x01\x00"


def test_the_files_beside_the_weights(make_model: Make, linear: Recipe, tmp_path: Path) -> None:
    """Configuration with the new dtype, tokenizer, card, recipe and provenance."""
    config = {"torch_dtype": "float32", "vocab_size": 37, "text_config": {"dtype": "float32"}}
    files = {"tokenizer.json": "{}", "chat_template.jinja": "x", "LICENSE": "mine"}
    skipped = {"README.md": "old", ".hidden": "x", "pytorch_model.bin": "x", "vocab.npy": "x"}
    a = make_model("a", tensors(1), config=config, files=files | skipped)
    b = make_model("b", tensors(2), files={"tokenizer.json": "other", "extra.json": "{}"})
    out = tmp_path / "out"
    ws.merge_checkpoints(linear(a, b, out_dtype="bfloat16"), out)
    found = contents(out)
    own = {"config.json", "README.md", "mergekit_config.yml", "provenance.json"}
    assert set(found) == own | set(files) | {"model.safetensors"}
    assert json.loads(found["config.json"]) == {
        "torch_dtype": "bfloat16",
        "vocab_size": 37,
        "text_config": {"dtype": "bfloat16"},
    }
    for name, text in files.items():
        assert found[name] == text.encode()
    front = yaml.safe_load(found["README.md"].decode().split("---")[1])
    assert front["base_model"] == ["a", "b"]
    assert front["tags"] == ["merge", "weightshare"]
    assert yaml.safe_load(found["mergekit_config.yml"])["merge_method"] == "linear"
    record = json.loads(found["provenance.json"])
    assert record["inputs"][0]["name"] == "a"
    weights = (a / "model.safetensors").read_bytes()
    header = weights[: 8 + int.from_bytes(weights[:8], "little")]
    assert record["inputs"][0]["files"] == {
        "model.safetensors": {
            "size": len(weights),
            "header_sha256": hashlib.sha256(header).hexdigest(),
        }
    }
    assert {row["action"] for row in record["tensors"].values()} == {"merge"}
    assert record["tensors"][NAMES[3]]["shape"] == [5]
    assert record["settings"] == [{"shared": {"normalize": True}, "models": [{"weight": 1.0}] * 2}]
    assert record["sha256"] == {
        name: hashlib.sha256(found[name]).hexdigest()
        for name in set(found) - {"model.safetensors", "provenance.json"}
    }
    assert str(tmp_path).encode() not in found["provenance.json"].replace(
        json.dumps(record["recipe"]).encode(), b""
    )


def test_tokenizer_and_card_can_be_left_out(
    make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """copy_tokenizer and write_model_card are obeyed; the base is the donor."""
    a = make_model("a", tensors(1))
    base = make_model("z", tensors(2), files={"tokenizer.json": "{}", "x.txt": "base"})
    recipe = linear(a, base_model=str(base)) | {"merge_method": "task_arithmetic"}
    ws.merge_checkpoints(recipe, tmp_path / "out", copy_tokenizer=False, write_model_card=False)
    assert set(contents(tmp_path / "out")) == {"model.safetensors", "provenance.json", "x.txt"}


def test_a_full_output_is_refused_and_replaced_only_when_told(
    pair: dict[str, Any], tmp_path: Path
) -> None:
    """What is there stays unless overwrite is given; then the new one is whole."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "note.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"not empty \(it holds 'note\.txt'\)"):
        ws.merge_checkpoints(pair, out)
    assert contents(out) == {"note.txt": b"mine"}
    ws.merge_checkpoints(pair, out, overwrite=True, max_shard_size=2000)
    ws.merge_checkpoints(pair, out, overwrite=True)
    assert len(list(out.glob("*.safetensors*"))) == 1
    assert_merged(out, mean([tensors(1), tensors(2)], [1, 1]), np.float32)


def test_merging_over_an_input_is_right(pair: dict[str, Any], tmp_path: Path) -> None:
    """The output may replace one of the models it is made from."""
    ws.merge_checkpoints(pair, tmp_path / "a", overwrite=True)
    assert_merged(tmp_path / "a", mean([tensors(1), tensors(2)], [1, 1]), np.float32)


def refused(recipe: dict[str, Any], out: Path, error: type[Exception], **keys: Any) -> str:
    with pytest.raises(error) as caught:
        ws.merge_checkpoints(recipe, out, **keys)
    assert not out.exists()
    return str(caught.value)


def test_nothing_is_left_after_a_refusal(
    pair: dict[str, Any], make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipe, budget, threads, policy, disk: the output folder does not even appear."""
    out = tmp_path / "deep" / "out"
    wrong = pair | {"merge_method": "nothing"}
    refused(wrong, out, ws.errors.RecipeError)
    assert "needs at least" in refused(pair, out, OutputSpaceError, memory="1MB")
    assert "memory: expected" in refused(pair, out, ArgumentError, memory="lots")
    assert "nan: expected" in refused(pair, out, ArgumentError, nan="maybe")
    assert "threads" in refused(pair, out, ArgumentError, threads=0)
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "the disk has 10 B free" in refused(pair, out, OutputSpaceError)
    assert not out.parent.exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError, match="is a file, expected a folder"):
        ws.merge_checkpoints(pair, tmp_path / "file")


@pytest.mark.parametrize("room", ["reader", "core", "writer", "progress", "publish", "commit"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_after_a_failure_anywhere_there_is_no_output_and_the_next_run_goes_on(
    room: str,
    error: BaseException,
    pair: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each thread's error ends the merge; nothing is left before any tensor is done."""

    def fail(*_: object, **__: object) -> None:
        raise error

    targets = {
        "reader": "weightshare.checkpoint.Checkpoint.read_many",
        "core": "weightshare._core.mixing.mix",
        "writer": "weightshare.checkpoint.CheckpointWriter.write_many",
        "publish": "weightshare.merging.staging.StagedFiles.publish",
        "commit": "weightshare.checkpoint.CheckpointWriter.commit",
    }
    if room in targets:
        monkeypatch.setattr(targets[room], fail)
    progress = fail if room == "progress" else None
    out = tmp_path / "out"
    with pytest.raises(type(error)) as caught:
        ws.merge_checkpoints(pair, out, progress=progress)
    began = room in ("progress", "publish", "commit")
    assert out.exists() == began
    monkeypatch.undo()
    if began:
        assert contents(out) == {}
        assert "goes on from there" in caught.value.__notes__[0]
    report = ws.merge_checkpoints(pair, out)
    assert report.bytes_reused == (report.bytes_written if began else 0)
    ws.merge_checkpoints(pair, tmp_path / "new")
    assert contents(out) == contents(tmp_path / "new")
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_a_failed_commit_takes_the_small_files_back(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without weights there is no configuration either; what was there before stays."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "note.txt").write_text("mine")

    def fail(_: object) -> None:
        raise OutputError("no")

    monkeypatch.setattr("weightshare.checkpoint.CheckpointWriter.commit", fail)
    with pytest.raises(OutputError):
        ws.merge_checkpoints(pair, out, overwrite=True)
    assert contents(out) == {"note.txt": b"mine"}


def test_an_input_that_changed_since_the_plan_is_refused(
    pair: dict[str, Any], tmp_path: Path
) -> None:
    """Size and header are compared with the plan before anything is written."""
    plan = ws.plan_merge(pair)
    ws.save_checkpoint(tmp_path / "a", {"w": np.ones(3)}, overwrite=True)
    with pytest.raises(CheckpointChangedError, match="plan again"):
        run_plan(plan, tmp_path / "out")
    swapped = tensors(1)
    swapped[NAMES[1]] = swapped[NAMES[1]].T.copy()
    ws.save_checkpoint(tmp_path / "a", swapped, overwrite=True)
    with pytest.raises(CheckpointChangedError, match=r"was F32 \(16, 24\)"):
        run_plan(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_counts_every_byte_of_output(pair: dict[str, Any], tmp_path: Path) -> None:
    """The callback sees growing counts that end at the total."""
    seen: list[tuple[int, int]] = []
    report = ws.merge_checkpoints(
        pair, tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert seen[-1] == (report.bytes_written, report.bytes_written)
    assert report.bytes_read == 2 * report.bytes_written


def test_progress_lines_come_every_thirty_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stderr is no terminal, lines are rare."""
    from weightshare.merging.progress import progress_callback

    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress_callback(True) as callback:
        assert callback is not None
        for step in range(100):
            now = 1000.0 + step
            callback(step * 10**6, 10**8)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"weightshare: {s} MB of 100 MB written" for s in (30, 60, 90)]


def test_the_second_of_two_runs_is_told_who_holds_the_output(
    pair: dict[str, Any], tmp_path: Path
) -> None:
    """A held lock refuses, names the process, and is gone afterwards."""
    out = tmp_path / "out"
    with locked_folder(out):
        with pytest.raises(OutputLockedError, match=f"process {os.getpid()} is writing"):
            ws.merge_checkpoints(pair, out)
        assert [file.name for file in out.iterdir()] == [".weightshare.lock"]
    assert not out.exists()
    ws.merge_checkpoints(pair, out)
    assert not (out / ".weightshare.lock").exists()


def test_reports_are_short_escaped_and_json(pair: dict[str, Any], tmp_path: Path) -> None:
    """repr, HTML and JSON of the report say where the output is."""
    report = ws.merge_checkpoints(pair, tmp_path / "<b>out")
    assert repr(report).count("\n") < 20
    assert "<b>out" not in report._repr_html_()
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["out"] == str(tmp_path / "<b>out")
    assert plain["merged"] == 4
    assert 0 < plain["peak_memory"] < 10**10

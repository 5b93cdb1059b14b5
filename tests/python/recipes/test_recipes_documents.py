"""Recipes of several documents: planned together, made one after the other, resumed, removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import OutputExistsError, RecipeError
from weightshare.recipes import stages

Make = Callable[..., Path]
Tensors = dict[str, np.ndarray]

TEXT = """
name: one
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
dtype: float32
---
# the final one
merge_method: task_arithmetic
base_model: a
models: [{model: one, parameters: {weight: 2}}, {model: two, parameters: {weight: 1}}]
---
name: two
merge_method: linear
models: [{model: one, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]
"""


@pytest.fixture
def models(make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensors]:
    """Two models in the current folder."""
    monkeypatch.chdir(tmp_path)
    found: dict[str, Tensors] = {}
    for seed, name in enumerate("ab"):
        rng = np.random.default_rng(seed)
        found[name] = {part: rng.normal(size=(4, 3)).astype(np.float32) for part in ("w", "v")}
        files = {"tokenizer.json": "{}"} if name == "a" else {}
        make_model(name, found[name], config={"from": name}, files=files)
    return found


def expected(models: dict[str, Tensors]) -> Tensors:
    a, b = models["a"], models["b"]
    one = {name: (a[name] + b[name]) / 2 for name in a}
    two = {name: (one[name] + 3 * b[name]) / 4 for name in a}
    return {name: a[name] + 2 * (one[name] - a[name]) + (two[name] - a[name]) for name in a}


def check(models: dict[str, Tensors], out: Path) -> None:
    with ws.open_checkpoint(out) as merged:
        for name, array in expected(models).items():
            np.testing.assert_allclose(merged[name], array, rtol=1e-5, atol=1e-6)


def problems(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        ws.plan_merge(text)
    return "\n".join(caught.value.problems)


def test_documents_use_each_others_outputs(models: dict[str, Tensors], tmp_path: Path) -> None:
    """In the order in which they need each other; only the final output stays."""
    plan = ws.plan_merge(TEXT)
    assert [name for name, _ in plan.stages] == ["one", "two"]
    assert plan.method == "task_arithmetic"
    assert [stage.method for _, stage in plan.stages] == ["linear", "linear"]
    assert [(model.label, bool(model.files)) for model in plan.models] == [
        ("one", False),
        ("two", False),
        ("a", True),
    ]
    assert plan.recipe == TEXT
    assert json.loads(json.dumps(plan.to_json()))["stages"]["two"]["method"] == "linear"
    before = set(os.listdir(tmp_path))
    report = ws.merge_checkpoints(TEXT, "out")
    check(models, tmp_path / "out")
    assert set(os.listdir(tmp_path)) - before == {"out"}
    assert {"config.json", "tokenizer.json", "mergekit_config.yml"} <= set(report.files)
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == TEXT


def test_a_plan_can_be_carried_out_later(models: dict[str, Tensors], tmp_path: Path) -> None:
    """With its stages, into a single file."""
    plan = ws.plan_merge(TEXT)
    ws.merge_checkpoints(plan, tmp_path / "out.safetensors")
    check(models, tmp_path / "out.safetensors")


def test_intermediates_can_stay_and_are_used_again(
    models: dict[str, Tensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished one with the same plan and inputs is not made again; a changed one is."""
    made: list[str] = []
    real = stages.run_plan

    def counted(plan: ws.MergePlan, out: Any, **keys: Any) -> Any:
        made.append(Path(out).name)
        return real(plan, out, **keys)

    monkeypatch.setattr(stages, "run_plan", counted)
    keys: dict[str, Any] = {
        "intermediates": tmp_path / "kept",
        "keep_intermediates": True,
    }
    ws.merge_checkpoints(TEXT, "out", **keys)
    with ws.open_checkpoint(tmp_path / "kept" / "one") as one:
        wanted = (models["a"]["w"] + models["b"]["w"]) / 2
        np.testing.assert_allclose(one["w"], wanted, rtol=1e-6)
    ws.merge_checkpoints(TEXT, "again", **keys)
    assert made == ["one", "two", "out", "again"]
    ws.merge_checkpoints(TEXT, "anew", resume=False, **keys)
    assert made[4:] == ["one", "two", "anew"]
    ws.merge_checkpoints(TEXT.replace("weight: 3", "weight: 5"), "other", **keys)
    assert made[7:] == ["two", "other"]
    (tmp_path / "kept" / "one" / "model.safetensors").write_bytes(b"damaged")
    ws.merge_checkpoints(TEXT, "mended", **keys)
    assert made[9:] == ["one", "two", "mended"]
    check(models, tmp_path / "mended")


def test_an_interrupted_run_goes_on_with_the_stages_that_are_finished(
    models: dict[str, Tensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is there already; the second is made by the next run."""
    made: list[str] = []
    real = stages.run_plan

    def stopped(plan: ws.MergePlan, out: Any, **keys: Any) -> Any:
        if Path(out).name == "two" and not made.count("two"):
            made.append("two")
            raise KeyboardInterrupt
        made.append(Path(out).name)
        return real(plan, out, **keys)

    monkeypatch.setattr(stages, "run_plan", stopped)
    with pytest.raises(KeyboardInterrupt):
        ws.merge_checkpoints(TEXT, "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.intermediates" / "one").is_dir()
    ws.merge_checkpoints(TEXT, "out")
    assert made == ["one", "two", "two", "out"]
    check(models, tmp_path / "out")
    assert not (tmp_path / "out.intermediates").exists()


def test_an_output_that_exists_is_refused_before_any_stage(
    models: dict[str, Tensors], tmp_path: Path
) -> None:
    """And what lies where a stage would go, and is not ours, is left alone."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(OutputExistsError):
        ws.merge_checkpoints(TEXT, "out")
    assert not (tmp_path / "out.intermediates").exists()
    (tmp_path / "out.intermediates" / "one").mkdir(parents=True)
    (tmp_path / "out.intermediates" / "one" / "mine.txt").write_text("kept")
    with pytest.raises(OutputExistsError):
        ws.merge_checkpoints(TEXT, "out", overwrite=True)
    assert (tmp_path / "out.intermediates" / "one" / "mine.txt").read_text() == "kept"
    (tmp_path / "out.intermediates" / "one" / "mine.txt").rename(tmp_path / "mine.txt")
    ws.merge_checkpoints(TEXT, "out", overwrite=True)
    check(models, tmp_path / "out")


def test_progress_is_told_over_all_stages(models: dict[str, Tensors], tmp_path: Path) -> None:
    """In bytes of all outputs, never backwards."""
    told: list[tuple[int, int]] = []
    ws.merge_checkpoints(TEXT, "out", progress=lambda done, total: told.append((done, total)))
    size = 2 * 4 * 3 * 4
    assert {total for _, total in told} == {3 * size}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (3 * size, 3 * size)


def test_the_last_that_no_other_uses_is_the_final_one(
    models: dict[str, Tensors],
) -> None:
    """Where all have names; what it does not need is not made, and told."""
    text = TEXT.replace("# the final one", "name: last") + "\n---\n".join(
        [
            "",
            "name: beside\nmerge_method: linear\nmodels: [{model: b, parameters: {weight: 1}}]",
        ]
    )
    plan = ws.plan_merge(text)
    assert (plan.method, plan.stages) == ("linear", ())
    assert "documents that beside does not need are not merged: one, last, two" in plan.warnings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: two", "name: one"), "name: 'one' is that of 2 documents"),
        (
            ("name: two\n", ""),
            "name: 2 documents have none, and only the final one may",
        ),
        (
            ("{model: a}, {model: b}", "{model: two}, {model: b}"),
            "documents need each other in a circle: one -> two -> one",
        ),
        (
            ("{model: a}, {model: b}", "{model: one}, {model: b}"),
            "documents need each other in a circle: one -> one",
        ),
        (
            ("{model: a}, {model: b}", "{model: c}, {model: b}"),
            "one: models[0].model: there is no",
        ),
        (
            ("weight: 3", "weigth: 3"),
            "two: models[1].parameters.weigth: unknown parameter",
        ),
        (("name: two", "name: [1]"), "document 3: name: expected a text"),
        (("name: two", "name: a/b"), "document 3: name: expected a text of at most 100 letters"),
        (
            ("{model: two,", "{model: two+lora,"),
            "an adapter cannot be added to the output of another",
        ),
        (("{model: two,", "{model: two@main,"), "document 2: models[1].model: "),
    ],
)
def test_what_is_wrong_with_a_document_is_told_with_its_name(
    change: tuple[str, str], message: str, models: dict[str, Tensors]
) -> None:
    """Before anything is written."""
    assert message in problems(TEXT.replace(*change))


def test_every_document_that_waits_for_all_others_is_refused(
    models: dict[str, Tensors],
) -> None:
    """There is no final one."""
    part = "name: {}\nmerge_method: linear\nmodels: [{{model: {}, parameters: {{weight: 1}}}}]\n"
    text = part.format("x", "y") + "---\n" + part.format("y", "x")
    assert "every document is used by another, so none is the final one" in problems(text)


def test_the_configuration_of_a_stage_is_that_of_the_next(
    make_model: Make, models: dict[str, Tensors], tmp_path: Path
) -> None:
    """Layers that one stage stacks are counted by the next; its files go along."""
    layers = {f"h.{i}.w": np.full(2, i, np.float32) for i in range(3)}
    files = {"tokenizer.json": "{}", "notes.txt": "hello"}
    make_model("deep", layers, config={"n_layer": 3}, files=files)
    text = (
        "name: stack\nmerge_method: passthrough\nslices:\n"
        "- sources: [{model: deep, layer_range: [0, 3]}]\n"
        "- sources: [{model: deep, layer_range: [1, 3]}]\n"
        "---\nmerge_method: passthrough\nslices:\n"
        "- sources: [{model: stack, layer_range: [2, 5]}]\n"
        "- sources: [{model: stack, layer_range: [4, 5]}]\n"
    )
    ws.merge_checkpoints(text, "out")
    out = tmp_path / "out"
    with ws.open_checkpoint(out) as merged:
        assert [merged[f"h.{i}.w"][0] for i in range(4)] == [2, 1, 2, 2]
    assert json.loads((out / "config.json").read_text())["n_layer"] == 4
    assert (out / "notes.txt").read_text() == "hello"


def test_the_vocabulary_that_one_document_makes_is_the_input_of_another(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokenizer is known while planning; rows of three vocabularies meet in the last."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra [language] is not installed")
    monkeypatch.chdir(tmp_path)
    rows: dict[str, dict[str, float]] = {}
    for number, (name, words) in enumerate({"a": "ux", "b": "uy", "c": "uzx"}.items()):
        known = {word: place for place, word in enumerate(words)}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="u"))
        rows[name] = {word: 10.0 * number + place for word, place in known.items()}
        table = np.float32([[value, 1] for value in rows[name].values()])
        config = {"vocab_size": len(words)}
        files = {"tokenizer.json": made.to_str()}
        make_model(name, {"model.embed_tokens.weight": table}, config=config, files=files)
    text = (
        "name: ab\nmerge_method: linear\ntokenizer_source: union\nparameters: {weight: 1}\n"
        "models: [{model: a}, {model: b}]\n"
        "---\nmerge_method: linear\ntokenizer_source: union\nparameters: {weight: 1}\n"
        "models: [{model: ab}, {model: c}]\n"
    )
    ws.merge_checkpoints(text, "out")
    out = tmp_path / "out"
    known = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    assert set(known) == set("uxyz")
    with ws.open_checkpoint(out) as merged:
        table = merged["model.embed_tokens.weight"]
    a, b, c = (rows[name] for name in "abc")
    # A row that only one model has stands for it in the other too.
    first = {"u": (a["u"] + b["u"]) / 2, "x": a["x"], "y": b["y"]}
    expected = {
        "u": (first["u"] + c["u"]) / 2,
        "x": (first["x"] + c["x"]) / 2,
        "y": first["y"],
        "z": c["z"],
    }
    assert {word: table[place, 0] for word, place in known.items()} == expected
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 4


@pytest.mark.parametrize("place", ["one", "two", "last", "clearing"])
def test_a_killed_run_is_finished_by_the_next(
    place: str, models: dict[str, Tensors], tmp_path: Path
) -> None:
    """In a stage, in the final merge, and while the stages are removed: the same bytes."""
    text = TEXT.replace("weight: 3", "weight: 4")
    ws.merge_checkpoints(text, "whole")
    reached = {"one": 1, "two": 97, "last": 193, "clearing": 10**9}[place]
    script = (
        "import os, signal, sys\n"
        "import weightshare as ws\n"
        "from weightshare.recipes import stages\n"
        "def die(*_):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if sys.argv[2] == 'clearing':\n"
        "    stages._remove = die\n"
        "told = lambda done, total: done >= int(sys.argv[1]) and die()\n"
        "ws.merge_checkpoints(sys.stdin.read(), 'out', progress=told)\n"
    )
    command = [sys.executable, "-c", script, str(reached), place]
    killed = subprocess.run(command, input=text, text=True, cwd=tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "out" / "model.safetensors").exists() == (place == "clearing")
    ws.merge_checkpoints(text, "out", overwrite=place == "clearing")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out.intermediates").exists()

"""The commands that look at checkpoints, methods and shells; help and JSON of every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws

Run = Callable[..., Any]
Make = Callable[..., Path]
COMMANDS = ["merge", "plan", "methods", "inspect", "diff", "similarity", "verify", "demo"]
COMMANDS += ["completion"]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_a_terminal_and_has_an_example(command: str | None, run: Run) -> None:
    """Below 80 columns, with one example that names the command."""
    arguments = ["--help"] if command is None else [command, "--help"]
    done = run(*arguments)
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) < 80
    assert done.out.count("Example:") == 1
    assert f"  weightshare {command or 'merge'}" in done.out


def test_every_command_is_listed_once_in_a_group(run: Run) -> None:
    """Under Merge, Look at checkpoints, or More."""
    lines = run("--help").out.splitlines()
    for command in COMMANDS:
        assert sum(line.startswith(f"  {command} ") for line in lines) == 1
    assert {"Merge:", "Look at checkpoints:", "More:"} <= set(lines)


def test_the_options_of_merge_stand_in_groups(run: Run) -> None:
    """Each option once, under a title."""
    text = run("merge", "--help").out
    for title in ("Output:", "Recipe:", "Recipes of several documents:", "Machine:"):
        assert f"\n{title}\n" in text
    for option in ("--overwrite", "--lenient", "--memory", "--json", "--keep-intermediates"):
        assert text.count(f"  {option} ") == 1
    assert "--cuda" not in text


# The keys of each command's JSON: they are read by other programs, so they stay.
KEYS = {
    "merge": "bytes_read bytes_written copied files merged method out peak_memory schema seconds"
    " warnings",
    "plan": "counts disk_bytes files method models parameters peak_memory_bytes read_bytes schema"
    " shards tensors warnings write_bytes",
    "inspect": "bytes dtypes hints layers metadata parameters path schema tensors",
    "methods": "methods schema",
    "diff": "extra first identical max_abs missing relative schema second tensors",
    "similarity": "base center left_out matrix metric models schema",
    "verify": "compared nbytes nonfinite path problems schema sound tensors warnings",
}


@pytest.mark.parametrize("command", list(KEYS))
def test_json_is_all_of_stdout_and_keeps_its_keys(
    command: str, run: Run, recipe: Path, tmp_path: Path
) -> None:
    """Each command that prints a result prints it as JSON when asked."""
    arguments = {
        "merge": (recipe, tmp_path / "out"),
        "plan": (recipe,),
        "inspect": (tmp_path / "a",),
        "methods": (),
        "diff": (tmp_path / "a", tmp_path / "b"),
        "similarity": (tmp_path / "a", tmp_path / "b"),
        "verify": (tmp_path / "a",),
    }
    done = run(command, *arguments[command], "--json")
    assert (done.code, done.err) == (0, "")  # also the warnings are in the JSON
    found = json.loads(done.out)
    assert found["schema"] == 1
    assert set(KEYS[command].split()) <= set(found)


def test_keys_within_the_json_stay(run: Run, recipe: Path, tmp_path: Path) -> None:
    """Of tensors, layers, methods and parameters."""
    of = {
        "inspect": json.loads(run("inspect", tmp_path / "a", "--json").out)["tensors"][0],
        "diff": json.loads(run("diff", tmp_path / "a", tmp_path / "b", "--json").out)["tensors"][0],
        "methods": json.loads(run("methods", "linear", "--json").out)["methods"][0],
    }
    assert set(of["inspect"]) == {"name", "dtype", "shape", "bytes", "file"}
    assert set(of["diff"]) == {
        "name",
        "dtypes",
        "shapes",
        "identical",
        "relative",
        "max_abs",
        "cosine",
        "sign",
        "changed",
        "not_finite",
    }
    assert set(of["methods"]) == {
        "name",
        "summary",
        "source",
        "base",
        "needs_base",
        "min_models",
        "max_models",
        "differs",
        "parameters",
    }
    assert set(of["methods"]["parameters"][0]) == {
        "name",
        "summary",
        "kind",
        "per_model",
        "required",
        "default",
        "low",
        "high",
    }


def test_diff_shows_what_changed_most_first(run: Run, make_model: Make) -> None:
    """A table with heads, cut by --top, complete with --all, and no exit code unless asked."""
    first = {f"w{i}": np.ones(4, np.float32) for i in range(30)} | {"same": np.ones(2)}
    second = {f"w{i}": np.float32([1, 1, 1, 1 + i]) for i in range(30)} | {"same": np.ones(2)}
    a, b = make_model("first", first), make_model("second", second)
    done = run("diff", a, b, "--top", "2")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    heads = next(i for i, line in enumerate(lines) if line.startswith("tensor"))
    words = lines[heads + 1].split()
    assert words == ["w29", "F32", "[4]", "14.5", "29", "0.5491", "100", "%", "25", "%"]
    assert lines[-1] == "and 27 more that differ (--all shows everything)"
    every = run("diff", a, b, "--all", "--sort", "name").out.splitlines()
    shown = [line.split()[0] for line in every if line.startswith(("w", "same"))]
    assert shown == sorted([*first])
    assert run("diff", a, b, "--exit-code").code == 1
    assert run("diff", a, a, "--exit-code").code == 0
    assert "identical" in run("diff", a, a).out


def test_similarity_is_that_of_the_loaded_models(run: Run, make_model: Make) -> None:
    """In JSON to the last bit, as text with four digits; what does not fit is left out, and said."""
    random = np.random.default_rng(0)
    models = [
        {"w": random.standard_normal((5, 3)), "v": random.standard_normal(4).astype(np.float32)}
        for _ in range(3)
    ]
    extra = [{"i": np.arange(j + 1), f"only{j}": np.ones(1), "s": np.ones(j + 1)} for j in range(3)]
    paths = [make_model(f"m{j}", models[j] | extra[j]) for j in range(3)]
    for metric in ("cosine", "row_cosine", "sign", "procrustes", "cka"):
        done = run("similarity", *paths[:2], "--base", paths[2], "--metric", metric, "--json")
        found = json.loads(done.out)
        expected = ws.similarity(models[:2], metric, base=models[2])
        np.testing.assert_allclose(found["matrix"], expected, rtol=1e-15, atol=1e-15)
        assert set(found["left_out"]) == {
            "no floating-point numbers",
            "not in all of them",
            "of different shapes",
        }
    text = run("similarity", *paths)
    assert f"{ws.similarity(models)[0, 2]:7.4f}" in text.out
    assert "left out, of different shapes: 1 (s)" in text.err
    tensors = run("similarity", *paths, "--level", "tensor", "--json")
    each = json.loads(tensors.out)["tensors"]
    assert {name: np.shape(matrix) for name, matrix in each.items()} == {"w": (3, 3), "v": (3, 3)}
    table = run("similarity", *paths, "--level", "tensor").out.splitlines()
    assert table[-3].split() == ["tensor", "1-2", "1-3", "2-3"]
    many = run("similarity", *paths, *paths, "--level", "tensor").out.splitlines()
    assert many[-3].split() == ["tensor", "least", "mean"]


def test_checkpoints_with_nothing_in_common_have_no_similarity(run: Run, make_model: Make) -> None:
    """Said in one line, exit code 2."""
    a, b = make_model("a", {"x": np.ones(1)}), make_model("b", {"y": np.ones(1)})
    done = run("similarity", a, b)
    assert (done.code, done.out) == (2, "")
    assert "no floating-point tensor of one name and shape" in done.err


def test_inspect_shows_layers_that_are_alike_once(run: Run, make_model: Make) -> None:
    """With their number and size; a layer that differs, a gap and a tied head are told."""
    names = {"embed_tokens.weight": (8, 4), "norm.weight": (4,)}
    for layer in (0, 1, 2, 3, 4, 6, 7):
        names[f"layers.{layer}.mlp.weight"] = (4, 4)
        if layer != 3:
            names[f"layers.{layer}.norm.weight"] = (4,)
    tensors = {name: np.ones(shape, ml_dtypes.bfloat16) for name, shape in names.items()}
    config = {"num_hidden_layers": 8, "tie_word_embeddings": True}
    path = make_model("llama", tensors, config=config)
    text = run("inspect", path).out
    lines = [line.split() for line in text.splitlines()]
    assert ["layers.0-2,4,6-7.", "x", "6", "2", "tensors", "240", "B"] in lines
    assert ["mlp.weight", "BF16", "[4,", "4]", "32", "B"] in lines
    assert ["layers.3.mlp.weight", "BF16", "[4,", "4]", "32", "B"] in lines
    assert "layers.3 lacks what the other layers have: norm.weight" in text
    assert "layers.5 is missing between its neighbours" in text
    assert "config.json says 8 layers, the files hold layers.* 7" in text
    assert "the head is tied to the embeddings" in text
    every = run("inspect", path, "--all").out
    assert all(name in every for name in names)
    layers = json.loads(run("inspect", path, "--json").out)["layers"]
    assert [layer["numbers"] for layer in layers] == [[0, 1, 2, 4, 6, 7], [3]]


def test_inspect_shows_forty_lines_or_all(run: Run, make_model: Make) -> None:
    """Long lists are cut, and hostile names cannot drive the terminal."""
    tensors = {f"w{i}": np.ones(1, np.float32) for i in range(50)} | {"a\x1b[31m": np.ones(1)}
    path = make_model("long", tensors)
    done = run("inspect", path)
    assert "and 11 more lines (--all lists every tensor)" in done.out
    assert len(run("inspect", path, "--all").out.splitlines()) > 50
    assert "\x1b" not in run("inspect", path, "--all").out


@pytest.mark.parametrize(
    "name", ["h.999999999999999999999.w", "h.007.w", ".0.", "h.1000000000.w", "٣.w", "0.0.0"]
)
def test_inspect_takes_any_number_in_a_name(name: str, run: Run, make_model: Make) -> None:
    """Names come from files: a layer's number may be anything."""
    path = make_model("odd", {name: np.ones(1), "h.1.w": np.ones(1), "h.999999999.w": np.ones(1)})
    done = run("inspect", path)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"num_hidden_layers": "x"}', "[" * 10_000])
def test_inspect_needs_no_sound_configuration(text: str, run: Run, make_model: Make) -> None:
    """A config.json that says nothing is no error."""
    assert run("inspect", make_model("m", files={"config.json": text})).code == 0


@pytest.mark.parametrize("command", ["inspect", "diff", "similarity", "verify"])
def test_a_missing_checkpoint_is_exit_code_3(command: str, run: Run, tmp_path: Path) -> None:
    """As a damaged one is; the path is named and there is no traceback."""
    paths = [tmp_path / "none"] * (2 if command in ("diff", "similarity") else 1)
    done = run(command, *paths)
    assert (done.code, done.out) == (3, "")
    assert "E101" in done.err
    assert "Traceback" not in done.err


def test_methods_lists_every_method_on_a_line(run: Run) -> None:
    """Names with their formulas, narrow enough for a terminal."""
    lines = run("methods").out.splitlines()
    assert [line.split()[0] for line in lines[: len(ws.methods())]] == list(ws.methods())
    assert max(map(len, lines)) < 80


def test_methods_tells_all_about_each_method(run: Run) -> None:
    """Formula, paper, differences, every parameter with its default."""
    for name, method in ws.methods().items():
        done = run("methods", name)
        told = " ".join(done.out.split())
        assert " ".join(method.summary.split()) in told
        assert " ".join(method.source.split()) in told
        assert " ".join(method.differs.split()) in told
        assert max(map(len, done.out.splitlines())) < 80
        for parameter in method.parameters:
            assert f"  {parameter.name} " in done.out
    told = " ".join(run("methods", "linear").out.split())
    assert "(for each model, number, required)" in told
    assert "(once, true or false, default true)" in told


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, run: Run) -> None:
    """It calls the command with the variable that the command listens to."""
    done = run("completion", shell)
    assert (done.code, done.err) == (0, "")
    assert f"_WEIGHTSHARE_COMPLETE={shell}_complete" in done.out


def test_completion_completes_commands_and_options() -> None:
    """As the script of bash asks."""
    command = [sys.executable, "-c", "from weightshare.cli import main; main()"]
    for words, expected in (
        ("weightshare si", "plain,similarity"),
        ("weightshare diff --so", "plain,--sort"),
    ):
        asked = {
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
            "_WEIGHTSHARE_COMPLETE": "bash_complete",
        }
        done = subprocess.run(
            command, env=os.environ | asked, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [expected]


def test_verify_finds_one_flipped_bit(run: Run, recipe: Path, tmp_path: Path) -> None:
    """Exit code 0 before, 3 after, with the tensor named, in text and in JSON."""
    assert run("merge", recipe, tmp_path / "out").code == 0
    done = run("verify", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    assert "Sound" in done.out
    file = tmp_path / "out" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = run("verify", tmp_path / "out")
    assert done.code == 3
    assert "Damaged" in done.out
    assert any(line.startswith("problem: ") for line in done.out.splitlines())
    found = json.loads(run("verify", tmp_path / "out", "--json").out)
    assert (found["sound"], len(found["problems"])) == (False, 1)
    file.write_bytes(data[:-1])
    done = run("verify", tmp_path / "out", "--json")
    assert done.code == 3
    assert "E218" in json.loads(done.out)["problems"][0]


def test_verify_has_a_policy_about_nan(run: Run, make_model: Make) -> None:
    """A warning unless told; with --nan error a problem, with --nan ignore nothing."""
    path = make_model("m", {"w": np.float32([1, np.nan])})
    expected = {(): (0, True), ("--nan", "error"): (3, True), ("--nan", "ignore"): (0, False)}
    for options, (code, is_told) in expected.items():
        done = run("verify", path, *options)
        assert done.code == code
        assert ("w: 1 elements are NaN or infinite" in done.out + done.err) == is_told


@pytest.mark.parametrize("place", ["model", "base"])
def test_similarity_names_the_file_that_holds_nan(place: str, make_model: Make, run: Run) -> None:
    """By its path, as a bad input file."""
    good, bad = make_model("good", {"w": np.ones(2)}), make_model("bad", {"w": [np.nan, 1.0]})
    given = [good, bad] if place == "model" else [good, good, "--base", bad]
    done = run("similarity", *given)
    assert done.code == 3
    assert f"error: {bad}" in done.err
    assert "expected finite values, got NaN" in done.err

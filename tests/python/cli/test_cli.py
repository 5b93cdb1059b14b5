"""The command line: results on stdout, everything else on stderr, and exit codes that hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import OutputSpaceError
from weightshare.merging.files import locked_folder

Make = Callable[..., Path]
COMMAND = [sys.executable, "-c", "from weightshare.cli import main; main()"]


Run = Callable[..., Any]


def test_merge_writes_the_model_and_says_so(run: Run, recipe: Path, tmp_path: Path) -> None:
    """Exit code 0, the report on stdout, nothing on stderr, the right numbers on disk."""
    done = run("merge", recipe, tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    assert "1 merged, 1 copied by linear" in done.out
    with ws.open_checkpoint(tmp_path / "out") as merged:
        np.testing.assert_array_equal(merged["w"], [[2, 4], [6, 8]])


def test_plan_and_inspect_show_what_there_is(run: Run, recipe: Path, tmp_path: Path) -> None:
    """Plans and tensors as text that a person reads, and nothing written."""
    before = sorted(tmp_path.rglob("*"))
    planned = run("plan", recipe, "--tensors")
    assert planned.code == 0
    assert "1 merged, 1 copied" in planned.out
    assert "ids  I64  [2]     copy" in planned.out
    seen = run("inspect", tmp_path / "b")
    assert "w    F32  [2, 2]  16 B" in seen.out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge"], "Missing argument 'RECIPE'"),
        (["merge", "r.yml", "out", "--memroy", "1"], "--memory"),
        (["merge", "r.yml", "out", "--nan", "maybe"], "'maybe'"),
        (["merge", "r.yml", "out", "--threads", "0"], "0 is not in the range"),
        (["merge", "r.yml", "out", "--out-shard-size", "big"], "such as 500m, 5b or 5GiB"),
        (["merge", "r.yml", "out", "--single-file"], "must end in .safetensors"),
        (["plan", "nothing.yml"], "nothing.yml cannot be read"),
        (["merge", "r.yml"], "Missing argument 'OUT'"),
        (["merge", "r.yml", "out", "--out-path", "out"], "expected one of them, got both"),
        (["similarity", "a"], "expected two or more checkpoints, got 1"),
        (["methods", "tise"], "did you mean 'ties'?"),
        (["completion", "tcsh"], "'tcsh'"),
        (["mrege"], "did you mean 'merge'?"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], message: str, run: Run) -> None:
    """The message is on stderr, without a traceback."""
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_wrong_recipe_is_exit_code_2_with_all_problems(
    run: Run, recipe: Path, tmp_path: Path
) -> None:
    """Every problem on its line, and no output folder."""
    recipe.write_text(recipe.read_text() + "surprise: 1\ndtype: int3\n")
    done = run("merge", recipe, tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert "weightshare: error: 2 problems\n  - surprise: unknown key\n" in done.err
    assert "dtype: expected one of" in done.err
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_exit_code_2(run: Run, recipe: Path, tmp_path: Path) -> None:
    """It is replaced only with --overwrite."""
    assert run("merge", recipe, tmp_path / "out").code == 0
    done = run("merge", recipe, tmp_path / "out")
    assert done.code == 2
    assert "--overwrite" in done.err
    assert run("merge", recipe, tmp_path / "out", "--overwrite").code == 0


def test_a_damaged_file_is_exit_code_3(run: Run, recipe: Path, tmp_path: Path) -> None:
    """Truncated weights are bad input, for merge and for inspect."""
    file = tmp_path / "a" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for arguments in (("merge", recipe, tmp_path / "out"), ("inspect", tmp_path / "a")):
        done = run(*arguments)
        assert done.code == 3
        assert "E218" in done.err


@pytest.mark.parametrize(
    "error", [OutputSpaceError("full"), MemoryError("full"), OSError(28, "full")]
)
def test_no_room_is_exit_code_4(
    error: Exception, run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk and memory share a code; so does a budget that is too small."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("weightshare.checkpoint.CheckpointWriter.write_many", fail)
    done = run("merge", recipe, tmp_path / "out")
    assert done.code == 4
    assert "full" in done.err
    assert not (tmp_path / "out").exists()
    assert run("merge", recipe, tmp_path / "out", "--memory", "1MB").code == 4


def test_a_locked_output_is_exit_code_5(run: Run, recipe: Path, tmp_path: Path) -> None:
    """The holder is named."""
    with locked_folder(tmp_path / "out"):
        done = run("merge", recipe, tmp_path / "out")
    assert done.code == 5
    assert f"process {os.getpid()} is writing" in done.err


def test_nan_policy_is_exit_code_6(run: Run, make_model: Make, tmp_path: Path) -> None:
    """Overflow ends with 6, is a warning with --nan warn, and nothing with ignore."""
    big = {"w": np.float32([1e30])}
    models = [
        {"model": str(make_model(name, big)), "parameters": {"weight": 1}} for name in ("a", "b")
    ]
    path = tmp_path / "r.json"
    path.write_text(
        json.dumps({"merge_method": "linear", "models": models, "out_dtype": "float16"})
    )
    done = run("merge", path, tmp_path / "out")
    assert done.code == 6
    assert "w: 1 of 1 elements became NaN or infinite" in done.err
    warned = run("merge", path, tmp_path / "warned", "--nan", "warn")
    assert warned.code == 0
    assert "warning: w: 1 of 1" in warned.err
    for word in ("ignore", "allow"):
        assert run("merge", path, tmp_path / word, "--nan", word).err == ""


def test_what_is_unexpected_is_exit_code_1(
    run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is one line, and -vv shows the traceback."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("weightshare.recipes.merge_checkpoints", fail)
    done = run("merge", recipe, "out")
    assert done.code == 1
    assert "error: ZeroDivisionError: surprise" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in run("merge", recipe, "out", "-vv").err


def test_options_of_mergekit_are_accepted(run: Run, recipe: Path, tmp_path: Path) -> None:
    """Those without a meaning say so in one line, the others work."""
    without_meaning = (
        "--cuda --lazy-unpickle --allow-crimes --low-cpu-memory --trust-remote-code --read-to-gpu"
        " --unsafe-truncate-embeddings --multi-gpu --gpu-rich --async-write --clone-tensors"
        " --device cpu --write-threads 4"
        " --lora-merge-cache y --lora-merge-dtype float16"
    )
    with_meaning = (
        "--copy-tokenizer --no-write-model-card --out-shard-size 20 --random-seed 3 -j 1"
        " --safe-serialization"
    )
    arguments = (*without_meaning.split(), *with_meaning.split())
    done = run("merge", recipe, tmp_path / "out", *arguments)
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("weightshare: no meaning here, ignored: ")
    ignored = {word.strip(",") for word in line.split() if word.startswith("--")}
    assert ignored == {word for word in without_meaning.split() if word.startswith("--")}
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2
    assert not (tmp_path / "out" / "README.md").exists()
    told = run("merge", recipe, tmp_path / "two", "--no-safe-serialization")
    assert told.err.splitlines() == [
        "weightshare: --no-safe-serialization is ignored: weights are always safetensors"
    ]


def test_single_file_quiet_and_verbose(run: Run, recipe: Path, tmp_path: Path) -> None:
    """One file when told, silence when told, the plan when told."""
    done = run("merge", recipe, tmp_path / "m.safetensors", "--single-file", "--quiet", "--cuda")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "m.safetensors").is_file()
    assert "Plan" in run("merge", recipe, tmp_path / "out", "-v").err


def test_help_lists_the_commands_and_the_exit_codes(run: Run) -> None:
    """Every command with its line, demo included, and what each exit code means."""
    text = run("--help").out
    for line in (
        "merge       merge checkpoints by a recipe",
        "similarity  say how alike checkpoints are",
        "demo        train, share, merge on real digits",
    ):
        assert line in text
    for code in (
        "0 done",
        "2 usage",
        "3 bad or missing input",
        "5 output locked",
        "6 NaN",
        "130 interrupted",
    ):
        assert code in " ".join(text.split())
    assert run("--version").out == f"weightshare, version {ws.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    """The list of commands comes without NumPy, YAML or the core."""
    program = (
        "import sys\nfrom weightshare.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('yaml', 'numpy', 'tqdm', 'weightshare._core') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_has_its_exit_code_and_leaves_nothing(
    number: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    """Ctrl-C or kill in the middle of a merge ends it within a second or so, no traceback."""
    size = 1_000_000_000
    header = json.dumps(
        {"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    ).encode()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "model.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
    text = "parameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\nmerge_method: linear\n"
    (tmp_path / "r.yml").write_text(text)
    process = subprocess.Popen(
        [*COMMAND, "merge", "r.yml", "out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while process.poll() is None and not list(tmp_path.glob("out/.*partial*")):
            time.sleep(0.002)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert out == ""
    assert err.strip() == f"weightshare: {word}"
    assert not (tmp_path / "out").exists()


def test_the_process_has_the_exit_code(recipe: Path, tmp_path: Path) -> None:
    """As a user runs it: 0 with only the report on stdout, 2 with only the error on stderr."""
    command: list[Any] = [*COMMAND, "merge", recipe, tmp_path / "out"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (first.returncode, first.stderr) == (0, "")
    assert (second.returncode, second.stdout) == (2, "")


def test_recipes_of_several_documents_are_merged_in_turn(
    run: Run, make_model: Make, tmp_path: Path
) -> None:
    """As mergekit-multi does, with its options; the plans of all are told."""
    paths = [make_model(name, {"w": np.float32([value])}) for name, value in (("a", 0), ("b", 4))]
    text = (
        "{{name: half, merge_method: linear, models: [{{model: {0}}}, {{model: {1}}}],"
        " parameters: {{weight: 1}}}}\n---\n"
        "{{merge_method: linear, models: [{{model: half}}, {{model: {1}}}], parameters: {{weight: 1}}}}\n"
    )
    recipe = tmp_path / "multi.yml"
    recipe.write_text(text.format(*paths))
    assert "Plan of half" in run("plan", recipe).out
    command = ("merge", recipe, "--out-path", tmp_path / "out", "-I", tmp_path / "between")
    done = run(*command, "--lazy", "--keep-intermediates", "-v")
    assert done.code == 0
    assert "Plan of half" in done.err
    with ws.open_checkpoint(tmp_path / "out") as merged:
        assert merged["w"] == 3
    with ws.open_checkpoint(tmp_path / "between" / "half") as half:
        assert half["w"] == 2
    assert run(*command, "--overwrite").code == 0
    assert not (tmp_path / "between" / "half").exists()


def test_options_reach_the_function_that_merges(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of resuming, memory, threads, NaN and intermediates, each with its default."""
    given: dict[str, Any] = {}

    def noted(plan: ws.MergePlan, out: Path, **options: Any) -> ws.MergeReport:
        given.update(options)
        raise MemoryError("noted")

    monkeypatch.setattr("weightshare.recipes.merge_checkpoints", noted)
    defaults = {"resume": True, "overwrite": False, "memory": "512MB", "threads": None}
    defaults |= {"progress": True, "nan": "error", "intermediates": None}
    assert run("merge", recipe, tmp_path / "out").code == 4
    assert given == defaults | {"keep_intermediates": False}
    words = (
        "--no-resume --memory 1GB -j 3 --no-progress --nan warn --intermediate-dir i --overwrite"
    )
    assert run("merge", recipe, tmp_path / "out", *words.split(), "--keep-intermediates").code == 4
    assert given == {
        "resume": False,
        "overwrite": True,
        "memory": "1GB",
        "threads": 3,
        "progress": False,
        "nan": "warn",
        "intermediates": "i",
        "keep_intermediates": True,
    }
    assert run("merge", recipe, tmp_path / "out", "--no-lazy").code == 4
    assert given["resume"] is False


def test_lenient_makes_unknown_keys_warnings(run: Run, recipe: Path, tmp_path: Path) -> None:
    """For plan and merge; without it they are errors."""
    recipe.write_text(recipe.read_text() + "dtpye: float32\n")
    for command in (("plan", recipe), ("merge", recipe, tmp_path / "out")):
        assert run(*command).code == 2
        done = run(*command, "--lenient")
        assert done.code == 0
        assert "weightshare: warning: dtpye" in done.err


def test_models_of_the_hub_are_looked_for_in_the_cache_that_is_named(
    run: Run, make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By --transformers-cache, as mergekit-yaml takes it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    cached = tmp_path / "cache" / "models--org--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    make_model("tiny", {"w": np.float32([7])}).rename(cached / "snapshots" / ("0" * 40))
    recipe = tmp_path / "hub.yml"
    recipe.write_text("{merge_method: passthrough, models: [{model: org/tiny}]}")
    done = run("merge", recipe, tmp_path / "out", "--transformers-cache", tmp_path / "cache")
    assert (done.code, done.err) == (0, "")
    with ws.open_checkpoint(tmp_path / "out") as merged:
        assert merged["w"] == 7

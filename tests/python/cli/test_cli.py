"""The command line: results on stdout, everything else on stderr, and exit codes that hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import weightshare as ws
from weightshare.cli import main
from weightshare.errors import OutputSpaceError
from weightshare.merging.files import locked_folder

Make = Callable[..., Path]
COMMAND = [sys.executable, "-c", "from weightshare.cli import main; main()"]


@dataclass
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line inside this process."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Done(caught.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def recipe(make_model: Make, tmp_path: Path) -> Path:
    """A recipe of two small models."""
    tensors = [{"w": np.float32([[1, 2], [3, 4]]) * k, "ids": np.arange(2)} for k in (1, 3)]
    paths = [make_model(name, t) for name, t in zip("ab", tensors, strict=True)]
    path = tmp_path / "recipe.yml"
    models = [{"model": str(p), "parameters": {"weight": 1}} for p in paths]
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return path


def test_merge_writes_the_model_and_says_so(run: Run, recipe: Path, tmp_path: Path) -> None:
    """Exit code 0, the report on stdout, nothing on stderr, the right numbers on disk."""
    done = run("merge", recipe, tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    assert "1 merged, 1 copied by linear" in done.out
    with ws.open_checkpoint(tmp_path / "out") as merged:
        np.testing.assert_array_equal(merged["w"], [[2, 4], [6, 8]])


@pytest.mark.parametrize("command", ["merge", "plan", "inspect", "methods"])
def test_json_is_all_of_stdout(command: str, run: Run, recipe: Path, tmp_path: Path) -> None:
    """Each command that prints a result prints it as JSON when asked."""
    arguments = {
        "merge": (recipe, tmp_path / "out"),
        "plan": (recipe,),
        "inspect": (tmp_path / "a",),
        "methods": (),
    }
    done = run(command, *arguments[command], "--json")
    assert done.code == 0
    assert json.loads(done.out)["schema"] == 1


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


def test_inspect_lists_forty_tensors_or_all(run: Run, make_model: Make) -> None:
    """Long lists are cut, and hostile names cannot drive the terminal."""
    tensors = {f"w{i}": np.ones(1, np.float32) for i in range(50)} | {"a\x1b[31m": np.ones(1)}
    path = make_model("long", tensors)
    done = run("inspect", path)
    assert "and 11 more (--all lists them)" in done.out
    assert len(run("inspect", path, "--all").out.splitlines()) > 50
    assert "\x1b" not in run("inspect", path, "--all").out


def test_methods_lists_every_method(run: Run) -> None:
    """Names, parameters with defaults, and papers."""
    done = run("methods")
    for name, method in ws.methods().items():
        assert name in done.out
        assert method.source in done.out
    assert "normalize" in done.out
    assert "default true" in done.out
    assert max(map(len, done.out.splitlines())) < 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge"], "Missing argument 'RECIPE'"),
        (["merge", "r.yml", "out", "--memroy", "1"], "--memory"),
        (["merge", "r.yml", "out", "--nan", "maybe"], "'maybe'"),
        (["merge", "r.yml", "out", "--threads", "0"], "0 is not in the range"),
        (["merge", "r.yml", "out", "--out-shard-size", "big"], "out-shard-size: expected"),
        (["merge", "r.yml", "out", "--single-file"], "must end in .safetensors"),
        (["plan", "nothing.yml"], "nothing.yml cannot be read"),
        (["inspect", "nothing"], "nothing"),
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

    monkeypatch.setattr("weightshare.checkpoint.CheckpointWriter.write", fail)
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
    """Overflow ends with 6, is a warning with --nan warn, and nothing with allow."""
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
    assert run("merge", path, tmp_path / "allowed", "--nan", "allow").err == ""


def test_what_is_unexpected_is_exit_code_1(
    run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is one line, and -vv shows the traceback."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("weightshare.recipes.plan_merge", fail)
    done = run("merge", recipe, "out")
    assert done.code == 1
    assert "error: ZeroDivisionError: surprise" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in run("merge", recipe, "out", "-vv").err


def test_options_of_mergekit_are_accepted(run: Run, recipe: Path, tmp_path: Path) -> None:
    """Those without a meaning say so in one line, the others work."""
    without_meaning = (
        "--cuda --lazy-unpickle --allow-crimes --low-cpu-memory --trust-remote-code --read-to-gpu"
        " --multi-gpu --gpu-rich --async-write --clone-tensors --device cpu --write-threads 4"
        " --transformers-cache x --lora-merge-cache y --lora-merge-dtype float16"
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


@pytest.mark.parametrize("command", [None, "merge", "plan", "inspect", "methods"])
def test_help_fits_a_terminal_and_has_an_example(command: str | None, run: Run) -> None:
    """Below 80 columns, with one example that names the command."""
    arguments = ["--help"] if command is None else [command, "--help"]
    done = run(*arguments)
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) < 80
    assert done.out.count("Example:") == 1
    assert f"  weightshare {command or 'merge'}" in done.out


def test_help_lists_the_commands_and_the_exit_codes(run: Run) -> None:
    """Every command with its line, demo included, and what each exit code means."""
    text = run("--help").out
    for line in (
        "merge    merge checkpoints by a recipe",
        "demo     train, share, merge on real digits",
    ):
        assert line in text
    for code in ("0 done", "2 usage", "3 bad input", "5 output locked", "6 NaN", "130 interrupted"):
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

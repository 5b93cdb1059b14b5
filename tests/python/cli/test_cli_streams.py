"""Standard input and output of the command line, and paths that are none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import weightshare as ws
from weightshare.cli import main

COMMAND = [sys.executable, "-c", "from weightshare.cli import main; main()"]


@pytest.fixture
def text(make_model: Callable[..., Path], linear: Callable[..., dict[str, Any]]) -> str:
    """A recipe of one small model."""
    return yaml.safe_dump(linear(make_model("a")))


def ran(*arguments: object, **keys: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, text=True, check=False, stderr=subprocess.PIPE, **keys)


def test_a_recipe_can_come_from_stdin(text: str, tmp_path: Path) -> None:
    """As - for merge and plan."""
    for arguments in (("merge", "-", tmp_path / "out"), ("plan", "-")):
        done = ran(*arguments, input=text, stdout=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, "")
    assert ws.open_checkpoint(tmp_path / "out")


def test_a_full_stdout_is_told_as_such(text: str, tmp_path: Path) -> None:
    """The merge itself is complete, and the message says so."""
    with open("/dev/full", "w") as full:
        done = ran("merge", "-", tmp_path / "out", input=text, stdout=full)
    assert done.returncode == 4
    assert "the merge is complete, but standard output: cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("merge", "", "out"), ("merge", "x", ""), ("plan", "")])
def test_an_empty_path_is_wrong_usage(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not mean the current folder."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "expected a path" in capsys.readouterr().err


def test_several_problems_are_indented_below_their_bullets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The further lines of a problem stand deeper than its bullet."""
    (tmp_path / "model.safetensors").write_bytes(b"x")
    models = [{"model": str(tmp_path)}, {"model": "nothing"}]
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    with pytest.raises(SystemExit):
        main(["plan", str(tmp_path / "r.yml")])
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(("  - ", "      ")) for line in lines[1:])
    assert any(line.startswith("      ") for line in lines)


def test_a_checkpoint_that_may_not_be_read_is_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As any other bad input file, not as wrong usage."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"x" * 10)

    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.access", lambda *_, **__: False)
    monkeypatch.setattr("os.open", closed)
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(path)])
    assert caught.value.code == 3
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_merge_is_done_whichever_stream_is_closed(closed: int, text: str, tmp_path: Path) -> None:
    """And nothing that is printed lands in a file which got the free descriptor."""
    (tmp_path / "r.yml").write_text(text)
    command = [*COMMAND, "merge", str(tmp_path / "r.yml"), str(tmp_path / "out"), "-v"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not ws.verify_checkpoint(tmp_path / "out").problems


def test_a_recipe_from_a_closed_stdin_is_empty() -> None:
    """It is a wrong recipe, not a fault of ours."""
    command = ["sh", "-c", 'exec "$@" 0<&-', "sh", *COMMAND, "plan", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "weightshare: error: recipe: is empty\n")


def test_a_merge_goes_on_when_the_reader_of_its_stderr_has_gone(text: str, tmp_path: Path) -> None:
    """Code 0 means that it is complete; before the first weight there are remarks to be lost."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, "merge", "-", str(tmp_path / "out"), "--cuda", "-v"]
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(command, input=text.encode(), stderr=gone, check=False)
    assert done.returncode == 0
    assert not ws.verify_checkpoint(tmp_path / "out").problems


def test_a_recipe_that_is_wrong_keeps_its_code_when_stderr_is_full() -> None:
    """Nobody reads the message, but a script reads the code."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "plan", "nothing.yml"], stderr=full, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("encoding", ["utf-8:strict", "latin-1:strict", "ascii:strict"])
def test_paths_that_have_no_code_on_stdout_are_told_nevertheless(
    encoding: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """As escapes: JSON stays JSON, and Unicode where stdout can take it."""
    model = make_model("a")
    folder = os.fsencode(tmp_path) + "/ü猫".encode() + b"\xff"
    os.rename(model, folder)
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [*COMMAND, "inspect", os.fsdecode(folder)]
    done = subprocess.run([*command, "--json"], env=environment, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.fsencode(json.loads(done.stdout.decode("utf-8"))["path"]) == folder
    done = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [("methods",), ("methods", "--json"), ("completion", "bash")])
def test_a_full_stdout_is_named(arguments: tuple[str, ...]) -> None:
    """The message says what cannot be written, not only that there is no space."""
    with open("/dev/full", "w") as full:
        done = ran(*arguments, stdout=full)
    assert done.returncode == 4
    assert done.stderr.startswith("weightshare: error: standard output: cannot be written: ")


def test_a_message_drives_no_terminal(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of tensors, keys and paths come from strangers, and stand in messages."""
    paths = [make_model("a", {"w\x1b[31m": np.ones(1)}), make_model("b", {"w": np.ones(1)})]
    models = [{"model": str(path), "parameters": {"k\x1b[2J": 1}} for path in paths]
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    for arguments in (["plan", str(tmp_path / "r.yml")], ["inspect", "no\x1b[31mthing"]):
        with pytest.raises(SystemExit):
            main(arguments)
        message = capsys.readouterr().err
        assert "?[31m" in message
        assert "\x1b" not in message

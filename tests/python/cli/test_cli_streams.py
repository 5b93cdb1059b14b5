"""Standard input and output of the command line, and paths that are none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

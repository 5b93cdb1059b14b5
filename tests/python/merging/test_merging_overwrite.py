"""Merging over an output: at every failure the old one is whole, and nothing stale stays."""

from __future__ import annotations

import errno
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
from weightshare.errors import OutputError
from weightshare.merging.files import RECORD_NAME
from weightshare.merging.run import locked_output

Make = Callable[..., Path]
Recipe = Callable[..., dict[str, Any]]
CONFIG = {"torch_dtype": "float32", "hidden_size": 3}

MERGE = """
import json, os, signal, sys, weightshare as ws
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
import weightshare.checkpoint.publish as publish
import weightshare.checkpoint.output_file as output_file
where = sys.argv[3]
if where == "before":
    output_file.OutputFile.write = die
elif where == "between":
    ws.checkpoint.CheckpointWriter.commit = die
elif where == "after":
    publish.Publication._remove = die
ws.merge_checkpoints(json.loads(sys.argv[1]), sys.argv[2], overwrite=True, max_shard_size=10**6)
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a user sees; a failed merge may leave hidden files to be gone on with."""
    seen = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    return {file.name: file.read_bytes() for file in seen}


def hidden(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


@pytest.fixture
def old(make_model: Make) -> Path:
    """The output of somebody, with a configuration and a tokenizer."""
    tensors = {"w": np.full((2, 3), 7, np.float32)}
    return make_model("out", tensors, config={"old": 1}, files={"tokenizer.json": "old"})


@pytest.fixture
def recipe(make_model: Make, linear: Recipe) -> dict[str, Any]:
    """Two models with a configuration and a tokenizer."""
    files = {"tokenizer.json": "new", "merges.txt": "new"}
    return linear(make_model("a", config=CONFIG, files=files), make_model("b"))


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "place",
    [
        "weightshare.checkpoint.output_file.OutputFile.finish",
        "weightshare.checkpoint.output_file.OutputFile.rename",
        "weightshare.checkpoint.CheckpointWriter.commit",
        "weightshare.merging.staging._keep",
    ],
)
def test_a_failure_while_overwriting_leaves_every_old_file(
    place: str,
    error: BaseException,
    old: Path,
    recipe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sync, rename or Ctrl-C at the very end: weights and small files are all the old ones."""

    def fail(*_: object) -> None:
        raise error

    before = contents(old)
    monkeypatch.setattr(place, fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        ws.merge_checkpoints(recipe, old, overwrite=True)
    assert contents(old) == before
    monkeypatch.undo()
    report = ws.merge_checkpoints(recipe, old, overwrite=True)
    assert report.bytes_reused == report.bytes_written
    assert hidden(old) == []


def test_a_failure_after_the_weights_leaves_every_new_file(
    old: Path, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the weights have their name the small files stay with them."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    ws.merge_checkpoints(recipe, tmp_path / "new")
    monkeypatch.setattr("weightshare.checkpoint.publish.Publication._remove", fail)
    with pytest.raises(KeyboardInterrupt):
        ws.merge_checkpoints(recipe, old, overwrite=True)
    assert contents(old) == contents(tmp_path / "new")
    assert hidden(old) == []


@pytest.mark.parametrize("where", ["before", "between", "after"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "over"])
def test_a_killed_run_is_cleared_up_by_the_next(
    where: str, fresh: bool, old: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """After kill -9 the same command works, and what was half published is taken back."""
    out = tmp_path / "fresh" if fresh else old
    before = {} if fresh else contents(old)
    command = [sys.executable, "-c", MERGE, json.dumps(recipe), str(out), where]
    killed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert any(name.startswith(".") for name in os.listdir(out))
    if where != "after":
        with pytest.raises(ws.errors.RecipeError):
            ws.merge_checkpoints({"models": []}, out)
        with locked_output(out, overwrite=True):
            assert contents(out) == before
    report = ws.merge_checkpoints(recipe, out, overwrite=not fresh or where == "after")
    assert report.bytes_reused == (report.bytes_written if where == "between" else 0)
    ws.merge_checkpoints(recipe, tmp_path / "new")
    assert contents(out) == contents(tmp_path / "new")
    assert hidden(out) == []


def test_a_record_that_leads_out_of_the_folder_is_not_followed(
    old: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Only plain names of the folder itself are restored or removed."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "x.h.1.00000000.backup").write_text("x")
    weights = os.lstat(old / "model.safetensors")
    same = ["model.safetensors", weights.st_ino, weights.st_size, weights.st_mtime_ns]
    for record in (
        {"weights": same, "old": {"../mine": None, "a": "../x.h.1.00000000.backup"}},
        {"weights": same, "old": {"..": None, "tokenizer.json": "config.json"}},
        {"weights": same, "old": [1]},
        [],
    ):
        (old / RECORD_NAME).write_text(json.dumps(record))
        with locked_output(old, overwrite=True):
            pass
        assert (tmp_path / "mine").read_text() == "mine"
        assert (old / "tokenizer.json").read_text() == "old"
        assert not (old / RECORD_NAME).exists()


def test_a_folder_in_the_place_of_a_small_file_is_an_error(
    old: Path, recipe: dict[str, Any]
) -> None:
    """Nothing is replaced when one file cannot be."""
    (old / "README.md").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        ws.merge_checkpoints(recipe, old, overwrite=True)
    (old / "README.md").rmdir()
    assert sorted(contents(old)) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((old / "config.json").read_text()) == {"old": 1}


def test_files_of_our_earlier_merge_go_and_others_are_told(
    make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """What the old provenance lists is removed; a stranger's tokenizer, adapter, weights are not."""
    first = linear(make_model("a", files={"added_tokens.json": "old", "x.txt": "x"}))
    second = linear(make_model("b", files={"tokenizer.json": "new"}))
    out = tmp_path / "out"
    assert ws.merge_checkpoints(first, out, max_shard_size=4).warnings == ()
    listed = json.loads((out / "provenance.json").read_text())["files"]
    assert set(listed) == set(contents(out)) - {"model.safetensors.index.json"}
    for name in ("note.txt", "vocab.txt", "adapter_config.json", "pytorch_model.bin"):
        (out / name).write_text("mine")
    report = ws.merge_checkpoints(second, out, overwrite=True)
    assert not {"added_tokens.json", "x.txt"} & set(contents(out))
    assert {"note.txt", "vocab.txt", "adapter_config.json"} <= set(contents(out))
    assert "adapter_config.json, pytorch_model.bin, vocab.txt" in report.warnings[-1]


@pytest.mark.parametrize("files", [["../mine", "/etc/x", ".hidden", "..", 3], 7, None])
def test_a_provenance_that_leads_out_of_the_folder_removes_nothing(
    files: object, old: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Only plain names that are not hidden are removed."""
    (tmp_path / "mine").write_text("mine")
    (old / ".hidden").write_text("mine")
    record = {"versions": {"weightshare": "1"}, "files": files}
    (old / "provenance.json").write_text(json.dumps(record))
    ws.merge_checkpoints(recipe, old, overwrite=True)
    assert (tmp_path / "mine").exists()
    assert (old / ".hidden").exists()


def test_a_file_system_without_locks_is_written_with_a_warning(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a lock that another process holds is a reason to refuse."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.warns(UserWarning, match="cannot be locked"):
        ws.merge_checkpoints(recipe, tmp_path / "new")
    assert (tmp_path / "new" / "model.safetensors").exists()

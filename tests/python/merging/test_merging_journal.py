"""Interrupted merges go on where they stopped, or say why not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import CheckpointChangedError
from weightshare.merging import journal as journals
from weightshare.merging import tiles
from weightshare.merging.finite import SOUND, Flaws, NonFiniteError
from weightshare.merging.journal import Heading, JournalWriter, read_journal
from weightshare.merging.ledger import Done
from weightshare.merging.recovery import JOURNAL_NAME
from weightshare.merging.run import run_plan

Make = Callable[..., Path]
Recipe = Callable[..., dict[str, Any]]
COUNT = 40


class StopError(Exception):
    """Something that ends a merge."""


def tensors(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    small = {f"layers.{i}.w": generator.normal(size=(25, 4)) for i in range(COUNT)}
    made = {**small, "large": generator.normal(size=(3000, 3)), "ids": np.arange(7)}
    return {n: a.astype(np.float32) if n != "ids" else a for n, a in made.items()}


@pytest.fixture
def recipe(make_model: Make, linear: Recipe) -> dict[str, Any]:
    """Two models of many small tensors and a large one."""
    return linear(make_model("a", tensors(1)), make_model("b", tensors(2)))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tensors share a tile, and the large one has many."""
    monkeypatch.setattr(tiles, "_LARGEST_TILE", 10_000)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def stop_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Fail in the worker once so many tiles were written."""
    real, left = ws.checkpoint.CheckpointWriter.write_many, [writes]

    def write(self: Any, parts: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StopError
        real(self, parts)

    monkeypatch.setattr(ws.checkpoint.CheckpointWriter, "write_many", write)


def interrupted(
    recipe: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch, writes: int, **keys: Any
) -> None:
    with monkeypatch.context() as patched:
        stop_after(patched, writes)
        with pytest.raises(StopError):
            ws.merge_checkpoints(recipe, out, threads=2, **keys)


@pytest.fixture
def whole(recipe: dict[str, Any], tmp_path: Path) -> dict[str, bytes]:
    """What a merge without interruption writes."""
    ws.merge_checkpoints(recipe, tmp_path / "whole", max_shard_size=9000)
    return contents(tmp_path / "whole")


@pytest.mark.parametrize("writes", [1, 3, 6, 9, 12])
def test_an_interrupted_merge_goes_on_and_gives_the_same_folder(
    writes: int,
    recipe: dict[str, Any],
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finished tensors and finished stretches are not made again, whatever the tiles are now."""
    out = tmp_path / "out"
    interrupted(recipe, out, monkeypatch, writes, max_shard_size=9000)
    assert all(name.startswith(".") for name in os.listdir(out))
    read: list[int] = []
    real = ws.checkpoint.Checkpoint.read_many

    def read_many(self: Any, parts: Any) -> None:
        given = list(parts)
        read.extend(buffer.nbytes for _, _, buffer in given)
        real(self, given)

    monkeypatch.setattr(ws.checkpoint.Checkpoint, "read_many", read_many)
    monkeypatch.setattr(tiles, "_LARGEST_TILE", 7000)
    seen: list[int] = []
    report = ws.merge_checkpoints(
        recipe, out, max_shard_size=9000, threads=1, progress=lambda d, t: seen.append(d)
    )
    assert contents(out) == whole
    assert 0 < report.bytes_reused < report.bytes_written
    assert seen[0] >= report.bytes_reused
    assert report.warnings == ()
    assert "resumed" in dict(report.summary())
    assert sum(read) == 2 * (report.bytes_written - report.bytes_reused)


def test_every_interruption_in_a_row_is_gone_on_with(
    recipe: dict[str, Any],
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A merge that is stopped at each second tile ends at last, and did nothing twice."""
    out, written = tmp_path / "out", 0
    real = ws.checkpoint.CheckpointWriter.write_many

    def write(self: Any, parts: Any) -> None:
        nonlocal written
        given = list(parts)
        real(self, given)
        written += sum(part.nbytes for _, _, part in given)

    monkeypatch.setattr(ws.checkpoint.CheckpointWriter, "write_many", write)
    attempts = 0
    while attempts < 60:
        attempts += 1
        try:
            with monkeypatch.context() as patched:
                stop_after(patched, 2)
                report = ws.merge_checkpoints(recipe, out, max_shard_size=9000, threads=1)
            break
        except StopError:
            continue
    assert attempts > 5
    assert contents(out) == whole
    assert written == report.bytes_written


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("weight", "the recipe, the options, the models' tensors or the version"),
        ("touch", "input files changed since then"),
        ("partial", r"its temporary file of model\.safetensors is gone"),
        ("short", r"its temporary file of model\.safetensors is not as it was left"),
        ("other", r"its temporary file of model\.safetensors is not as it was left"),
        ("extra", "its journal is damaged"),
    ],
)
def test_what_changed_meanwhile_makes_it_begin_anew_and_say_why(
    change: str,
    reason: str,
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The leftovers go, and the output is that of a fresh merge."""
    out = tmp_path / "out"
    interrupted(recipe, out, monkeypatch, 4)
    partial = next(out.glob("*.resumable"))
    if change == "weight":
        recipe["models"][0]["parameters"]["weight"] = 2.0
    elif change == "touch":
        os.utime(tmp_path / "a" / "model.safetensors", ns=(1, 1))
    elif change == "partial":
        partial.unlink()
    elif change == "short":
        os.truncate(partial, 100)
    elif change == "other":
        data = partial.read_bytes()
        partial.rename(tmp_path / "kept")
        partial.write_bytes(data)
    elif change == "extra":
        with open(out / JOURNAL_NAME, "ab") as file:
            file.write(journals._packed(Done(999, 0, 1, 0, SOUND)))
    report = ws.merge_checkpoints(recipe, out)
    assert report.bytes_reused == 0
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("an interrupted merge is begun anew: ")
    assert re.search(reason, report.warnings[0])
    ws.merge_checkpoints(recipe, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_resume_can_be_declined(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resume=False begins anew without a word, and removes what was left."""
    out = tmp_path / "out"
    interrupted(recipe, out, monkeypatch, 4)
    report = run_plan(ws.plan_merge(recipe), out, resume=False)
    assert (report.bytes_reused, report.warnings) == (0, ())
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_an_error_that_no_second_run_can_mend_leaves_nothing(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input that was replaced while it was read: no hidden gigabytes stay."""

    def replace(*_: object) -> None:
        os.utime(tmp_path / "a" / "model.safetensors", ns=(1, 1))

    out = tmp_path / "out"
    real = ws.checkpoint.CheckpointWriter.write_many

    def write(self: Any, parts: Any) -> None:
        real(self, parts)
        replace()

    monkeypatch.setattr(ws.checkpoint.CheckpointWriter, "write_many", write)
    with pytest.raises(CheckpointChangedError):
        ws.merge_checkpoints(recipe, out, threads=1)
    assert not out.exists()


def test_nan_found_before_an_interruption_is_not_forgotten(
    make_model: Make, linear: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts come from the journal; a stricter second run refuses what the first one saw."""
    big = {f"w{i}": np.float32([1, 1e30, 2]) for i in range(300)}
    recipe = linear(make_model("a", big), make_model("b", big), out_dtype="float16")
    monkeypatch.setattr(tiles, "_LARGEST_TILE", 1500)
    monkeypatch.setattr(tiles, "_SHARED_SLOT", 1500)
    out = tmp_path / "out"
    interrupted(recipe, out, monkeypatch, 3, nan="ignore")
    with pytest.raises(NonFiniteError, match=r"w\d+: 1 of 3 elements"):
        ws.merge_checkpoints(recipe, out)
    report = ws.merge_checkpoints(recipe, out, nan="warn")
    assert report.bytes_reused > 0
    assert report.nonfinite == dict.fromkeys(big, 1)
    record = json.loads((out / "provenance.json").read_text())
    assert all(r["nonfinite"]["made"] == 1 for r in record["tensors"].values())


def entries(count: int) -> list[Done]:
    return [Done(i, 3 * i, i + 1, (1 << 127) + i, Flaws(i, 5, 1, 2) if i % 2 else SOUND)
            for i in range(count)]  # fmt: skip


def write_journal(path: Path, marked: int, total: int) -> Heading:
    heading = Heading("plan", [[(1, 2, "x")]], "0" * 16, {"model.safetensors": 7})
    writer = JournalWriter(path, heading, lambda: None, None)
    writer.enter(entries(total)[:marked], 10)
    writer.mark()
    writer.enter(entries(total)[marked:], 10)
    writer.stop()
    return heading


def test_a_journal_is_read_back_up_to_the_first_damage(tmp_path: Path) -> None:
    """Cut anywhere, or with any one byte changed, it yields a beginning of what was written."""
    path = tmp_path / "j"
    heading = write_journal(path, 3, 6)
    found = read_journal(path)
    assert found is not None
    assert found.heading == heading
    assert found.done == entries(6)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        cut = read_journal(path)
        assert cut is None or cut.done == entries(6)[: len(cut.done)]
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        cut = read_journal(path)
        assert cut is None or cut.done == entries(6)[: len(cut.done)]
    path.write_bytes(data + bytes(500))
    cut = read_journal(path)
    assert cut is not None
    assert cut.done == entries(6)


def test_after_a_new_start_of_the_machine_only_durable_records_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written after the last mark may be lost with the page cache."""
    write_journal(tmp_path / "j", 3, 6)
    monkeypatch.setattr(journals, "_boot_id", lambda: "another")
    found = read_journal(tmp_path / "j")
    assert found is not None
    assert found.done == entries(3)


def test_data_are_synced_before_the_mark_that_claims_them(tmp_path: Path) -> None:
    """The order in the file and on the disk: records, sync of the data, mark."""
    path = tmp_path / "j"
    heading = Heading("plan", [], "0" * 16, {})
    sizes: list[int] = []
    writer = JournalWriter(path, heading, lambda: sizes.append(path.stat().st_size), None)
    writer.enter(entries(2), 10)
    writer.mark()
    writer.stop()
    assert sizes[0] == path.stat().st_size - journals._SIZE


@pytest.mark.parametrize("text", [b"", b"{}", b"00000000 {}\n", b"\xff" * 200, b"zz {}\n"])
def test_a_file_that_is_no_journal_is_replaced(
    text: bytes, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever lies under the journal's name, the merge is done and it goes."""
    out = tmp_path / "out"
    out.mkdir()
    (out / JOURNAL_NAME).write_bytes(text)
    ws.merge_checkpoints(recipe, out)
    assert not (out / JOURNAL_NAME).exists()


def test_a_journal_that_is_a_link_is_not_followed(recipe: dict[str, Any], tmp_path: Path) -> None:
    """The victim keeps its bytes."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_text("mine")
    (out / JOURNAL_NAME).symlink_to(victim)
    (out / f"{JOURNAL_NAME}.new").symlink_to(victim)
    ws.merge_checkpoints(recipe, out)
    assert victim.read_text() == "mine"


def test_a_merge_without_room_for_its_journal_is_done_all_the_same(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data are reserved beforehand; the journal is only a help."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("weightshare.merging.journal.os.write", full)
        stop_after(patched, 4)
        with pytest.raises(StopError):
            ws.merge_checkpoints(recipe, out)
    assert not out.exists()
    with monkeypatch.context() as patched:
        patched.setattr("weightshare.merging.journal.os.write", full)
        ws.merge_checkpoints(recipe, out)
    ws.merge_checkpoints(recipe, tmp_path / "new")
    assert contents(out) == contents(tmp_path / "new")


SLOW = """
import json, os, sys, time, weightshare as ws
from weightshare.merging import tiles
tiles._LARGEST_TILE = 10_000
real = ws.checkpoint.CheckpointWriter.write_many
def write(self, parts):
    real(self, parts)
    time.sleep(0.15)
    os.write(1, b".")
ws.checkpoint.CheckpointWriter.write_many = write
ws.merge_checkpoints(json.loads(sys.argv[1]), sys.argv[2], threads=1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_a_state_that_is_gone_on_with(
    number: int, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Ctrl-C and kill -9 in the middle of a real process."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW, json.dumps(recipe), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"...."
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == -number
    assert all(name.startswith(".") for name in os.listdir(out))
    report = ws.merge_checkpoints(recipe, out)
    assert report.bytes_reused > 0
    assert not [name for name in os.listdir(out) if name.startswith(".")]

"""Kills, failing system calls, full disks, inputs that change: the old output or the new one.

After each of them the old output is intact or the new one complete, and the next run ends with the
bytes of a merge that nothing disturbed. WEIGHTSHARE_NIGHTLY runs hundreds of each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import CheckpointChangedError, OutputSpaceError
from weightshare.merging import tiles

Make = Callable[..., Path]
Recipe = Callable[..., dict[str, Any]]
NIGHTLY = bool(os.environ.get("WEIGHTSHARE_NIGHTLY"))
KILLS = 600 if NIGHTLY else 50
FAULTS = 40 if NIGHTLY else 3
LAYERS = 60


def tensors(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    made = {f"layers.{i}.w": generator.normal(size=(50, 10)) for i in range(LAYERS)}
    return {name: array.astype(np.float32) for name, array in made.items()}


@pytest.fixture
def recipe(make_model: Make, linear: Recipe) -> dict[str, Any]:
    """Two models with a configuration, merged into several shards."""
    config = {"torch_dtype": "float32"}
    return linear(make_model("a", tensors(1), config=config), make_model("b", tensors(2)))


@pytest.fixture
def old(make_model: Make) -> Path:
    """An output that is there already."""
    return make_model("old", {"w": np.full(9, 7, np.float32)}, config={"old": 1})


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def weights(folder: Path) -> dict[str, bytes]:
    """Return what the folder means as a checkpoint."""
    with ws.open_checkpoint(folder) as model:
        return {name: model[name].tobytes() for name in model}


def merge(recipe: dict[str, Any], out: Path) -> ws.MergeReport:
    return ws.merge_checkpoints(recipe, out, overwrite=True, max_shard_size=40_000, threads=2)


@pytest.fixture
def whole(recipe: dict[str, Any], tmp_path: Path) -> Path:
    """The output of a merge that nothing disturbed."""
    merge(recipe, tmp_path / "whole")
    return tmp_path / "whole"


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=3000, env=environment
    )


KILL_LOOP = """
import json, os, random, shutil, signal, sys, time
import weightshare as ws
from weightshare.merging import tiles
from weightshare.merging.run import run_plan
tiles._LARGEST_TILE = 20_000
recipe, out, old, whole, kills = json.loads(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
plan = ws.plan_merge(recipe, max_shard_size=40_000)

def weights(folder):
    with ws.open_checkpoint(folder) as model:
        return {name: model[name].tobytes() for name in model}

def contents(folder):
    return {n: open(os.path.join(folder, n), "rb").read() for n in sorted(os.listdir(folder))}

def child():
    number = os.fork()
    if number == 0:
        code = 7
        try:
            run_plan(plan, out, overwrite=True, threads=2)
            code = 0
        finally:
            os._exit(code)
    return number

before, after, complete = weights(old), weights(whole), contents(whole)
began = time.perf_counter()
assert os.waitpid(child(), 0)[1] == 0
span = time.perf_counter() - began
shutil.rmtree(out)
shutil.copytree(old, out)
random.seed(1)
seen = {"old": 0, "new": 0, "resumed": 0}
for turn in range(kills):
    number = child()
    time.sleep(random.uniform(0, span))
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    found = weights(out)
    assert found in (before, after), turn
    seen["old" if found == before else "new"] += 1
    if turn % 4 == 3:
        report = run_plan(plan, out, overwrite=True)
        seen["resumed"] += report.bytes_reused > 0
        assert report.warnings == (), report.warnings
        assert contents(out) == complete, turn
        shutil.rmtree(out)
        shutil.copytree(old, out)
print(json.dumps(seen))
"""


def test_at_every_kill_the_output_is_the_old_or_the_new_one(
    recipe: dict[str, Any], old: Path, whole: Path, tmp_path: Path
) -> None:
    """Fifty kill -9 at random moments, inside of resumed runs too; then a run that ends."""
    done = run_script(KILL_LOOP, json.dumps(recipe), tmp_path / "out", old, whole, KILLS)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["old"] + seen["new"] == KILLS
    assert seen["old"]
    assert seen["resumed"]


MERGE = """
import json, sys, weightshare as ws
from weightshare.merging import tiles
tiles._LARGEST_TILE = 20_000
try:
    ws.merge_checkpoints(
        json.loads(sys.argv[1]), sys.argv[2], overwrite=True, max_shard_size=40_000, threads=2
    )
except (OSError, ws.errors.WeightshareError):
    sys.exit(4)
"""


def traced(recipe: dict[str, Any], out: Path, fault: str) -> int:
    """Merge in a process of which one system call fails; return its exit code."""
    strace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"inject={fault}"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [*strace, sys.executable, "-c", MERGE, json.dumps(recipe), str(out)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode in (0, 4), done.stderr
    return done.returncode


def strace_works() -> bool:
    command = ["strace", "-qq", "-o", os.devnull, "-e", "inject=sync:error=EIO", "true"]
    try:
        return subprocess.run(command, check=False, capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        ("pwritev,pwritev2,pwrite64", "ENOSPC"),
        ("fallocate,ftruncate", "ENOSPC"),
        ("fsync,fdatasync", "EIO"),
        ("rename,renameat,renameat2", "EIO"),
        ("write", "ENOSPC"),
        ("preadv,preadv2", "EIO"),
        ("unlink,unlinkat", "EACCES"),
        ("link,linkat", "EPERM"),
    ],
)
@pytest.mark.parametrize("forever", [False, True], ids=["once", "forever"])
def test_any_failing_system_call_leaves_the_old_output_or_the_new_one(
    calls: str, error: str, forever: bool, recipe: dict[str, Any], old: Path, whole: Path
) -> None:
    """The n-th call of a kind fails, once or from then on; the next run ends with the same bytes."""
    if not strace_works():
        pytest.skip("strace is not installed, or may not trace here")
    before, after = weights(old), weights(whole)
    kept = old.with_name("kept")
    shutil.copytree(old, kept)
    for number in range(1, FAULTS + 1) if NIGHTLY else [(2 if forever else 1)]:
        when = f"{number}+" if forever else str(number)
        traced(recipe, old, f"{calls}:error={error}:when={when}")
        assert weights(old) in (before, after), number
        merge(recipe, old)
        assert contents(old) == contents(whole), number
        shutil.rmtree(old)
        shutil.copytree(kept, old)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system in memory, or change its size."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted: list[bool] = []

    def resize(nbytes: int) -> Path:
        how = ["-o", f"remount,size={nbytes}"] if mounted else ["-o", f"size={nbytes}"]
        command = ["mount", "-t", "tmpfs", *how, "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no right to mount a small file system here")
        mounted.append(True)
        return place

    yield resize
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("part", range(5, 95, 5) if NIGHTLY else [10, 50, 90])
def test_a_full_disk_is_survived(
    part: int,
    recipe: dict[str, Any],
    old: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_disk: Callable[[int], Path],
) -> None:
    """Room for a part of what is needed: an error that says so; with more room the merge ends."""
    need = sum(map(len, contents(whole).values()))
    out = small_disk(need * part // 100 + 20_000) / "out"
    shutil.copytree(old, out)
    with monkeypatch.context() as patched:
        # The disk is found full by the calls that write, as if others had filled it meanwhile.
        patched.setattr("weightshare.merging.work.require_space", lambda *_: None)
        with pytest.raises(OutputSpaceError):
            merge(recipe, out)
    assert weights(out) == weights(old)
    with pytest.raises(OutputSpaceError, match="free some or choose another disk"):
        ws.merge_checkpoints(recipe, out, overwrite=True, resume=False)
    assert contents(out) == contents(old)
    small_disk(3 * need)
    merge(recipe, out)
    assert contents(out) == contents(whole)


def test_a_disk_that_fills_up_while_it_is_written_is_survived(
    recipe: dict[str, Any],
    old: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_disk: Callable[[int], Path],
) -> None:
    """Without reservation the error comes in the middle; what is written is gone on with."""
    need = sum(map(len, contents(whole).values()))
    out = small_disk(need * 2 // 3) / "out"
    shutil.copytree(old, out)

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    monkeypatch.setattr("weightshare.checkpoint.output_file.free_bytes", lambda _: None)
    monkeypatch.setattr("weightshare.merging.work.require_space", lambda *_: None)
    monkeypatch.setattr(tiles, "_LARGEST_TILE", 20_000)
    with pytest.raises(OutputSpaceError):
        merge(recipe, out)
    assert weights(out) == weights(old)
    small_disk(3 * need)
    assert merge(recipe, out).bytes_reused > 0
    assert contents(out) == contents(whole)


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n" + MERGE


def test_a_limit_on_the_size_of_files_is_an_error(
    recipe: dict[str, Any], old: Path, whole: Path
) -> None:
    """No signal ends the process; the old output stays."""
    done = run_script(LIMITED, json.dumps(recipe), old)
    assert done.returncode == 4, done.stderr
    assert weights(old) == {"w": np.full(9, 7, np.float32).tobytes()}
    merge(recipe, old)
    assert contents(old) == contents(whole)


def after_first_tile(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    real, left = ws.checkpoint.CheckpointWriter.write_many, [action]

    def write(self: Any, parts: Any) -> None:
        real(self, parts)
        if left:
            left.pop()()

    monkeypatch.setattr(ws.checkpoint.CheckpointWriter, "write_many", write)
    monkeypatch.setattr(tiles, "_LARGEST_TILE", 20_000)


@pytest.mark.parametrize("how", ["cut", "grown", "rewritten"])
def test_an_input_that_changes_while_it_is_read_is_an_error(
    how: str,
    recipe: dict[str, Any],
    old: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never a signal, never a mixture; with the input as it was the next run ends."""
    victim = tmp_path / "a" / "model.safetensors"
    data, times = victim.read_bytes(), victim.stat()

    def change() -> None:
        if how == "cut":
            os.truncate(victim, len(data) // 2)
        elif how == "grown":
            with open(victim, "ab") as file:
                file.write(b"more")
        else:
            victim.write_bytes(data[:-4] + b"\0\0\0\0")

    with monkeypatch.context() as patched:
        after_first_tile(patched, change)
        with pytest.raises(CheckpointChangedError):
            merge(recipe, old)
    assert weights(old) == {"w": np.full(9, 7, np.float32).tobytes()}
    victim.write_bytes(data)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    merge(recipe, old)
    assert contents(old) == contents(whole)


def test_an_input_that_is_replaced_by_rename_is_read_as_it_was(
    recipe: dict[str, Any], old: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was opened stays the one that is read."""
    ws.save_checkpoint(tmp_path / "other", tensors(9))

    def replace() -> None:
        os.replace(tmp_path / "other" / "model.safetensors", tmp_path / "a" / "model.safetensors")

    after_first_tile(monkeypatch, replace)
    merge(recipe, old)
    assert weights(old) == weights(whole)

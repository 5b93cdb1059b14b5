# ruff: noqa: PT017
"""Failures while writing: the old or the new output is whole, and nothing else is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from weightshare.checkpoint import CheckpointWriter, open_checkpoint, save_checkpoint
from weightshare.errors import CheckpointError, OutputError, OutputSpaceError

CALLS = ["open", "fchmod", "posix_fallocate", "ftruncate", "pwritev", "fsync", "rename", "unlink"]
CALLS += ["link"]
OLD = {"a": np.arange(40.0), "b": np.arange(30.0), "c": np.zeros(5)}
NEW = {"a": -np.arange(40.0), "b": np.ones(31), "d": np.ones(5)}
FORMS = {"file": (".safetensors", None), "folder": ("", None), "shards": ("", 300)}
FORMS["lone"] = FORMS["folder"]
OUTPUTS = ["file", "folder", "shards"]
CHANGES = [("file", "file")]
CHANGES += [(old, new) for old in ("folder", "shards", "lone") for new in ("folder", "shards")]


class Fault:
    """Makes the Nth call among the file calls of `os` fail, once or from then on."""

    def __init__(self, patch, names, forever, code=errno.ENOSPC):
        self.left = -1
        self.count = 0
        self.forever = forever
        self.code = code
        for name in names:
            patch.setattr(os, name, self.wrap(getattr(os, name)))

    def fail(self, _):
        raise OSError(self.code, os.strerror(self.code))

    def wrap(self, real):
        def call(*args, **options):
            # Reading and listing are not under test; only what changes files counts.
            if real is OPEN and not args[1] & os.O_CREAT:
                return real(*args, **options)
            self.count += 1
            if self.left >= 0:
                self.left -= 1
                if self.left < 0:
                    self.left = 0 if self.forever else -1
                    self.fail(9)
            return real(*args, **options)

        return call


OPEN = os.open


def state(path):
    """Which of OLD and NEW the output is, every number compared."""
    with open_checkpoint(path, strict=True) as found:
        for name, model in (("old", OLD), ("new", NEW)):
            if set(found) == set(model):
                assert all(np.array_equal(found[n], model[n]) for n in model)
                return name
    raise AssertionError("the output is neither old nor new")


def leftovers(path):
    """Files of the output's folder that are not part of it."""
    with open_checkpoint(path) as found:
        used = {os.path.basename(f) for f in found.files}
    folder = path if path.is_dir() else path.parent
    names = {n for n in os.listdir(folder) if not os.path.isdir(folder / n)}
    if len(used) > 1 or "model.safetensors" not in used:
        names.discard("model.safetensors.index.json")
    return names - used


@pytest.mark.parametrize("forever", [False, True], ids=["once", "forever"])
@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_overwrite_survives_a_failure_of_every_call(tmp_path, old, new, forever):
    """Whichever file call fails, with whichever old and new form, old or new is whole."""
    clean = 0
    for number in range(200):
        path = tmp_path / str(number) / f"m{FORMS[old][0]}"
        path.parent.mkdir()
        save_checkpoint(path, OLD, max_shard_size=FORMS[old][1])
        if old == "lone":
            os.rename(path / "model.safetensors", path / "weights.safetensors")
        with pytest.MonkeyPatch.context() as patch:
            fault = Fault(patch, [c for c in CALLS if c != "unlink"], forever)
            fault.left = number
            try:
                save_checkpoint(path, NEW, max_shard_size=FORMS[new][1], overwrite=True)
            except OutputSpaceError as error:
                assert error.errno == errno.ENOSPC
                assert "E402" in str(error)
                assert "free" in str(error)
            else:
                assert state(path) == "new"
                clean += fault.count <= number
        assert state(path) in ("old", "new")
        # A failed sync after the change of names leaves the old files for the next run.
        if state(path) == "old":
            assert leftovers(path) == set()
            assert os.listdir(path.parent) == [path.name]
        save_checkpoint(path, NEW, max_shard_size=FORMS[new][1], overwrite=True)
        assert state(path) == "new"
        assert leftovers(path) == ({"weights.safetensors"} if old == "lone" else set())
        if clean:
            break
    assert clean
    assert number > 8


@pytest.mark.parametrize("form", OUTPUTS)
def test_new_output_appears_whole_or_not_at_all(tmp_path, form):
    """A failure while writing a new output leaves no file and no folder."""
    for number in range(200):
        path = tmp_path / f"{number}" / f"m{FORMS[form][0]}"
        path.parent.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            Fault(patch, CALLS, forever=False, code=errno.EIO).left = number
            try:
                save_checkpoint(path, NEW, max_shard_size=FORMS[form][1])
            except OutputError as error:
                assert "E403" in str(error)
                if path.exists():
                    assert state(path) == "new"
                else:
                    assert os.listdir(path.parent) == []
                continue
        assert state(path) == "new"
        break
    assert number > 5


@pytest.mark.parametrize("new", ["folder", "shards"])
@pytest.mark.parametrize("old", ["folder", "shards"])
def test_old_files_that_cannot_be_removed_do_no_harm(tmp_path, old, new, caplog):
    """A folder whose old files cannot be deleted still opens as old or as new."""
    path = tmp_path / "m"
    save_checkpoint(path, OLD, max_shard_size=FORMS[old][1])
    with pytest.MonkeyPatch.context() as patch:
        Fault(patch, ["unlink"], forever=True, code=errno.EPERM).left = 0
        try:
            save_checkpoint(path, NEW, max_shard_size=FORMS[new][1], overwrite=True)
        except OutputError:
            assert (old, new) == ("folder", "shards")
            assert state(path) == "old"
        else:
            assert state(path) == "new"
            assert (old, new) == ("folder", "folder") or "could not be removed" in caplog.text


def test_forked_child_leaves_the_output_of_its_parent_alone(tmp_path):
    """A child that drops its copy of a writer removes nothing of its parent's."""
    writer = CheckpointWriter(tmp_path / "m.safetensors", [("a", "U8", (1,))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        writer.abort()
        os._exit(0)
    os.waitpid(child, 0)
    writer.write("a", 0, b"1")
    writer.commit()
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_partial_writes_are_completed(tmp_path, monkeypatch):
    """A system that writes one byte at a time gives the same file."""
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda n, parts, offset: real(n, [parts[0][:1]], offset))
    save_checkpoint(tmp_path / "m.safetensors", OLD)
    assert state(tmp_path / "m.safetensors") == "old"


def test_full_disk_is_found_before_writing(tmp_path, monkeypatch):
    """What does not fit is refused with the bytes needed and free, before a byte is written."""

    def no_write(*_):
        raise AssertionError("written to")

    monkeypatch.setattr(os, "pwritev", no_write)
    with pytest.raises(OutputSpaceError, match=r"E402[\s\S]*\d+ bytes needed, \d+ free"):
        CheckpointWriter(tmp_path / "m.safetensors", [("w", "F32", (2**58,))])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_system_without_reservation_is_used_all_the_same(tmp_path, monkeypatch, code):
    """Where space cannot be reserved the free space is compared, and the file written."""

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    save_checkpoint(tmp_path / "m.safetensors", OLD)
    assert state(tmp_path / "m.safetensors") == "old"
    with pytest.raises(OutputSpaceError):
        CheckpointWriter(tmp_path / "n.safetensors", [("w", "F32", (2**50,))])
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_folder_that_cannot_be_synced_is_used(tmp_path, monkeypatch):
    """A file system that cannot sync folders (EINVAL) is no error."""
    real = os.fsync

    def sync(number):
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(number)

    monkeypatch.setattr(os, "fsync", sync)
    save_checkpoint(tmp_path / "m", OLD, max_shard_size=300)
    assert state(tmp_path / "m") == "old"


def test_file_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    """Each file is synced before it is renamed, and the folder afterwards; the index is last."""
    events = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(number):
        events.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{number}"))))
        real_sync(number)

    def rename(source, target):
        assert ("sync", os.path.basename(source)) in events
        events.append(("rename", os.path.basename(target)))
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    save_checkpoint(tmp_path / "m", OLD, max_shard_size=300)
    names = [name for kind, name in events if kind == "rename"]
    assert len(names) == 3
    assert names[-1] == "model.safetensors.index.json"
    kinds = [event for event in events if event[0] == "rename" or event[1] == "m"]
    assert kinds[2:] == [("sync", "m"), ("rename", names[-1]), ("sync", "m")]


def dies(number, path, **options):
    """Save NEW in a forked child that is to die at its Nth file call; say whether it did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            patch = pytest.MonkeyPatch()
            fault = Fault(patch, CALLS, forever=False)
            fault.left = number
            fault.fail = os._exit
            save_checkpoint(path, NEW, **options)
        except BaseException:
            os._exit(7)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_death_at_every_call_leaves_a_whole_output(tmp_path, old, new):
    """A process that dies before any one of its file calls leaves the old or the new output."""
    number, died, seen = 0, True, set()
    while died:
        path = tmp_path / str(number) / f"m{FORMS[old][0]}"
        path.parent.mkdir()
        save_checkpoint(path, OLD, max_shard_size=FORMS[old][1])
        if old == "lone":
            os.rename(path / "model.safetensors", path / "weights.safetensors")
        limit = FORMS[new][1]
        died = dies(number, path, max_shard_size=limit, overwrite=True)
        seen.add(state(path))
        save_checkpoint(path, NEW, max_shard_size=limit, overwrite=True)
        assert state(path) == "new"
        # A file under a name of its own may be the user's; it goes only once an index lists it.
        assert leftovers(path) <= ({"weights.safetensors"} if old == "lone" else set())
        number += 1
    assert seen == {"old", "new"}
    assert number > 6


@pytest.mark.parametrize("new", OUTPUTS)
def test_death_before_a_new_output_is_complete_shows_none(tmp_path, new):
    """A first output that is cut short cannot be opened as if it were complete."""
    number, died = 0, True
    while died:
        path = tmp_path / str(number) / f"m{FORMS[new][0]}"
        path.parent.mkdir()
        limit = FORMS[new][1]
        died = dies(number, path, max_shard_size=limit)
        try:
            assert state(path) == "new"
        except CheckpointError as error:
            assert died
            assert error.code in ("E101", "E104")
        save_checkpoint(path, NEW, max_shard_size=limit, overwrite=True)
        assert state(path) == "new"
        assert leftovers(path) == set()
        number += 1
    assert number > 5


WRITER = """
import sys, numpy as np
from weightshare.checkpoint import save_checkpoint
path, limit = sys.argv[1], int(sys.argv[2]) or None
print("ready", flush=True)
for turn in range(10**6):
    value = np.full(60_000, turn, np.int64)
    model = {f"t{i}": value for i in range(4)}
    save_checkpoint(path, model, max_shard_size=limit, overwrite=True)
"""


@pytest.mark.parametrize("form", OUTPUTS)
def test_killed_writer_leaves_a_whole_output(tmp_path, form, nightly):
    """After kill -9 at random moments the output is one complete turn; the next run tidies."""
    ending, limit = FORMS[form][0], 500_000 if form == "shards" else 0
    path = tmp_path / f"m{ending}"
    rng = np.random.default_rng(5)
    save_checkpoint(path, {f"t{i}": np.full(60_000, -1) for i in range(4)})
    for _ in range(200 if nightly else 4):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(limit)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert child.stdout.readline() == b"ready\n"
        time.sleep(float(rng.uniform(0, 0.08)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with open_checkpoint(path, strict=True) as found:
            turns = {int(v) for name in found for v in np.unique(found[name])}
            assert len(found) == 4
        assert len(turns) == 1
    save_checkpoint(path, OLD, overwrite=True)
    assert state(path) == "old"
    assert leftovers(path) == set()

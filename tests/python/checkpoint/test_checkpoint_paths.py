"""What a path means, what is refused, and the shard index."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from weightshare.checkpoint import open_checkpoint, save_checkpoint
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    CheckpointNotFoundError,
)


def refused(path, **options):
    """The error with which `path` is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, **options)
    assert caught.value.code in str(caught.value)
    assert "fix" in str(caught.value)
    return caught.value


def test_missing_path_says_so(tmp_path):
    """A path that is not there is a FileNotFoundError with code E101."""
    for path in (tmp_path / "nothing", tmp_path / "no" / "nothing.safetensors"):
        error = refused(path)
        assert error.code == "E101"
        assert isinstance(error, CheckpointNotFoundError | FileNotFoundError)
    os.symlink(tmp_path / "gone", tmp_path / "link.safetensors")
    assert "link to" in str(refused(tmp_path / "link.safetensors"))


@pytest.mark.parametrize("path", [None, 3, 1.5, ["a"]])
def test_path_of_a_wrong_type_is_refused(path):
    """What is no path is a TypeError that says what came."""
    with pytest.raises(ArgumentTypeError, match=type(path).__name__):
        open_checkpoint(path)


@pytest.mark.parametrize("options", [{"max_tensors": 0}, {"max_header_bytes": -1}])
def test_limits_must_be_positive(saved, options):
    """A limit below one is refused by name."""
    with pytest.raises(ArgumentError, match=next(iter(options))):
        open_checkpoint(saved, **options)
    with pytest.raises(ArgumentTypeError):
        open_checkpoint(saved, **dict.fromkeys(options, "1"))


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_unusable_path_is_refused(path):
    """An empty path, or one with NUL, is a ValueError."""
    with pytest.raises(ArgumentError, match="path"):
        open_checkpoint(path)


def test_folder_without_weights_and_ambiguous_folder(tmp_path, saved):
    """An empty folder, several files, and shards without index are each refused by code."""
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").code == "E104"
    several = tmp_path / "several"
    several.mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        (several / name).write_bytes(saved.read_bytes())
    assert refused(several).code == "E105"
    shard = tmp_path / "shard"
    shard.mkdir()
    (shard / "model-00001-of-00002.safetensors").write_bytes(saved.read_bytes())
    assert "no model.safetensors.index.json" in str(refused(shard))


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, kind):
    """A named pipe, a device or a folder in a file's place is refused without waiting."""
    path = tmp_path / "m.safetensors"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.symlink("/dev/zero", path)
    else:
        (tmp_path / "model.safetensors").mkdir()
        path = tmp_path
    assert refused(path).code == "E102"


class _Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path, length):
    """640 is stored as the bytes 80 02, with which pickles begin too."""
    file = tmp_path / "m.safetensors"
    text = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    file.write_bytes(length.to_bytes(8, "little") + text + b"\0\0\x80?")
    with open_checkpoint(file) as model:
        assert model["w"] == 1.0


@pytest.mark.parametrize(
    "name", ["m.bin", "m.pt", "m.pth", "m.ckpt", "m.pkl", "m.safetensors", "blob", "folder", "zip"]
)
def test_pickles_are_refused_and_never_run(tmp_path, name):
    """A pickle is refused with the command that converts it, whatever it is called."""
    content = pickle.dumps(_Canary(str(tmp_path / "canary")))
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "pytorch_model.bin").write_bytes(content)
    elif name == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        path.write_bytes(content)
    error = refused(path)
    assert error.code == "E103"
    assert "safetensors.torch" in str(error)
    assert not (tmp_path / "canary").exists()


# The index


def rewrite(folder, edit):
    """Change the index of a folder by a function on its object, or by a text."""
    path = folder / "model.safetensors.index.json"
    if isinstance(edit, str):
        path.write_text(edit)
        return
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    "shard",
    [
        "../m.safetensors",
        "/etc/passwd",
        "a/../../x",
        "..\\x",
        "..",
        ".",
        "",
        "a/b",
        "a\0b",
        *("x" * 300, "\ud800"),
    ],
)
def test_shard_name_cannot_leave_its_folder(sharded, saved, shard):
    """A shard name is one plain file name; anything else is refused before it is opened."""
    rewrite(sharded, lambda found: found["weight_map"].update({"a.bias": shard}))
    assert refused(sharded).code == "E304"


def test_shard_link_out_of_the_folder_is_refused(sharded, saved):
    """A shard that is a link to a file elsewhere is refused."""
    target = sharded / "model-00001-of-00003.safetensors"
    os.rename(target, sharded.parent / "elsewhere.safetensors")
    os.symlink(sharded.parent / "elsewhere.safetensors", target)
    assert refused(sharded).code == "E304"


def test_shard_link_loop_and_missing_shard_are_refused(sharded):
    """A link to itself and a missing shard are one report that names both."""
    for number in (1, 2):
        os.unlink(sharded / f"model-0000{number}-of-00003.safetensors")
    loop = sharded / "model-00001-of-00003.safetensors"
    os.symlink(loop, loop)
    error = refused(sharded)
    assert error.code == "E305"
    assert "00001" in str(error)
    assert "00002" in str(error)


def test_hub_cache_snapshot_opens(sharded, model, tmp_path):
    """Links of a hub cache, from a snapshot to the blobs beside it, are followed."""
    blobs = tmp_path / "models--x--y" / "blobs"
    snapshot = tmp_path / "models--x--y" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(sharded.iterdir())):
        os.rename(path, blobs / f"hash{number}")
        os.symlink(f"../../blobs/hash{number}", snapshot / path.name)
    with open_checkpoint(snapshot) as found:
        assert np.array_equal(found["b.weight"], model["b.weight"])
    outside = tmp_path / "models--x--y" / "other"
    os.rename(blobs / "hash0", outside)
    os.unlink(snapshot / "model-00001-of-00003.safetensors")
    os.symlink("../../other", snapshot / "model-00001-of-00003.safetensors")
    assert refused(snapshot).code == "E304"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "E301"),
        ("[]", "E301"),
        ("{", "E301"),
        ("\xff", "E303"),
        ('{"weight_map":NaN}', "E301"),
        ("{}", "E303"),
        ('{"weight_map":null}', "E303"),
        ('{"weight_map":[]}', "E303"),
        ('{"weight_map":{}}', "E303"),
        ('{"weight_map":{"a":1}}', "E303"),
        ('{"weight_map":{"a":null}}', "E303"),
        ('{"weight_map":{"\\ud800":"a"}}', "E303"),
        ('{"weight_map":{"a":"x"},"metadata":[]}', "E301"),
        ('{"weight_map":{"a":"x","a":"y"}}', "E302"),
        ('{"weight_map":{"a":"x","\\u0061":"x"}}', "E302"),
        ('{"weight_map":{"a":"x"},"weight_map":{"a":"x"}}', "E302"),
        ('{"weight_map":{"a":"gone.safetensors"}}', "E305"),
        ('{"x":' + "{}," * 2_000_000 + "}", "E301"),
    ],
    ids=range(18),
)
def test_malformed_index_is_refused(sharded, text, code):
    """Each malformed index is refused with its code."""
    rewrite(sharded, text if text != "\xff" else '{"weight_map":"\xff"}')
    assert refused(sharded).code == code


def test_index_above_the_size_limit_is_refused(sharded):
    """max_header_bytes also bounds the index."""
    assert refused(sharded, max_header_bytes=100).code == "E301"
    assert refused(sharded, max_tensors=3).code == "E303"


def test_index_is_checked_in_both_directions(sharded):
    """Tensors that are only in the index, only in a shard, or elsewhere are in one report."""

    def edit(found):
        shards = found["weight_map"]
        shards["ghost"] = shards.pop("a.bias")
        shards["b.weight"], shards["a.weight"] = shards["a.weight"], shards["b.weight"]

    rewrite(sharded, edit)
    error = refused(sharded)
    assert error.code == "E306"
    assert all(name in str(error) for name in ("ghost", "a.bias", "b.weight", "a.weight"))


def test_tensor_in_two_shards_is_refused(sharded, model):
    """A tensor that two shards hold is refused with both names."""
    extra = {"a.bias": model["a.bias"], "extra": model["a.bias"]}
    save_checkpoint(sharded / "extra.safetensors", extra)
    rewrite(sharded, lambda found: found["weight_map"].update(extra="extra.safetensors"))
    error = refused(sharded)
    assert error.code == "E306"
    assert "extra.safetensors" in str(error)


@pytest.mark.parametrize("total", [0, -1, "168", 1.5, None, 10**30])
def test_total_size_is_checked_when_strict(sharded, total):
    """A wrong total_size, common in real indexes, is refused only with strict=True."""
    with open_checkpoint(sharded, strict=True):
        pass
    rewrite(sharded, lambda found: found["metadata"].update(total_size=total))
    with open_checkpoint(sharded) as found:
        assert len(found) == 4
    assert refused(sharded, strict=True).code == "E307"


def test_shard_with_a_broken_header_names_its_file(sharded):
    """Of a sharded checkpoint the error names the shard that is broken."""
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    error = refused(sharded)
    assert error.code == "E218"
    assert error.path == str(shard)


def test_what_may_not_be_opened_is_told_apart_from_what_is_not_there(tmp_path, monkeypatch):
    """Permission is E102, a name that cannot exist is E101."""
    with pytest.raises(CheckpointError, match="E101"):
        open_checkpoint(tmp_path / ("x" * 300))

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(CheckpointError, match=r"E102[\s\S]*Permission denied"):
        open_checkpoint("somewhere")

"""Saving where something is already: refused, replaced, and what stays beside it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from weightshare.checkpoint import CheckpointWriter, open_checkpoint, save_checkpoint
from weightshare.errors import OutputError, OutputExistsError


def entries(folder):
    """The names in a folder, hidden ones too."""
    return sorted(os.listdir(folder))


def loaded(path):
    """All arrays of a checkpoint."""
    with open_checkpoint(path, strict=True) as found:
        return dict(found)


def test_existing_output_is_refused(tmp_path, model):
    """Without overwrite=True an existing file, folder with weights, or link stays as it is."""
    save_checkpoint(tmp_path / "m.safetensors", model)
    save_checkpoint(tmp_path / "m", model)
    os.symlink("gone", tmp_path / "link.safetensors")
    for name in ("m.safetensors", "m", "link.safetensors"):
        with pytest.raises(OutputExistsError, match=r"E401[\s\S]*overwrite=True"):
            save_checkpoint(tmp_path / name, {"other": [1.0]})
    assert set(loaded(tmp_path / "m")) == set(loaded(tmp_path / "m.safetensors")) == set(model)
    assert os.readlink(tmp_path / "link.safetensors") == "gone"
    assert len(entries(tmp_path)) == 3


def test_folder_with_other_files_is_no_output(tmp_path, model):
    """config.json in a folder does not stand in the way, and stays."""
    (tmp_path / "config.json").write_text("{}")
    save_checkpoint(tmp_path, model)
    save_checkpoint(tmp_path, model, overwrite=True, max_shard_size=40)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_output_that_appears_meanwhile_is_not_replaced(tmp_path):
    """A file made by another program during the writing is not overwritten unasked."""
    for path, limit in ((tmp_path / "m.safetensors", None), (tmp_path / "m", 4)):
        specs = [("w", "F32", (1,)), ("v", "F32", (1,))]
        writer = CheckpointWriter(path, specs, max_shard_size=limit)
        for name in "wv":
            writer.write(name, 0, np.ones(1, np.float32))
        other = path if limit is None else path / "model.safetensors"
        other.write_text("other")
        with pytest.raises(OutputExistsError):
            writer.commit()
        assert other.read_text() == "other"
    assert entries(tmp_path) == ["m", "m.safetensors"]
    assert entries(tmp_path / "m") == ["model.safetensors"]


@pytest.mark.parametrize("old", ["single", "three", "two", "lone", "junk"])
@pytest.mark.parametrize("new", ["single", "three"])
def test_overwritten_folder_holds_the_new_files_only(tmp_path, model, old, new):
    """Whatever was there, after an overwrite the folder holds the new checkpoint and no old."""
    limits = {"single": None, "three": 40, "two": 100}
    other = {f"old.{name}": array for name, array in model.items()}
    if old in limits:
        save_checkpoint(tmp_path, other, max_shard_size=limits[old])
    elif old == "lone":
        save_checkpoint(tmp_path / "weights.safetensors", other)
    else:
        (tmp_path / "model-00007-of-00009.safetensors").write_text("junk")
        (tmp_path / "model.safetensors.index.json").write_text("junk")
    save_checkpoint(tmp_path, model, max_shard_size=limits[new], overwrite=True)
    assert set(loaded(tmp_path)) == set(model)
    expected = ["model.safetensors"] if new == "single" else []
    if new == "three":
        expected = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
        expected += ["model.safetensors.index.json"]
    assert entries(tmp_path) == expected + (["weights.safetensors"] if old == "lone" else [])


def test_hostile_old_index_removes_nothing_else(tmp_path, model):
    """An old index that names other files does not get them removed."""
    folder = tmp_path / "m"
    save_checkpoint(folder, model, max_shard_size=40)
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "x.safetensors").write_text("mine")
    for shard in ("notes.txt", "../x.safetensors"):
        text = json.dumps({"weight_map": {"w": shard}})
        (folder / "model.safetensors.index.json").write_text(text)
        save_checkpoint(folder, model, overwrite=True)
        assert (folder / "notes.txt").read_text() == "mine"
        assert (tmp_path / "x.safetensors").read_text() == "mine"


def test_shards_keep_their_longer_names_where_links_are_impossible(tmp_path, model, monkeypatch):
    """On a file system without hard links an overwritten folder is still whole."""
    save_checkpoint(tmp_path, model, max_shard_size=40)

    def refuse(*_, **__):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    doubled = {name: array * 2 for name, array in model.items()}
    save_checkpoint(tmp_path, doubled, max_shard_size=40, overwrite=True)
    assert all(np.array_equal(array, doubled[n]) for n, array in loaded(tmp_path).items())
    assert len(entries(tmp_path)) == 4
    monkeypatch.undo()
    save_checkpoint(tmp_path, model, max_shard_size=40, overwrite=True)
    assert all(np.array_equal(array, model[n]) for n, array in loaded(tmp_path).items())
    assert entries(tmp_path)[0] == "model-00001-of-00003.safetensors"
    assert len(entries(tmp_path)) == 4


def test_resave_over_the_opened_checkpoint(tmp_path, model):
    """A checkpoint can be saved over itself, as file and as shards, from its own lazy arrays."""
    for path, limit in ((tmp_path / "m.safetensors", None), (tmp_path / "m", 40)):
        save_checkpoint(path, model, max_shard_size=limit)
        with open_checkpoint(path) as found:
            save_checkpoint(path, found, max_shard_size=limit, overwrite=True)
            halved = {name: found[name] for name in list(found)[:2]}
            save_checkpoint(path, halved, max_shard_size=limit, overwrite=True)
            assert all(np.array_equal(found[n], model[n]) for n in model)
        assert set(loaded(path)) == set(halved)


def test_checkpoint_with_sub_byte_floats_is_copied(craft, put, tmp_path):
    """A lazy checkpoint is copied by its bytes, so even 4-bit tensors can be saved again."""
    header = {"q": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    with open_checkpoint(put(craft(header, b"\x12\x34"))) as found:
        save_checkpoint(tmp_path / "copy.safetensors", found)
    with open_checkpoint(tmp_path / "copy.safetensors") as copy:
        raw = bytearray(2)
        copy.read_into("q", 0, raw)
        assert copy.info("q").dtype == "F4"
        assert raw == b"\x12\x34"


def test_link_is_replaced_and_its_target_untouched(tmp_path, model):
    """With overwrite=True a link becomes a file; what it led to keeps its bytes."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.symlink(victim, tmp_path / "m.safetensors")
    (tmp_path / "m").mkdir()
    os.symlink(victim, tmp_path / "m" / "model.safetensors")
    for name in ("m.safetensors", "m"):
        save_checkpoint(tmp_path / name, model, overwrite=True)
        assert set(loaded(tmp_path / name)) == set(model)
    assert victim.read_text() == "precious"
    assert not os.path.islink(tmp_path / "m.safetensors")


def test_folder_in_the_place_of_a_file_and_the_reverse(tmp_path, model):
    """A folder called like a file, and a file called like a folder, are refused and stay."""
    (tmp_path / "m.safetensors").mkdir()
    (tmp_path / "m").write_text("text")
    for name in ("m.safetensors", "m"):
        with pytest.raises(OutputError, match="E403"):
            save_checkpoint(tmp_path / name, model, overwrite=True)
    assert (tmp_path / "m").read_text() == "text"
    assert entries(tmp_path) == ["m", "m.safetensors"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask_or_the_old_file(tmp_path, model, mask):
    """New files have what the umask leaves of 0666; an overwritten output keeps its own."""
    before = os.umask(mask)
    try:
        save_checkpoint(tmp_path / "m.safetensors", model)
        save_checkpoint(tmp_path / "m", model, max_shard_size=40)
        modes = {f.stat().st_mode & 0o777 for f in (tmp_path / "m").iterdir()}
        modes.add((tmp_path / "m.safetensors").stat().st_mode & 0o777)
        assert modes == {0o666 & ~mask}
        for path in ((tmp_path / "m.safetensors"), *(tmp_path / "m").iterdir()):
            path.chmod(0o640)
        save_checkpoint(tmp_path / "m.safetensors", model, overwrite=True)
        save_checkpoint(tmp_path / "m", model, overwrite=True, max_shard_size=40)
        modes = {f.stat().st_mode & 0o777 for f in (tmp_path / "m").iterdir()}
        modes.add((tmp_path / "m.safetensors").stat().st_mode & 0o777)
        assert modes == {0o640}
    finally:
        os.umask(before)

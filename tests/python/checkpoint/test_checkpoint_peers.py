"""The safetensors package as an oracle, when it is installed: bytes, and files both ways."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from weightshare.checkpoint import open_checkpoint, save_checkpoint

safetensors = pytest.importorskip("safetensors")
peer = pytest.importorskip("safetensors.numpy")

TYPES = ["?", "u1", "i1", "i2", "u2", "f2", "i4", "u4", "f4", "f8", "i8", "u8"]


@pytest.fixture
def every_type():
    """One contiguous array of each type that the peer's NumPy face can load."""
    rng = np.random.default_rng(1)
    found = {f"layer.{t}": rng.integers(0, 2, (3, 5)).astype(t) for t in TYPES}
    return {**found, "empty": np.zeros((0, 2), np.float32), "number": np.array(7, np.int16)}


def test_bytes_equal_the_reference_writer(tmp_path, every_type):
    """A file is byte for byte what the reference writes for the same arrays."""
    for model in (every_type, {}, {'é😀\n"\\/\x7f\x01': np.ones(3)}, {"a": np.ones(1, "u1")}):
        save_checkpoint(tmp_path / "ours.safetensors", model, overwrite=True)
        theirs = tmp_path / "theirs.safetensors"
        peer.save_file(model, str(theirs), metadata={"format": "pt"})
        assert (tmp_path / "ours.safetensors").read_bytes() == theirs.read_bytes()


def test_bytes_of_ml_dtypes_equal_the_reference_writer(tmp_path):
    """bfloat16 and float8 files equal those of the reference too."""
    kinds = (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
    model = {np.dtype(kind).name: np.arange(6).astype(kind) for kind in kinds}
    save_checkpoint(tmp_path / "ours.safetensors", model)
    peer.save_file(model, str(tmp_path / "theirs.safetensors"), metadata={"format": "pt"})
    ours, theirs = (tmp_path / f"{who}.safetensors" for who in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_our_files_load_there(tmp_path, every_type):
    """Files and shards that we write load in the reference, arrays and metadata."""
    save_checkpoint(tmp_path / "m", every_type, metadata={"k": "v"}, max_shard_size=100)
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(shards) > 3
    back = {}
    for shard in shards:
        back |= peer.load_file(str(shard))
        with safetensors.safe_open(str(shard), framework="np") as found:
            assert found.metadata() == {"format": "pt"}
    assert set(back) == set(every_type)
    for name, array in every_type.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], array)


def test_their_files_load_here(tmp_path, every_type):
    """Files that the reference writes load here, with several metadata keys."""
    path = tmp_path / "m.safetensors"
    peer.save_file(every_type, str(path), metadata={"a": "1", "b": "2", "c": "3"})
    with open_checkpoint(path, strict=True) as found:
        assert found.metadata == {"a": "1", "b": "2", "c": "3"}
        assert set(found) == set(every_type)
        for name, array in every_type.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)


def test_non_contiguous_arrays_load_there_as_they_were(tmp_path):
    """Arrays that the peer's own writer scrambles are right when we write them."""
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    model = {"F": np.asfortranarray(base), "T": base.T, "R": base[::-1], "S": base[:, ::2]}
    model["big-endian"] = base.astype(">f4")
    save_checkpoint(tmp_path / "m.safetensors", model)
    back = peer.load_file(str(tmp_path / "m.safetensors"))
    assert all(np.array_equal(back[name], array) for name, array in model.items())

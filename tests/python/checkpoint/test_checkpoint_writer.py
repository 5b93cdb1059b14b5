# ruff: noqa: PT012
"""Saving: every dtype and layout, shards, options, and the writer that is fed piece by piece."""

from __future__ import annotations

import json
import os
import sys
import threading
import types

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightshare.checkpoint import CheckpointWriter, open_checkpoint, save_checkpoint
from weightshare.checkpoint import values as values_module
from weightshare.checkpoint.output_file import partial_name
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    ElementError,
    OutputError,
    ShapeError,
    WeightshareError,
)

NUMPY_TYPES = ["?", "u1", "i1", "i2", "u2", "f2", "i4", "u4", "f4", "c8", "f8", "i8", "u8"]
ML_TYPES = ["bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz"]
ML_TYPES += ["float8_e5m2fnuz"]
LAYOUTS = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


def entries(folder):
    """The names in a folder, hidden ones too."""
    return sorted(os.listdir(folder))


def loaded(path):
    """All arrays of a checkpoint."""
    with open_checkpoint(path, strict=True) as found:
        return dict(found)


@st.composite
def arrays(draw):
    """An array of any type, shape, layout and byte order, and its plain equal."""
    name = draw(st.sampled_from(NUMPY_TYPES + ML_TYPES))
    dtype = np.dtype(getattr(ml_dtypes, name)) if name in ML_TYPES else np.dtype(name)
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    seed = draw(st.integers(0, 2**32))
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    if dtype.kind == "b":
        raw &= 1
    plain = np.frombuffer(raw.tobytes(), dtype).reshape(shape)
    layout = draw(st.sampled_from(sorted(LAYOUTS))) if plain.ndim else "C"
    if draw(st.booleans()):
        plain = np.frombuffer(raw.tobytes(), dtype.newbyteorder(">")).reshape(shape)
    return LAYOUTS[layout](plain), plain


@given(st.lists(arrays(), max_size=4), st.integers(1, 64), st.booleans())
def test_any_array_round_trips(tmp_path_factory, found, piece, sharded):
    """Type, shape and bits come back from any layout and byte order, however it is cut up."""
    path = tmp_path_factory.mktemp("any") / ("m" if sharded else "m.safetensors")
    model = {f"t{i}": array for i, (array, _) in enumerate(found)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values_module.pieces, "__defaults__", (piece,))
        save_checkpoint(path, model, max_shard_size=50 if sharded else None)
    back = loaded(path)
    assert set(back) == set(model)
    for i, (_, plain) in enumerate(found):
        little = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
        assert back[f"t{i}"].dtype == little.dtype.newbyteorder("=")
        assert back[f"t{i}"].shape == plain.shape
        assert back[f"t{i}"].tobytes() == little.tobytes()


@pytest.mark.parametrize("piece", [1, 7, 16, 100, 10**6])
def test_pieces_are_bounded_and_in_order(piece):
    """Arrays that need a copy are copied in pieces no larger than asked (or one element)."""
    array = np.arange(120, dtype=">i4").reshape(4, 5, 6).transpose(2, 0, 1)
    parts = list(values_module.pieces(array, piece))
    assert b"".join(p.tobytes() for p in parts) == array.astype("<i4").tobytes()
    assert max(p.nbytes for p in parts) <= max(piece, 4)


def test_broadcast_and_views_outside_their_memory_are_right(tmp_path):
    """Arrays that the peer's writer scrambles or reads out of bounds are saved right."""
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    model = {
        "broadcast": np.broadcast_to(base[0], (5, 4)),
        "reversed": base[::-1, ::-1],
        "diagonal": base[:3, :3].diagonal(),
        "window": np.lib.stride_tricks.sliding_window_view(base[0], 2),
        "column": base[:, 1],
    }
    save_checkpoint(tmp_path / "m.safetensors", model)
    back = loaded(tmp_path / "m.safetensors")
    assert all(np.array_equal(back[n], model[n]) for n in model)


def test_lists_numbers_and_scalars_are_taken(tmp_path):
    """What np.asarray takes is taken: lists, Python numbers, NumPy scalars, array-likes."""

    class Like:
        def __array__(self, dtype=None, copy=None):
            return np.arange(3, dtype=np.int8)

    model = {"list": [[1, 2]], "number": 2.5, "scalar": np.float32(3), "like": Like(), "b": True}
    save_checkpoint(tmp_path / "m.safetensors", model)
    back = loaded(tmp_path / "m.safetensors")
    assert back["list"].dtype == np.int64
    assert back["number"].dtype == np.float64
    assert back["scalar"] == np.float32(3)
    assert back["like"].tolist() == [0, 1, 2]
    assert back["b"].dtype == bool


@pytest.mark.parametrize(
    ("value", "error", "word"),
    [
        (np.array([None]), ElementError, "object"),
        (np.zeros(2, np.complex128), ElementError, "complex128"),
        (np.zeros(2, np.longdouble), ElementError, "longdouble|float128"),
        (np.array(["a"]), ElementError, "<U1"),
        (np.array([b"a"]), ElementError, "S1"),
        (np.array(["2020"], "M8[D]"), ElementError, "datetime64"),
        (np.zeros(2, "i4,f4"), ElementError, "i4"),
        (np.zeros(2, ml_dtypes.int4), ElementError, "int4"),
        (np.ma.array([1, 2], mask=[0, 1]), ElementError, "mask"),
        (None, ElementError, "object"),
        ("text", ElementError, "<U4"),
        ([[1], [1, 2]], ShapeError, "inhomogeneous"),
    ],
)
def test_elements_without_a_place_are_refused(tmp_path, value, error, word):
    """An array that cannot be stored is refused by tensor name and dtype; nothing is written."""
    with pytest.raises(error, match=rf"tensors\['bad'\][\s\S]*({word})"):
        save_checkpoint(tmp_path / "m.safetensors", {"good": [1.0], "bad": value})
    assert entries(tmp_path) == []


@pytest.mark.parametrize("name", [1, None, b"a", ("a",)])
def test_names_must_be_text(tmp_path, name):
    """A name that is no str is a TypeError that says what it is."""
    with pytest.raises(ArgumentTypeError, match=type(name).__name__):
        save_checkpoint(tmp_path / "m.safetensors", {name: [1.0]})
    assert entries(tmp_path) == []


@pytest.mark.parametrize("name", ["__metadata__", "\ud800", "n" * 65537])
def test_illegal_names_are_refused(tmp_path, name):
    """Names that no reader would take are refused."""
    with pytest.raises(ArgumentError, match="tensors"):
        save_checkpoint(tmp_path / "m.safetensors", {name: [1.0]})
    assert entries(tmp_path) == []


@pytest.mark.parametrize("name", ["", "../x", "a\0b", "é😀", '"\\\n', "x" * 65536])
def test_legal_names_round_trip(tmp_path, name):
    """Odd but legal names come back as they were."""
    save_checkpoint(tmp_path / "m.safetensors", {name: [1.0]})
    assert list(loaded(tmp_path / "m.safetensors")) == [name]


@pytest.mark.parametrize(
    "metadata", [{"a": 1}, {1: "a"}, {"a": None}, [("a", "b")], "a", {"\ud800": "a"}]
)
def test_metadata_must_be_text_to_text(tmp_path, metadata):
    """Metadata that is not str to str is refused before anything is written."""
    with pytest.raises(WeightshareError, match="metadata"):
        save_checkpoint(tmp_path / "m.safetensors", {}, metadata=metadata)
    assert entries(tmp_path) == []


def test_format_is_always_pt(tmp_path):
    """transformers needs format: pt, so it is written whatever the user gave."""
    for metadata in (None, {}, {"format": "np", "k": "v"}):
        path = tmp_path / "m.safetensors"
        save_checkpoint(path, {"w": [1.0]}, metadata=metadata, overwrite=True)
        with open_checkpoint(path) as found:
            assert found.metadata["format"] == "pt"


@pytest.mark.parametrize("tensors", [None, [("w", [1.0])], np.zeros(3), "w"])
def test_tensors_must_be_a_mapping(tmp_path, tensors):
    """What is no mapping is a TypeError that says what came."""
    with pytest.raises(ArgumentTypeError, match=type(tensors).__name__):
        save_checkpoint(tmp_path / "m.safetensors", tensors)


def test_empty_mapping_is_saved(tmp_path):
    """A checkpoint without tensors is legal, as a file and as a folder."""
    save_checkpoint(tmp_path / "m.safetensors", {})
    save_checkpoint(tmp_path / "m", {})
    assert loaded(tmp_path / "m.safetensors") == loaded(tmp_path / "m") == {}
    assert entries(tmp_path / "m") == ["model.safetensors"]


def test_inputs_are_not_changed(tmp_path, model):
    """Saving changes no input."""
    before = {name: array.copy() for name, array in model.items()}
    save_checkpoint(tmp_path / "m", model, max_shard_size=1)
    assert all(np.array_equal(model[n], before[n]) for n in model)


# Torch, without needing it


class FakeTensor:
    """As much of a CPU torch tensor as is needed, over a NumPy array."""

    __module__ = "torch"

    def __init__(self, array, dtype, device="cpu", layout="torch.strided"):
        self.array = array
        self.dtype = dtype
        self.device = types.SimpleNamespace(type=device)
        self.layout = layout
        self.is_quantized = False

    def detach(self):
        return self

    resolve_conj = resolve_neg = detach

    def view(self, dtype):
        assert dtype == self.array.dtype.name
        return FakeTensor(self.array, f"torch.{dtype}")

    def numpy(self):
        assert self.dtype not in ("torch.bfloat16", "torch.float8_e5m2")
        return self.array


def test_bfloat16_tensors_go_through_an_integer_view(tmp_path, monkeypatch):
    """A torch bfloat16 tensor, which has no .numpy(), is saved by its bits."""
    fake = types.SimpleNamespace(int16="int16", uint8="uint8")
    monkeypatch.setitem(sys.modules, "torch", fake)
    bits = np.array([0x3F80, 0x4000], np.int16)
    model = {
        "half": FakeTensor(bits, "torch.bfloat16"),
        "tiny": FakeTensor(np.array([60], np.uint8), "torch.float8_e5m2"),
        "full": FakeTensor(np.array([1.5], np.float32), "torch.float32"),
    }
    save_checkpoint(tmp_path / "m.safetensors", model)
    back = loaded(tmp_path / "m.safetensors")
    assert back["half"].dtype == ml_dtypes.bfloat16
    assert back["half"].tolist() == [1.0, 2.0]
    assert back["tiny"].tolist() == [1.0]
    assert back["full"].tolist() == [1.5]


@pytest.mark.parametrize(("device", "layout"), [("cuda", "torch.strided"), ("cpu", "torch.sparse")])
def test_tensors_elsewhere_are_refused(tmp_path, device, layout):
    """A torch tensor that is not dense on the CPU is refused with what to do."""
    tensor = FakeTensor(np.zeros(1), "torch.float64", device, layout)
    with pytest.raises(ElementError, match=r"cpu\(\)"):
        save_checkpoint(tmp_path / "m.safetensors", {"w": tensor})


def test_real_torch_tensors(tmp_path):
    """Real torch tensors of every shared type are saved by their bits."""
    torch = pytest.importorskip("torch")
    model = {
        "half": torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16).T,
        "grad": torch.nn.Parameter(torch.arange(3.0)),
        "bool": torch.tensor([True, False]),
    }
    save_checkpoint(tmp_path / "m.safetensors", model)
    back = loaded(tmp_path / "m.safetensors")
    assert back["half"].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert back["grad"].tolist() == [0.0, 1.0, 2.0]
    assert back["bool"].tolist() == [True, False]


# Folders and shards


def test_shards_are_filled_in_order(tmp_path):
    """Shards fill in the mapping's order up to the limit; a larger tensor has its own."""
    sizes = {"a": 3, "b": 1, "big": 9, "c": 2, "d": 2, "e": 1}
    model = {name: np.zeros(size, np.uint8) for name, size in sizes.items()}
    save_checkpoint(tmp_path / "m", model, max_shard_size=4, metadata={"k": "v"})
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    groups = {}
    for name, shard in index["weight_map"].items():
        groups.setdefault(shard, set()).add(name)
    assert [groups[shard] for shard in sorted(groups)] == [{"a", "b"}, {"big"}, {"c", "d"}, {"e"}]
    assert index["metadata"] == {"k": "v", "total_size": 18}
    assert sorted(groups) == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    assert loaded(tmp_path / "m")["big"].shape == (9,)


def test_single_shard_needs_no_index(tmp_path, model):
    """What fits is model.safetensors alone."""
    save_checkpoint(tmp_path / "m", model, max_shard_size="1MB")
    assert entries(tmp_path / "m") == ["model.safetensors"]


@pytest.mark.parametrize(
    "size", [0, -1, True, "", "5", "GB", "-5GB", "0GB", "5 XB", "5GB x", "٥GB", 1.5, [5]]
)
def test_bad_shard_sizes_are_refused(tmp_path, size):
    """A size that is none is refused by name."""
    with pytest.raises(WeightshareError, match="max_shard_size"):
        save_checkpoint(tmp_path / "m", {}, max_shard_size=size)
    assert entries(tmp_path) == []


def test_shard_size_of_a_single_file_is_refused(tmp_path):
    """max_shard_size cannot hold for a path that names one file, so it is refused."""
    with pytest.raises(ArgumentError, match="one file"):
        save_checkpoint(tmp_path / "m.safetensors", {}, max_shard_size="5GB")


def test_missing_folders_are_made_for_a_folder_only(tmp_path, model):
    """A folder is made with its parents; a file's folder must be there."""
    save_checkpoint(tmp_path / "a" / "b", model)
    assert set(loaded(tmp_path / "a" / "b")) == set(model)
    with pytest.raises(OutputError, match="E403"):
        save_checkpoint(tmp_path / "c" / "m.safetensors", model)


def test_relative_paths(tmp_path, monkeypatch, model):
    """A bare file name and the working directory itself can be written."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("m.safetensors", model)
    assert set(loaded("m.safetensors")) == set(model)
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    save_checkpoint(".", model, max_shard_size=40)
    assert set(loaded(".")) == set(model)


# The writer that is fed piece by piece


def test_writer_takes_pieces_in_any_order_from_threads(tmp_path):
    """Pieces written by several threads in any order give the file that was planned."""
    model = {f"t{i}": np.arange(i, i + 4000, dtype=np.uint16) for i in range(6)}
    specs = [(name, "U16", array.shape) for name, array in model.items()]
    jobs = [(name, start) for name in model for start in range(0, 8000, 500)]
    np.random.default_rng(3).shuffle(jobs)
    with CheckpointWriter(tmp_path / "m", specs, max_shard_size=20_000) as writer:

        def work(part):
            for name, start in part:
                writer.write(name, int(start), model[name].view(np.uint8)[int(start) :][:500])

        threads = [threading.Thread(target=work, args=(jobs[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        files = writer.commit()
    assert [os.path.basename(f) for f in files][-1] == "model.safetensors.index.json"
    assert sorted(files) == sorted(str(tmp_path / "m" / f) for f in entries(tmp_path / "m"))
    back = loaded(tmp_path / "m")
    assert all(np.array_equal(back[n], model[n]) for n in model)
    with open_checkpoint(tmp_path / "m") as found:
        assert {n: writer.info(n) for n in found} == {n: found.info(n) for n in found}
        assert writer.tensors == {n: found.info(n) for n in found}
        assert writer.nbytes == found.nbytes


def test_writer_needs_every_byte_once(tmp_path):
    """A missing piece, or one written twice, is refused at commit and nothing appears."""
    for writes in ([(0, 4)], [(0, 8), (0, 4)], []):
        writer = CheckpointWriter(tmp_path / "m.safetensors", [("w", "F32", (2,))])
        for offset, size in writes:
            writer.write("w", offset, bytes(size))
        with pytest.raises(OutputError, match="E405"):
            writer.commit()
        writer.abort()
        assert entries(tmp_path) == []


def test_writer_refuses_ranges_names_and_use_after_its_end(tmp_path):
    """Bytes outside a tensor, an unknown tensor, and use after the end are errors."""
    with CheckpointWriter(tmp_path / "m.safetensors", [("w", "F32", (2,))]) as writer:
        for offset, size in ((-1, 1), (0, 9), (8, 1)):
            with pytest.raises(ArgumentError, match="offset_bytes"):
                writer.write("w", offset, bytes(size))
        with pytest.raises(KeyError, match="v"):
            writer.write("v", 0, b"")
        with pytest.raises(ArgumentTypeError, match="buffer"):
            writer.write("w", 0, None)
        writer.write("w", 0, bytes(8))
    assert entries(tmp_path) == ["m.safetensors"]
    writer.abort()
    for use in (writer.commit, lambda: writer.write("w", 0, bytes(8))):
        with pytest.raises(OutputError, match="E404"):
            use()
    assert entries(tmp_path) == ["m.safetensors"]


def test_clean_exit_commits_and_an_exception_aborts(tmp_path):
    """Leaving the with block commits; leaving it by an exception removes every trace."""
    with (
        pytest.raises(KeyboardInterrupt),
        CheckpointWriter(tmp_path / "deep" / "m", [("w", "U8", (1,))]) as writer,
    ):
        assert len(entries(tmp_path / "deep" / "m")) == 1
        writer.write("w", 0, b"1")
        raise KeyboardInterrupt
    assert entries(tmp_path) == []
    with CheckpointWriter(tmp_path / "m", [("w", "U8", (1,))]) as writer:
        writer.write("w", 0, b"1")
    assert loaded(tmp_path / "m")["w"].tolist() == [49]


def test_dropped_writer_leaves_nothing(tmp_path):
    """A writer that is forgotten removes its temporary files."""
    writer = CheckpointWriter(tmp_path / "m.safetensors", [("w", "U8", (1,))])
    assert len(entries(tmp_path)) == 1
    del writer
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (("w", "F128", (1,)), ElementError),
        (("w", None, (1,)), ElementError),
        (("w", "F32", (-1,)), ShapeError),
        (("w", "F32", (2**62,)), ShapeError),
        (("w", "F4", (3,)), ShapeError),
        (("w", "F32", (1,) * 65), ShapeError),
        (("__metadata__", "F32", ()), ArgumentError),
        ((1, "F32", ()), ArgumentTypeError),
    ],
)
def test_bad_specs_are_refused(tmp_path, spec, error):
    """A spec that cannot be written is refused before a file is made."""
    with pytest.raises(error, match="tensors"):
        CheckpointWriter(tmp_path / "m.safetensors", [spec])
    with pytest.raises(ArgumentError, match="twice"):
        CheckpointWriter(tmp_path / "m.safetensors", [("a", "U8", ()), ("a", "U8", ())])
    assert entries(tmp_path) == []


def test_header_above_the_limit_is_refused(tmp_path):
    """A header that readers would refuse is not written."""
    with pytest.raises(CheckpointError, match="E202"):
        save_checkpoint(tmp_path / "m.safetensors", {}, metadata={"k": "x" * 100_000_001})
    assert entries(tmp_path) == []


def test_mapping_that_changes_meanwhile_is_refused(tmp_path):
    """A lazy mapping whose array changes shape between the passes is refused."""

    class Shifting(dict):
        count = 0

        def __getitem__(self, name):
            self.count += 1
            return np.zeros(self.count)

    with pytest.raises(ArgumentError, match="changed"):
        save_checkpoint(tmp_path / "m.safetensors", Shifting(w=None))
    assert entries(tmp_path) == []


def test_partials_of_dead_processes_are_removed(tmp_path, monkeypatch):
    """The next run removes what a killed one left, and nothing of a live or foreign one."""
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 12345)
    dead = partial_name("m.safetensors")
    monkeypatch.undo()
    live = partial_name("m.safetensors")
    foreign = f".m.safetensors.otherhost.{2**22 + 12345}.0123abcd.partial"
    for name in (dead, live, foreign, "x.partial", ".hidden"):
        (tmp_path / name).write_text("x")
    save_checkpoint(tmp_path / "m.safetensors", {"w": [1.0]})
    assert entries(tmp_path) == sorted([live, foreign, "x.partial", ".hidden", "m.safetensors"])


def test_finish_brings_all_data_to_the_disk_and_commit_only_renames(tmp_path, monkeypatch):
    """After finish nothing more can be written, nothing is visible, and no data are synced."""
    path = tmp_path / "m.safetensors"
    with CheckpointWriter(path, [("w", "F32", (1,))]) as writer:
        with pytest.raises(OutputError, match="E405"):
            writer.finish()
        writer.write("w", 0, np.ones(1, np.float32))
        writer.finish()
        writer.finish()
        assert not path.exists()
        with pytest.raises(OutputError, match="E404"):
            writer.write("w", 0, np.ones(1, np.float32))
        monkeypatch.setattr("weightshare.checkpoint.output_file.OutputFile.finish", None)
        writer.commit()
    assert entries(tmp_path) == ["m.safetensors"]
    with pytest.raises(OutputError, match="E404"):
        writer.finish()


def test_long_file_name_can_be_written(tmp_path):
    """A name near the limit of 255 bytes does not make the temporary name too long."""
    path = tmp_path / ("é" * 120 + ".safetensors")
    save_checkpoint(path, {"w": [1.0]})
    assert entries(tmp_path) == [path.name]

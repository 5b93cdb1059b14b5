"""Opening and reading: what a path means, single arrays, threads, files that change."""

from __future__ import annotations

import contextlib
import gc
import os
import threading

import ml_dtypes
import numpy as np
import pytest

from weightshare.checkpoint import Checkpoint, TensorInfo, open_checkpoint, save_checkpoint
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointChangedError,
    CheckpointError,
    ShapeError,
)


def same(left, right):
    """Whether two mappings hold the same names, types, shapes and bits."""
    return list(left) == list(right) and all(
        left[n].dtype == right[n].dtype
        and left[n].shape == right[n].shape
        and left[n].tobytes() == right[n].tobytes()
        for n in right
    )


def refused(path, **options):
    """The error with which `path` is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, **options)
    assert caught.value.code in str(caught.value)
    assert "fix" in str(caught.value)
    return caught.value


def test_file_folder_index_and_shards_give_the_same_tensors(saved, sharded, model, tmp_path):
    """A file, a folder that holds it, shards and their index all open to the same arrays."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "weights.safetensors").write_bytes(saved.read_bytes())
    index = sharded / "model.safetensors.index.json"
    for path in (saved, str(saved), tmp_path / "one", sharded, index):
        with open_checkpoint(path) as found:
            assert set(found) == set(model)
            assert all(np.array_equal(found[n], model[n]) for n in model)
            assert found.metadata == {"by": "test", "format": "pt"}
            assert found.nbytes == sum(a.nbytes for a in model.values())
            assert len(found.files) == (3 if path in (sharded, index) else 1)


def test_relative_index_path_opens(sharded, monkeypatch):
    """An index named without a folder finds its shards in the working directory."""
    monkeypatch.chdir(sharded)
    with open_checkpoint("model.safetensors.index.json") as found:
        assert len(found) == 4


def test_model_safetensors_comes_before_the_index(sharded, saved):
    """Of a folder that has both, model.safetensors is taken, as transformers does."""
    save_checkpoint(sharded.parent / "x.safetensors", {"only": [1.0]})
    os.rename(sharded.parent / "x.safetensors", sharded / "model.safetensors")
    with open_checkpoint(sharded) as found:
        assert list(found) == ["only"]


def test_info_says_where_the_data_lie(saved, model):
    """The offset of .info is absolute: the bytes there are the tensor's."""
    content = saved.read_bytes()
    with open_checkpoint(saved) as found:
        for name, array in model.items():
            info = found.info(name)
            assert isinstance(info, TensorInfo)
            assert content[info.offset : info.offset + info.nbytes] == array.tobytes()
            assert (info.name, info.shape, info.file) == (name, array.shape, str(saved))
            assert info.numpy_dtype == array.dtype
        assert found.info("a.weight").dtype == "F16"
        with pytest.raises(AttributeError):
            found.info("a.weight").shape = ()


def test_arrays_are_fresh_writable_and_contiguous(saved, model):
    """Writing into a returned array changes neither the file nor the next look-up."""
    with open_checkpoint(saved) as found:
        first = found["b.weight"]
        assert first.flags.c_contiguous
        assert first.flags.writeable
        assert first.flags.owndata
        first[:] = 0
        assert np.array_equal(found["b.weight"], model["b.weight"])


def test_every_float_type_comes_as_its_numpy_type(tmp_path):
    """bfloat16 and float8 come as ml_dtypes arrays with their bits."""
    kinds = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
    kinds += [ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz]
    model = {np.dtype(k).name: np.array([0.5, 1, 2]).astype(k) for k in kinds}
    save_checkpoint(tmp_path / "m.safetensors", model)
    with open_checkpoint(tmp_path / "m.safetensors") as found:
        assert set(found) == set(model)
        for name, array in model.items():
            assert found[name].dtype == array.dtype
            assert found[name].tobytes() == array.tobytes()


def test_mapping_contract(saved, model):
    """A checkpoint is a mapping: len, in, iteration, get, items, and KeyError with near names."""
    with open_checkpoint(saved) as found:
        assert len(found) == 4
        assert "a.bias" in found
        assert "c" not in found
        assert found.get("c") is None
        assert {n: a.shape for n, a in found.items()} == {n: a.shape for n, a in model.items()}
        with pytest.raises(KeyError, match=r"a\.biaz.*a\.bias"):
            found["a.biaz"]
        with pytest.raises(KeyError):
            found.info("c")
        assert {found: 1}[found] == 1
        assert found != dict(found)
        with pytest.raises(TypeError):
            found["a.bias"] = 1


def test_bool_bytes_above_one_are_true(craft, put):
    """A BOOL byte of 7, which the format does not forbid, becomes a proper True."""
    header = {"m": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}
    with open_checkpoint(put(craft(header, b"\0\7\1"))) as found:
        assert found["m"].view(np.uint8).tolist() == [0, 1, 1]


def test_sub_byte_floats_have_info_only(craft, put):
    """A 4-bit tensor has .info and raw bytes, and is refused as an array."""
    header = {"q": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    with open_checkpoint(put(craft(header, b"\x12\x34"))) as found:
        assert found.info("q").nbytes == 2
        raw = np.empty(2, np.uint8)
        found.read_into("q", 0, raw)
        assert raw.tobytes() == b"\x12\x34"
        for read in (lambda: found["q"], lambda: found.info("q").numpy_dtype):
            with pytest.raises(CheckpointError) as caught:
                read()
            assert caught.value.code == "E107"


def test_shape_that_numpy_cannot_hold_is_refused(craft, put):
    """A legal shape beyond NumPy's limits is an error with a code, not a crash."""
    header = {"e": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}
    with open_checkpoint(put(craft(header))) as found:
        with pytest.raises(CheckpointError) as caught:
            found["e"]
        assert caught.value.code == "E108"


@pytest.fixture
def counted(monkeypatch):
    """The (offset, bytes) of each read that the package makes."""
    seen = []
    real = os.preadv

    def count(number, buffers, offset):
        seen.append((offset, sum(len(b) for b in buffers)))
        return real(number, buffers, offset)

    monkeypatch.setattr(os, "preadv", count)
    return seen


def test_rows_reads_those_rows_only(saved, model, counted):
    """rows() reads exactly the bytes of its rows."""
    with open_checkpoint(saved) as found:
        counted.clear()
        assert np.array_equal(found.rows("b.weight", 1, 4), model["b.weight"][1:4])
        assert counted == [(found.info("b.weight").offset + 16, 48)]
        counted.clear()
        assert found.rows("b.weight", 2, 2).shape == (0, 4)
        assert counted == []


def test_opening_reads_the_header_only(saved, counted):
    """Opening reads the header and none of the weights."""
    with open_checkpoint(saved) as found:
        end = min(found.info(n).offset for n in found)
        assert max(offset + count for offset, count in counted) <= end


def test_bad_rows_are_refused(saved):
    """Rows outside the tensor, of a 0-d tensor, or not whole, are errors that name the range."""
    with open_checkpoint(saved) as found:
        for start, stop in ((-1, 2), (3, 2), (0, 6)):
            with pytest.raises(ArgumentError, match="<= 5"):
                found.rows("b.weight", start, stop)
        with pytest.raises(ShapeError, match="no rows"):
            found.rows("steps", 0, 1)
        with pytest.raises(ArgumentTypeError, match="start"):
            found.rows("b.weight", 0.0, 1)
        with pytest.raises(KeyError):
            found.rows("c", 0, 1)


def test_read_into_fills_any_writable_buffer(saved, model):
    """read_into fills part of a tensor into bytes, arrays and memoryviews."""
    raw = model["b.weight"].tobytes()
    with open_checkpoint(saved) as found:
        for buffer in (bytearray(12), np.empty(3, np.float32), memoryview(bytearray(12))):
            found.read_into("b.weight", 8, buffer)
            assert bytes(buffer) == raw[8:20]
        half = np.empty(6, ml_dtypes.bfloat16)
        found.read_into("b.weight", 8, half)
        assert half.tobytes() == raw[8:20]
        found.read_into("b.weight", 80, bytearray())


def test_read_into_refuses_bad_ranges_and_buffers(saved):
    """A range outside the tensor, a read-only or strided buffer, or no buffer, are errors."""
    with open_checkpoint(saved) as found:
        for offset, size in ((-1, 4), (77, 4), (0, 81), (2**70, 1)):
            with pytest.raises(ArgumentError, match="80"):
                found.read_into("b.weight", offset, bytearray(size))
        with pytest.raises(ArgumentError, match="read-only"):
            found.read_into("b.weight", 0, b"1234")
        with pytest.raises(ArgumentError, match="contiguous"):
            found.read_into("b.weight", 0, np.empty(8, np.uint8)[::2])
        for buffer in (None, 4, np.empty(1, object)):
            with pytest.raises(ArgumentTypeError, match="buffer"):
                found.read_into("b.weight", 0, buffer)


def test_partial_reads_are_completed(saved, model, monkeypatch):
    """A system that reads one byte at a time gives the same numbers."""
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda n, b, o: real(n, [b[0][:1]], o))
    with open_checkpoint(saved) as found:
        assert np.array_equal(found["b.weight"], model["b.weight"])


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (1, 1)])
def test_0d_and_empty_tensors_round_trip(tmp_path, shape):
    """Tensors of no axes and of no elements keep their shape."""
    save_checkpoint(tmp_path / "m.safetensors", {"x": np.ones(shape, np.int16)})
    with open_checkpoint(tmp_path / "m.safetensors") as found:
        assert found["x"].shape == shape
        assert found["x"].all()


def test_read_error_of_the_disk_is_a_checkpoint_error(saved, monkeypatch):
    """An input/output error is reported with the file's name."""
    with open_checkpoint(saved) as found:

        def fail(*_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"Input/output[\s\S]*m\.safetensors"):
            found["a.bias"]


@pytest.mark.parametrize("change", ["truncate", "grow", "touch", "rewrite"])
def test_file_that_changes_is_refused(saved, change):
    """A file that is cut, grown, touched or rewritten in place is refused from then on."""
    with open_checkpoint(saved) as found:
        found["a.bias"]
        if change == "truncate":
            os.truncate(saved, os.path.getsize(saved) - 1)
        elif change == "grow":
            os.truncate(saved, os.path.getsize(saved) + 1)
        elif change == "touch":
            os.utime(saved, ns=(1, 1))
        else:
            saved.write_bytes(b"\0" * os.path.getsize(saved))
            os.utime(saved, ns=(2, 2))
        with pytest.raises(CheckpointChangedError) as caught:
            found["a.bias"]
        assert caught.value.code == "E106"
        assert isinstance(caught.value, OSError)


def test_short_read_is_refused(saved, monkeypatch):
    """A file that ends early while it is read gives an error, never numbers."""
    with open_checkpoint(saved) as found:
        monkeypatch.setattr(os, "preadv", lambda *_: 0)
        with pytest.raises(CheckpointChangedError):
            found["a.bias"]


def test_truncation_under_reading_threads_never_gives_wrong_numbers(tmp_path, nightly):
    """While a thread cuts and restores the file, each read is right or an error."""
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, {"w": np.full(200_000, 3, np.uint8)})
    size, wrong = os.path.getsize(path), []
    for _ in range(1000 if nightly else 40):
        os.truncate(path, size)
        with open(path, "r+b") as file:
            file.seek(size - 200_000)
            file.write(b"\3" * 200_000)
        with open_checkpoint(path) as found:
            cut = threading.Thread(target=os.truncate, args=(path, 1000))
            cut.start()
            with contextlib.suppress(CheckpointChangedError):
                wrong.extend(int((found["w"] != 3).sum()) for _ in range(3))
            cut.join()
            with pytest.raises(CheckpointChangedError):
                found["w"]
    assert not any(wrong)


def test_threads_read_the_same_checkpoint(tmp_path):
    """Many threads that read whole tensors and rows at once all get the right numbers."""
    model = {f"t{i}": np.arange(i, i + 5000, dtype=np.float64).reshape(50, 100) for i in range(8)}
    save_checkpoint(tmp_path / "m", model, max_shard_size=100_000)
    wrong = []
    with open_checkpoint(tmp_path / "m") as found:

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(60):
                name, row = f"t{rng.integers(8)}", int(rng.integers(50))
                if not np.array_equal(found.rows(name, row, row + 1)[0], model[name][row]):
                    wrong.append((name, row))
                if not np.array_equal(found[name], model[name]):
                    wrong.append(name)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_closing_under_a_reader_never_hands_it_another_file(tmp_path):
    """A descriptor is not reused while a read is under way: reads are right or refused."""
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, {"w": np.full(50_000, 3, np.uint8)})
    (tmp_path / "other").write_bytes(b"\5" * 60_000)
    wrong = []
    for _ in range(30):
        found = open_checkpoint(path)

        def work(found=found):
            try:
                while True:
                    if (found["w"] != 3).any():
                        wrong.append(1)
            except CheckpointError as error:
                if error.code != "E109":
                    wrong.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        found.close()
        with open(tmp_path / "other", "rb") as file:
            file.read(1)
            thread.join()
    assert wrong == []


def test_closed_checkpoint_says_so(saved):
    """Reading after close is an error with a code; closing twice is harmless; info stays."""
    with open_checkpoint(saved) as found:
        pass
    found.close()
    with pytest.raises(CheckpointError) as caught:
        found["a.bias"]
    assert caught.value.code == "E109"
    assert found.info("a.bias").shape == (4,)
    assert "closed" in repr(found)


def test_files_are_closed_with_their_checkpoint(saved, sharded):
    """No descriptor is left by use, by garbage collection, or by a refused checkpoint."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        open_checkpoint(sharded)["a.bias"]
        with open_checkpoint(saved):
            pass
    broken = sharded / "model-00003-of-00003.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    refused(sharded)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_replaced_file_still_gives_its_old_numbers(saved, model):
    """A checkpoint that is replaced by rename while open keeps giving what it was."""
    with open_checkpoint(saved) as found:
        save_checkpoint(saved, {n: a * 0 for n, a in model.items()}, overwrite=True)
        assert all(np.array_equal(found[n], model[n]) for n in model)


def test_repr_is_short_and_html_is_escaped(tmp_path):
    """repr stays short, and hostile names stand escaped in HTML of bounded size."""
    names = [f"<script>alert({i})</script>" + "'" * 3000 for i in range(3000)]
    save_checkpoint(tmp_path / "m.safetensors", dict.fromkeys(names, np.zeros(1)))
    with open_checkpoint(tmp_path / "m.safetensors") as found:
        text = found._repr_html_()
        assert "<script" not in text
        assert "&lt;script&gt;" in text
        assert len(text) < 50_000
        assert "2920 more" in text
        assert len(repr(found)) < 300
        assert "3000 tensors" in repr(found)


def test_opened_checkpoint_is_what_the_type_says(saved):
    """open_checkpoint returns a Checkpoint."""
    with open_checkpoint(saved) as found:
        assert isinstance(found, Checkpoint)
        assert same(found, dict(found))

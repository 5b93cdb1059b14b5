"""ws.similarity and ws.distance of open checkpoints: the numbers of the loaded models, read in parts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import ArgumentError, ElementError, NamesError, ShapeError
from weightshare.sharing import stretches

METRICS = ["cosine", "row_cosine", "sign", "procrustes", "cka"]


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """Three checkpoints and a base, of tensors that are many stretches, with their arrays."""
    # Small stretches, so that small tensors are cut as large ones are.
    monkeypatch.setattr(stretches, "_BYTES_AT_ONCE", 1 << 12)
    random = np.random.default_rng(0)
    shapes = {"tall": (400, 6), "wide": (5, 300), "vector": (700,), "one": (), "none": (0, 4)}
    origin = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    models, opened = [], []
    for j in range(4):
        model = {
            name: np.asarray(
                w + 0.3 * j * random.standard_normal(w.shape) + 0.5, ml_dtypes.bfloat16
            )
            for name, w in origin.items()
        }
        model["long"] = (random.standard_normal(300_000) + 1).astype(np.float32)
        model["ids"] = np.arange(3)
        ws.save_checkpoint(tmp_path / f"m{j}", model)
        models.append(model)
        opened.append(ws.open_checkpoint(tmp_path / f"m{j}"))
    yield models, opened
    for checkpoint in opened:
        checkpoint.close()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("with_base", [False, True])
def test_similarity_is_that_of_the_loaded_models(checkpoints, metric, center, with_base, threads):
    loaded, opened = checkpoints
    options = {"metric": metric, "center": center, "threads": threads, "level": "tensor"}
    expected = ws.similarity(loaded[1:], base=loaded[0] if with_base else None, **options)
    found = ws.similarity(opened[1:], base=opened[0] if with_base else None, **options)
    assert set(found) == set(expected)
    for name, matrix in expected.items():
        if metric in ("procrustes", "cka"):
            np.testing.assert_allclose(found[name], matrix, atol=1e-12)
        else:
            np.testing.assert_array_equal(found[name], matrix)
    model = ws.similarity(opened[1:], metric, center=center, threads=threads)
    np.testing.assert_allclose(model, ws.similarity(loaded[1:], metric, center=center), atol=1e-12)


@pytest.mark.parametrize("metric", ["l2", "relative"])
def test_distance_is_that_of_the_loaded_models(checkpoints, metric, threads):
    loaded, opened = checkpoints
    found = ws.distance(opened, metric, level="tensor", threads=threads)
    for name, matrix in ws.distance(loaded, metric, level="tensor").items():
        np.testing.assert_array_equal(found[name], matrix)


def test_no_tensor_is_read_whole(checkpoints, monkeypatch):
    """Every read is a stretch, though the tensor is many times as long."""
    _, opened = checkpoints
    lengths = []
    read_into = ws.Checkpoint.read_into

    def noted(self, name, offset, buffer):
        lengths.append((name, buffer.nbytes))
        read_into(self, name, offset, buffer)

    monkeypatch.setattr(ws.Checkpoint, "read_into", noted)
    monkeypatch.setattr(ws.Checkpoint, "__getitem__", lambda *_: pytest.fail("read whole"))
    ws.similarity(opened)
    assert max(nbytes for name, nbytes in lengths if name == "long") <= stretches.CHUNK * 4
    assert sum(nbytes for name, nbytes in lengths if name == "long") == 4 * 1_200_000


def test_checkpoints_may_be_compared_with_models_in_memory(checkpoints):
    loaded, opened = checkpoints
    mixed = [loaded[0], opened[1], loaded[2]]
    np.testing.assert_allclose(ws.similarity(mixed), ws.similarity(loaded[:3]), atol=1e-13)


def test_checkpoints_may_differ_in_their_floating_point_types(tmp_path):
    w = np.random.default_rng(0).standard_normal((3, 5)).astype(ml_dtypes.bfloat16)
    ws.save_checkpoint(tmp_path / "a", {"w": w})
    ws.save_checkpoint(tmp_path / "b", {"w": w.astype(np.float64)})
    with ws.open_checkpoint(tmp_path / "a") as a, ws.open_checkpoint(tmp_path / "b") as b:
        assert ws.distance([a, b])[0, 1] == 0


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    def opened(name, **tensors):
        ws.save_checkpoint(tmp_path / name, tensors)
        return ws.open_checkpoint(tmp_path / name)

    first = opened("first", w=np.ones((2, 3), np.float32))
    cases = [
        (opened("names", v=np.ones((2, 3), np.float32)), NamesError, r"models\[1\].*lacks \['w'\]"),
        (
            opened("shape", w=np.ones((3, 2), np.float32)),
            ShapeError,
            r"models\[1\]\['w'\].*\(3, 2\)",
        ),
        (opened("kind", w=np.ones((2, 3), np.int64)), ElementError, r"models\[1\]\['w'\].*int64"),
    ]
    for other, error, message in cases:
        with pytest.raises(error, match=message):
            ws.similarity([first, other])
        with pytest.raises(error, match="base"):
            ws.similarity([first, first], base=other)
        other.close()
    with pytest.raises(TypeError, match="all arrays or all mappings"):
        ws.similarity([first, np.ones(3)])
    with pytest.raises(TypeError, match="base: expected a mapping"):
        ws.similarity([first], base=np.ones(3))
    first.close()


def test_nan_in_a_checkpoint_is_refused_by_name(tmp_path):
    ws.save_checkpoint(tmp_path / "a", {"w": np.float32([1, np.nan])})
    ws.save_checkpoint(tmp_path / "b", {"w": np.float32([1, 2])})
    with ws.open_checkpoint(tmp_path / "a") as a, ws.open_checkpoint(tmp_path / "b") as b:
        with pytest.raises(ArgumentError, match=r"models\[1\]\['w'\]: expected finite"):
            ws.similarity([b, a])
        with pytest.raises(ArgumentError, match="base: expected finite"):
            ws.similarity([b, b], base=a)

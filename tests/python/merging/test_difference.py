"""ws.compare_checkpoints: how two checkpoints differ, against float64 sums written from the formulas."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as hnp

import weightshare as ws
from weightshare.errors import ArgumentError, ArgumentTypeError, CheckpointError
from weightshare.merging import difference

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e4m3fn]
INTEGERS = [np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_]


@pytest.fixture
def compare(tmp_path):
    """Write two models and compare them."""

    def compare(first, second, **options):
        for name, tensors in (("a", first), ("b", second)):
            ws.save_checkpoint(tmp_path / name, tensors, overwrite=True)
        return ws.compare_checkpoints(tmp_path / "a", tmp_path / "b", **options)

    return compare


def expected(x, y):
    """The numbers by their definitions, in float64."""
    x, y = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    gap, both = y - x, (x != 0) & (y != 0)
    norms = np.linalg.norm(x), np.linalg.norm(y)
    relative = 0.0 if not gap.any() else np.linalg.norm(gap) / norms[0] if norms[0] else math.inf
    return {
        "relative": relative,
        "max_abs": np.abs(gap).max(initial=0.0),
        "cosine": x @ y / (norms[0] * norms[1]) if all(norms) else None,
        "sign": np.mean(np.sign(x)[both] == np.sign(y)[both]) if both.any() else None,
        "changed": int((gap != 0).sum()),
    }


def check(found, x, y):
    for key, value in expected(x, y).items():
        got = getattr(found, key)
        if value is None:
            assert got is None, key
        else:
            assert got == pytest.approx(value, rel=1e-6, abs=1e-12), key


@pytest.mark.parametrize("dtype", [*DTYPES, *INTEGERS])
@pytest.mark.parametrize("shape", [(7, 33), (), (1,), (0, 3), (2, 3, 4)])
def test_numbers_are_those_of_the_definitions(compare, dtype, shape, monkeypatch):
    monkeypatch.setattr(difference, "_AT_ONCE", 64)
    monkeypatch.setattr(difference, "_CHUNK", 16)
    random = np.random.default_rng(0)
    x = (4 * random.standard_normal(shape)).astype(dtype)
    y = np.where(random.random(shape) < 0.5, x, (4 * random.standard_normal(shape)).astype(dtype))
    (found,) = compare({"w": x}, {"w": y.astype(dtype)}).tensors
    check(found, x, y)
    assert found.identical == bool(np.array_equal(x, y))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_two_tensors_of_finite_numbers(compare, data):
    elements = st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-4)
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=5))
    x, y = (data.draw(hnp.arrays(np.float32, shape, elements=elements)) for _ in "xy")
    (found,) = compare({"w": x}, {"w": y}).tensors
    for key, value in expected(x, y).items():
        if key != "changed" and value is not None:
            assert getattr(found, key) == pytest.approx(value, rel=1e-5, abs=1e-7)
    assert (found.changed == 0) == found.identical


def test_numbers_depend_neither_on_threads_nor_on_the_stretches_that_are_read(compare, monkeypatch):
    random = np.random.default_rng(0)
    x = random.standard_normal(700_000).astype(np.float32)
    models = {"w": x}, {"w": x + random.standard_normal(x.size).astype(np.float32)}
    whole = compare(*models, threads=1)
    monkeypatch.setattr(difference, "_AT_ONCE", 1 << 18)
    for threads in (1, 2, 3):
        assert compare(*models, threads=threads).to_json() == whole.to_json()


def test_only_stretches_are_read(compare, monkeypatch):
    monkeypatch.setattr(difference, "_AT_ONCE", 1 << 10)
    lengths = []
    read_into = ws.Checkpoint.read_into

    def noted(self, name, offset, buffer):
        lengths.append(buffer.nbytes)
        read_into(self, name, offset, buffer)

    monkeypatch.setattr(ws.Checkpoint, "read_into", noted)
    w = {"w": np.ones(5000, np.float32)}
    compare(w, w)
    assert max(lengths) == 4096
    assert sum(lengths) == 2 * 20_000


def test_different_dtypes_are_compared_and_said(compare):
    x = np.float32([[1.5, -2.0, 0.25]])
    found = compare({"w": x}, {"w": x.astype(ml_dtypes.bfloat16), "i": np.arange(2)})
    (tensor,) = found.tensors
    assert (tensor.dtypes, tensor.relative, tensor.changed) == (("F32", "BF16"), 0.0, 0)
    assert not tensor.identical
    assert ("dtypes", "differ in 1") in found.summary()
    (mixed,) = compare({"w": np.arange(4)}, {"w": np.float64([0, 1, 2, 4])}).tensors
    assert (mixed.max_abs, mixed.changed) == (1.0, 1)


def test_different_shapes_and_names_are_said_and_come_first(compare):
    found = compare(
        {"w": np.ones(3), "v": np.ones((2, 2)), "old": np.ones(1)},
        {"w": np.ones(3) * 2, "v": np.ones((3, 2)), "new": np.ones(1)},
    )
    assert [tensor.name for tensor in found.tensors] == ["v", "w"]
    assert found.tensors[0].shapes == ((2, 2), (3, 2))
    assert found.tensors[0].relative is None
    assert (found.missing, found.extra) == (("old",), ("new",))
    assert not found.identical
    assert "missing     1: old" in repr(found)


def test_equal_checkpoints_are_identical_even_with_nan_and_zeros(compare):
    model = {"nan": np.float32([1, np.nan]), "zero": np.zeros(3), "c": np.ones(2, np.complex64)}
    found = compare(model, model)
    assert found.identical
    assert all(tensor.identical for tensor in found.tensors)
    tensors = {tensor.name: tensor for tensor in found.tensors}
    assert tensors["zero"].cosine is None
    assert tensors["nan"].not_finite == (1, 1)
    other = model | {"c": np.full(2, 2, np.complex64)}
    assert [t.name for t in compare(model, other).tensors if not t.identical] == ["c"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_comes_first(compare, value):
    found = compare(
        {"w": np.ones(5, np.float32), "v": np.ones(2)},
        {"w": np.float32([1, value, 1, value, 1]), "v": np.zeros(2)},
    )
    assert {t.name: t.not_finite for t in found.tensors} == {"w": (0, 2), "v": (0, 0)}
    assert ("not finite", "0 elements of the first, 2 of the second") in found.summary()
    json.dumps(found.to_json(), allow_nan=False)


def test_a_change_from_zero_is_infinite_and_json_says_so(compare):
    found = compare({"w": np.zeros(2)}, {"w": np.ones(2)})
    assert found.tensors[0].relative == math.inf
    assert found.to_json()["tensors"][0]["relative"] == "Infinity"


def test_what_changed_most_comes_first_by_each_measure(compare):
    base = {name: np.float64([1, -2, 3, 4]) for name in ("far", "turned", "near", "same")}
    changed = {
        "far": base["far"] * 100,
        "turned": -base["turned"],
        "near": base["near"] + 0.001,
        "same": base["same"],
    }
    found = compare(base, changed)
    names = {key: [t.name for t in found.sorted_by(key)] for key in difference.SORTS}
    assert names == {
        "relative": ["far", "turned", "near", "same"],
        "max_abs": ["far", "turned", "near", "same"],
        "cosine": ["turned", "near", "far", "same"],
        "sign": ["turned", "far", "near", "same"],
        "name": ["far", "near", "same", "turned"],
    }
    with pytest.raises(ArgumentError, match="relative, max_abs"):
        found.sorted_by("size")
    total = np.concatenate(list(base.values())), np.concatenate(list(changed.values()))
    assert found.relative == pytest.approx(expected(*total)["relative"])
    assert found.max_abs == 396


def test_open_checkpoints_are_taken_and_stay_open(tmp_path):
    ws.save_checkpoint(tmp_path / "a", {"w": np.ones(3)})
    with ws.open_checkpoint(tmp_path / "a") as a:
        assert ws.compare_checkpoints(a, a).identical
        assert a["w"].sum() == 3


def test_progress_ends_at_the_bytes_of_both(compare):
    told = []
    compare(
        {"w": np.ones(3), "v": np.ones(1)},
        {"w": np.ones(3), "v": np.ones(1)},
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (64, 64)


def test_wrong_arguments_are_named(tmp_path):
    ws.save_checkpoint(tmp_path / "a", {"w": np.ones(3)})
    with pytest.raises(ArgumentTypeError, match="second: expected a path"):
        ws.compare_checkpoints(tmp_path / "a", 3)
    with pytest.raises(CheckpointError, match="E101"):
        ws.compare_checkpoints(tmp_path / "a", tmp_path / "none")
    with pytest.raises(ArgumentError, match="threads"):
        ws.compare_checkpoints(tmp_path / "a", tmp_path / "a", threads=0)


def test_many_tensors_with_hostile_names_are_short_and_escaped(compare):
    names = [f"<script>alert({i})</script>" + "x" * 2000 for i in range(300)]
    first = {name: np.ones(1) for name in [*names, "<img src=x onerror=y>"]}
    found = compare(first, {name: np.zeros(1) for name in [*names, "<b>new"]})
    html = found._repr_html_()
    assert len(html) < 50_000
    for tag in ("<script", "<img", "<b>"):
        assert tag not in html
    assert len(repr(found).splitlines()) <= 20
    assert max(map(len, repr(found).splitlines())) < 250


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_beyond_float32_is_not_infinite(compare, sign):
    """The largest change of one element is a float64."""
    x, y = np.float32([3e38, 1]) * sign, np.float32([-3e38, 1]) * sign
    check(compare({"w": x}, {"w": y}).tensors[0], x, y)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_large_integers_that_float64_cannot_tell_apart_differ_by_one(compare, dtype):
    """2**60 and its neighbour are the same float64."""
    x, y = np.array([2**60, 5], dtype), np.array([2**60 + 1, 5], dtype)
    for first, second in ((x, y), (y, x)):
        found = compare({"w": first}, {"w": second}).tensors[0]
        assert (found.max_abs, found.changed) == (1.0, 1)
        assert found.relative == pytest.approx(2.0**-60)


def test_integers_of_the_whole_range_do_not_wrap(compare):
    """From the least int64 to the largest it is 2**64 - 1."""
    limits = np.iinfo(np.int64)
    first, second = (np.array([value]) for value in (limits.min, limits.max))
    found = compare({"w": first}, {"w": second}).tensors[0]
    assert (found.max_abs, found.sign) == (2.0**64, 0.0)


def test_a_zero_that_changes_its_sign_has_no_signed_difference(compare):
    """No table shows -0."""
    found = compare({"w": np.float32([0, 0])}, {"w": np.float32([0, -0.0])}).tensors[0]
    assert (found.changed, found.row[4]) == (1, "0")

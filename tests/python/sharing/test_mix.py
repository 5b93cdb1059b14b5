"""ws.mix, ws.share, ws.fuse, ws.transfer: sentences about sharing between models in memory."""

from __future__ import annotations

import hashlib

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import weightshare as ws
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)

ELEMENTS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def assert_same_bits(x, y):
    assert x.dtype == y.dtype
    assert x.shape == y.shape
    np.testing.assert_array_equal(bits(x), bits(y))


finite = st.floats(-100, 100, width=32)


@given(
    w=hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(0, 40)), elements=finite),
    data=st.data(),
)
def test_each_result_is_the_sum_of_coefficients_times_models(w, data):
    m = data.draw(st.integers(1, 4))
    a = data.draw(hnp.arrays(np.float64, (m, len(w)), elements=st.floats(-4, 4, width=32)))
    mixed = ws.mix(w, a)
    exact = a.astype(np.float32).astype(np.float64) @ w.astype(np.float64)
    slack = (len(w) + 1) * 2.0**-23 * (np.abs(a) @ np.abs(w).astype(np.float64)) + 1e-37
    assert (np.abs(mixed - exact) <= slack).all()


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_the_result_has_the_dtype_of_the_models_and_is_rounded_once(dtype):
    w = normal(3, 1000, dtype=dtype)
    a = np.array([[0.5, 0.25, 0.25], [1.0, -2.0, 0.5]])
    mixed = ws.mix(w, a)
    assert mixed.dtype == w.dtype
    exact = a @ w.astype(np.float64)
    magnitude = np.abs(a) @ np.abs(w.astype(np.float64))
    fine = 2.0**-53 if dtype == np.float64 else 2.0**-24
    slack = EPS[w.dtype.name] * np.abs(exact) * 1.001 + 4 * fine * magnitude + 1e-7
    assert (np.abs(mixed.astype(np.float64) - exact) <= slack).all()


@given(
    w=hnp.arrays(np.float32, (4, 33), elements=st.floats(width=32, allow_nan=False)),
    j=st.integers(0, 3),
)
def test_a_unit_coefficient_returns_that_model_bit_for_bit(w, j):
    assert_same_bits(ws.mix(w, np.eye(4)[j]), w[j])


def test_a_coefficient_of_zero_keeps_nan_out():
    w = np.array([[np.nan, np.inf], [1.0, 2.0]], np.float32)
    np.testing.assert_array_equal(ws.mix(w, [0.0, 1.0]), [1.0, 2.0])
    np.testing.assert_array_equal(ws.mix(w, [[0.0, 0.0]]), [[0.0, 0.0]])
    assert np.isnan(ws.mix(w, [1.0, 1.0])[0])


@given(w=hnp.arrays(np.float64, (3, 20), elements=finite), k=finite)
def test_mixing_is_linear_in_the_coefficients(w, k):
    a, b = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.25, -0.5])
    left = ws.mix(w, k * a + b)
    right = k * ws.mix(w, a) + ws.mix(w, b)
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-9)


def test_permuting_the_models_permutes_the_coefficients():
    w, a = normal(4, 100), normal(4, 4, dtype=np.float64, seed=1)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(ws.mix(w[order], a[:, order]), ws.mix(w, a), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("size", [1, 1000, 4_000_003])
def test_threads_change_no_bit(dtype, size):
    w = np.resize(normal(3, min(size, 100_000), dtype=dtype), (3, size))
    a = normal(2, 3, dtype=np.float64, seed=1)
    assert_same_bits(ws.mix(w, a, threads=1), ws.mix(w, a, threads=2))


GOLDEN = "92287190e527c8b70a32024de11e78ccc26bc056ca72b9e63313ffca7c66067a"


def test_the_bits_are_the_golden_ones_at_every_level():
    """The hash was written down once; it holds on any machine, level and thread count."""
    grid = (np.arange(3 * 5000) * 2654435761 % 2**32).astype(np.float64) / 2**31 - 1
    digest = hashlib.sha256()
    for dtype in ELEMENTS:
        w = grid.reshape(3, 5000).astype(dtype)
        digest.update(bits(ws.mix(w, [[0.3, -1.7, 0.11], [0.0, 1.0, 2.5]])).tobytes())
        digest.update(bits(ws.transfer(w[0], w[1], 0.37, base=w[2])).tobytes())
        digest.update(ws.similarity(w, center=True).tobytes())
    assert digest.hexdigest() == GOLDEN


def test_in_place_gives_what_a_new_array_gives(threads):
    w = normal(3, 50_000)
    a = normal(3, 3, dtype=np.float64, seed=1)
    expected = ws.mix(w, a)
    assert ws.mix(w, a, out=w, threads=threads) is w
    assert_same_bits(w, expected)


def test_a_list_of_arrays_gives_a_list_and_one_row_gives_one_array():
    w = [normal(4, 5), normal(4, 5, seed=1)]
    both = ws.mix(w, np.eye(2))
    assert isinstance(both, list)
    assert_same_bits(both[1], w[1])
    assert_same_bits(ws.mix(w, [1.0, 0.0]), w[0])
    assert ws.mix(np.stack(w), np.eye(2)).shape == (2, 4, 5)


def test_models_of_zero_dimensions_and_of_no_elements_work():
    assert ws.mix(np.array([1.0, 3.0]), [0.5, 0.5]).shape == ()
    assert float(ws.mix(np.array([1.0, 3.0]), [0.5, 0.5])) == 2.0
    assert ws.mix(np.zeros((2, 0, 3), np.float32), np.eye(2)).shape == (2, 0, 3)
    w = np.array([1.0, 3.0])
    ws.mix(w, [[0.0, 1.0], [1.0, 0.0]], out=w)
    np.testing.assert_array_equal(w, [3.0, 1.0])


def test_mappings_keep_names_order_and_the_dtype_of_each_name():
    models = [
        {
            "b": normal(3, dtype=np.float16, seed=j),
            "a": normal(2, 2, dtype=np.float64, seed=j),
            "n": np.int64(7),
        }
        for j in range(3)
    ]
    mixed = ws.mix(models, np.full((2, 3), 1 / 3))
    assert [list(m) for m in mixed] == [["b", "a", "n"]] * 2
    assert [mixed[0][k].dtype for k in "ban"] == [np.float16, np.float64, np.int64]
    assert mixed[1]["n"] == 7
    np.testing.assert_allclose(mixed[0]["a"], np.mean([m["a"] for m in models], axis=0), atol=1e-15)


def test_integers_that_differ_are_an_error_that_names_them():
    models = [{"steps": np.array([1])}, {"steps": np.array([2])}]
    with pytest.raises(ArgumentError, match=r"models\[1\]\['steps'\].*int64.*equal"):
        ws.mix(models, [0.5, 0.5])


layouts = {
    "fortran": np.asfortranarray,
    "transposed": lambda w: np.ascontiguousarray(w.T).T,
    "strided": lambda w: np.repeat(w, 2, axis=-1)[..., ::2],
    "reversed": lambda w: w[..., ::-1][..., ::-1],
    "big-endian": lambda w: w.astype(w.dtype.newbyteorder(">")),
    "read-only": lambda w: (w.setflags(write=False), w)[1],
    "nested list": lambda w: w.tolist(),
}


@pytest.mark.parametrize("layout", layouts.values(), ids=layouts)
def test_any_layout_gives_the_same_numbers_and_inputs_are_unchanged(layout):
    w = normal(3, 4, 5, dtype=np.float64)
    given = layout(w.copy())
    before = np.array(given)
    a = np.array([0.2, 0.3, 0.5])
    np.testing.assert_array_equal(ws.mix(given, a), ws.mix(w, a))
    np.testing.assert_array_equal(ws.mix(list(given), a), ws.mix(w, a))
    np.testing.assert_array_equal(np.array(given), before)


def test_no_temporary_of_the_size_of_the_models_is_made():
    import tracemalloc

    w, a = normal(4, 1_000_000), np.full((4, 4), 0.25)
    out = np.empty_like(w)
    tracemalloc.start()
    ws.mix(w, a, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(
    ("models", "a", "error", "words"),
    [
        (np.ones((2, 3), np.int32), [1, 1], ElementError, r"models: expected float16.*int32.*cast"),
        (np.ones((2, 3), complex), [1, 1], ElementError, "models: .*complex128"),
        (np.array([[object()]]), [1], ElementError, "models: .*object"),
        (np.ma.masked_array(np.ones((2, 3))), [1, 1], ArgumentTypeError, "masked"),
        (
            3.0,
            [1],
            ArgumentTypeError,
            "models: expected an array or a sequence of models, got float",
        ),
        ("ab", [1], ArgumentTypeError, "models"),
        ({"a": np.ones(2)}, [1], ArgumentTypeError, "list of mappings"),
        ([], [], ArgumentError, "at least one model"),
        (np.zeros((0, 3)), np.zeros((1, 0)), ArgumentError, "at least 1 models, got 0"),
        (
            [[1.0, 2.0], [3.0]],
            [1, 1],
            ShapeError,
            r"models\[1\]: expected shape \(2,\), got \(1,\)",
        ),
        ([np.ones(2), {"a": 1.0}], [1, 1], ArgumentTypeError, r"models\[1\] is of the other kind"),
        (
            [np.float32([1]), np.float64([1])],
            [1, 1],
            ElementError,
            r"models\[1\]: expected float32.*float64",
        ),
        ([{"a": 1.0}, {"b": 1.0}], [1, 1], NamesError, r"models\[1\].*lacks \['a'\].*adds \['b'\]"),
        ([{1: 1.0}], [1], ArgumentTypeError, "names that are str"),
        (np.ones((2, 3)), [1, 2, 3], ShapeError, r"A: expected shape \(m, 2\) or \(2,\)"),
        (np.ones((2, 3)), np.ones((1, 1, 2)), ShapeError, "A: expected shape"),
        (np.ones((2, 3)), np.ones((0, 2)), ShapeError, "A: expected at least one"),
        (np.ones((2, 3)), [np.nan, 1], ArgumentError, "A: expected finite.*nan"),
        (np.ones((2, 3)), [np.inf, 1], ArgumentError, "A: expected finite.*inf"),
        (np.ones((2, 3)), [1j, 1], ElementError, "A: expected real numbers.*complex"),
        (np.ones((2, 3)), [[1, 2], [3]], ShapeError, "A: .*ragged"),
        ([{"t": np.array(["x"])}], [1], ElementError, "models.*'t'"),
        ([{"t": np.ones(2, np.longdouble)}], [1], ElementError, "'t'.*float128|'t'.*longdouble"),
        ([{"t": np.ones(2, ml_dtypes.float8_e4m3fn)}], [1], ElementError, "'t'.*float8_e4m3fn"),
        (np.ones((2, 3)), np.ma.array([1.0, 5.0], mask=[0, 1]), ArgumentTypeError, "A: masked"),
    ],
)
def test_bad_models_and_coefficients_say_what_and_where(models, a, error, words):
    with pytest.raises(error, match=words):
        ws.mix(models, a)


def test_bad_outputs_say_what_and_nothing_is_written():
    w = normal(2, 6)
    kept = w.copy()
    a = np.eye(2)[::-1]
    read_only = np.empty_like(w)
    read_only.setflags(write=False)
    wide = np.zeros((2, 7), np.float32)
    for out, error, words in [
        (np.empty((2, 5), np.float32), ShapeError, r"out\[0\]: expected shape \(6,\), got \(5,\)"),
        (np.empty((3, 6), np.float32), ShapeError, "out: expected 2 models"),
        (np.empty((2, 6)), ElementError, "float32.*float64"),
        (read_only, ArgumentError, "read-only"),
        (np.empty((6, 2), np.float32).T, ArgumentError, "not C-contiguous"),
        ([wide[0, :6], wide[0, 1:]], ArgumentError, "shares memory"),
        ([w[0], w[0]], ArgumentError, "shares memory"),
        ([w.reshape(-1)[3:9], np.empty(6, np.float32)], ArgumentError, "shares memory"),
        (7, ArgumentTypeError, "out: expected 2 models, got int"),
        ({"a": w[0], "b": w[1]}, ArgumentTypeError, "out: expected 2 models, got dict"),
        ([[0.0] * 6] * 2, ArgumentTypeError, "NumPy array to write to, got list"),
        ([{"a": w[0]}, {"a": w[1]}], ArgumentTypeError, "form of the models"),
    ]:
        with pytest.raises(error, match=words):
            ws.mix(w, a, out=out)
    np.testing.assert_array_equal(w, kept)
    np.testing.assert_array_equal(wide, 0)


def test_an_output_that_is_an_input_of_another_name_is_refused():
    models = [{"a": normal(4), "b": normal(4, seed=1)}]
    with pytest.raises(ArgumentError, match="shares memory"):
        ws.mix(models, [[1.0]], out=[{"a": models[0]["b"], "b": np.empty(4, np.float32)}])
    tied = normal(4)
    tied_models = [{"a": tied, "b": tied}]
    with pytest.raises(ArgumentError, match="shares memory"):
        ws.mix(tied_models, [[2.0]], out=tied_models)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 5000])
def test_bad_thread_counts_are_refused(threads):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="threads"):
        ws.mix(normal(2, 3), [1, 1], threads=threads)


def test_shared_models_are_views_of_one_buffer_and_the_inputs_are_not():
    models = [{"w": normal(3, 2, seed=j), "b": normal(2, seed=j)} for j in range(3)]
    shared = ws.share(models, [2, 1, 1])
    assert len(shared) == 3
    for name in ("w", "b"):
        assert np.shares_memory(shared[0][name], shared[2][name])
        assert not np.shares_memory(shared[0][name], models[0][name])
        shared[1][name][...] = 5.0
        assert (shared[0][name] == 5.0).all()
    views = ws.share(np.ones((2, 3)))
    views[0][:] = 2.0
    np.testing.assert_array_equal(views[1], 2.0)


def test_fuse_is_the_normalised_mean_and_leaves_the_models_alone():
    w = normal(3, 50)
    kept = w.copy()
    fused = ws.fuse(w, [1, 1, 2])
    np.testing.assert_allclose(fused, (w[0] + w[1] + 2 * w[2]) / 4, atol=1e-6)
    assert_same_bits(fused, ws.fuse(w, [10, 10, 20]))
    np.testing.assert_array_equal(w, kept)
    with pytest.raises(ArgumentError, match="sum that is not zero"):
        ws.fuse(w, [1, -1, 0])
    with pytest.raises(ShapeError, match=r"weights: expected shape \(3,\)"):
        ws.fuse(w, [1, 1])


def test_rescaling_restores_the_norm_that_averaging_loses():
    w = normal(4, 10_000)
    plain = np.linalg.norm(ws.fuse(w))
    assert plain < 0.6 * np.linalg.norm(w[0])
    restored = ws.fuse(w, rescale="norm")
    assert np.linalg.norm(restored) == pytest.approx(np.linalg.norm(w, axis=1).mean(), rel=1e-5)
    assert not ws.fuse(np.zeros((2, 3)), rescale="norm").any()
    with pytest.raises(ArgumentError, match="rescale"):
        ws.fuse(w, rescale="l2")


def test_rescaling_keeps_the_direction_that_negative_weights_give():
    w = [np.array([1.0, 0.0]), np.array([0.0, 5.0])]
    plain, scaled = ws.fuse(w, [2, -1]), ws.fuse(w, [2, -1], rescale="norm")
    np.testing.assert_allclose(scaled / np.linalg.norm(scaled), plain / np.linalg.norm(plain))
    with pytest.raises(ArgumentError, match="not finite"):
        ws.fuse([np.array([np.inf, 1.0]), np.ones(2)], rescale="norm")


def test_coefficients_beyond_float32_are_refused_where_sums_are_float32():
    with pytest.raises(ArgumentError, match="within float32"):
        ws.mix(np.array([[0.0, 1.0]], np.float32), [1e39])
    assert ws.mix(np.array([[0.0, 1.0]]), [1e39])[1] == 1e39


def test_misaligned_inputs_are_copied_and_misaligned_outputs_refused():
    raw = np.zeros(4 * 8 + 1, np.uint8)
    odd = np.ndarray((8,), np.float32, raw, 1)
    odd[:] = normal(8)
    np.testing.assert_array_equal(ws.mix([odd, odd], [1.0, 0.0]), odd)
    with pytest.raises(ArgumentError, match="aligned"):
        ws.mix([normal(8)], [1.0], out=odd)


def test_models_without_tensors_still_give_one_result_for_each_row():
    assert ws.mix([{}, {}], np.eye(2)) == [{}, {}]


def test_transfer_changes_a_copy_of_the_target_only():
    source, target = {"w": normal(5)}, {"w": normal(5, seed=1)}
    kept = target["w"].copy()
    moved = ws.transfer(source, target, 0.25)
    np.testing.assert_allclose(moved["w"], 0.75 * kept + 0.25 * source["w"], atol=1e-7)
    np.testing.assert_array_equal(target["w"], kept)
    assert_same_bits(ws.transfer(source, target, 0)["w"], kept)
    assert_same_bits(ws.transfer(source, target, 1)["w"], source["w"])


@given(w=hnp.arrays(np.float32, (2, 17), elements=finite), gamma=st.floats(-3, 3))
def test_a_source_equal_to_its_base_transfers_nothing(w, gamma):
    source, target = w
    assert_same_bits(ws.transfer(source, target, gamma, base=source), target)


def test_transfer_checks_its_models():
    with pytest.raises(ShapeError, match="expected shape"):
        ws.transfer(np.ones(2), np.ones(3), 0.5)
    with pytest.raises(ArgumentTypeError, match="base: expected an array"):
        ws.transfer(np.ones(2), np.ones(2), 0.5, base={"a": np.ones(2)})
    with pytest.raises(NamesError, match="base"):
        ws.transfer({"a": np.ones(2)}, {"a": np.ones(2)}, 0.5, base={"b": np.ones(2)})
    with pytest.raises(ArgumentError, match="gamma"):
        ws.transfer(np.ones(2), np.ones(2), np.nan)


def test_torch_tensors_are_read_in_place_and_the_results_are_arrays():
    torch = pytest.importorskip("torch")
    models = [
        {"w": torch.randn(4, 3).to(torch.bfloat16), "b": torch.randn(3, requires_grad=True)}
        for _ in range(2)
    ]
    mixed = ws.mix(models, [0.5, 0.5])
    assert mixed["w"].dtype == ml_dtypes.bfloat16
    expected = ((models[0]["w"].float() + models[1]["w"].float()) / 2).to(torch.bfloat16)
    np.testing.assert_array_equal(mixed["w"].astype(np.float32), expected.float().numpy())
    mean = (models[0]["b"] + models[1]["b"]).detach().numpy() / 2
    np.testing.assert_allclose(mixed["b"], mean, atol=1e-6)
    layer = torch.nn.BatchNorm1d(3)
    assert ws.fuse([layer.state_dict()] * 2)["num_batches_tracked"].dtype == np.int64
    with pytest.raises(ArgumentTypeError, match="CPU memory"):
        ws.mix([torch.ones(2, device="meta")], [1.0])


def test_tensors_that_numpy_cannot_hold_are_refused_by_name():
    torch = pytest.importorskip("torch")
    with pytest.raises(ElementError, match=r"models\[0\]: .*float8"):
        ws.mix([torch.ones(2).to(torch.float8_e4m3fn)], [1.0])
    with pytest.raises(ArgumentTypeError, match="dense"):
        ws.mix([torch.eye(2).to_sparse()], [1.0])
    weights = torch.ones(1, requires_grad=True)
    np.testing.assert_array_equal(ws.mix([torch.nn.Parameter(torch.ones(2))], weights), 1.0)

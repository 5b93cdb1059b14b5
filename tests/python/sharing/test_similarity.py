"""ws.similarity and ws.distance: sentences about how alike models are."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import weightshare as ws
from weightshare.errors import ArgumentError, ElementError, ShapeError

METRICS = ["cosine", "row_cosine", "sign", "procrustes", "cka"]


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def cosine(x, y):
    x, y = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def pairwise(models, measure):
    return np.array([[measure(x, y) for y in models] for x in models])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_cosine_is_that_of_float64(dtype, threads):
    w = normal(9, 300, 7, dtype=dtype)
    np.testing.assert_allclose(ws.similarity(w, threads=threads), pairwise(w, cosine), atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@given(
    w=hnp.arrays(
        np.float32,
        (3, 4, 6),
        elements=st.floats(-8, 8, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
    )
)
def test_every_metric_is_symmetric_bounded_and_one_on_the_diagonal_or_zero(metric, w):
    s = ws.similarity(w, metric)
    assert s.dtype == np.float64
    assert s.shape == (3, 3)
    np.testing.assert_allclose(s, s.T, atol=1e-12)
    assert np.isfinite(s).all()
    assert (np.abs(s) <= 1 + 1e-9).all()
    if metric != "row_cosine":
        assert set(np.diagonal(s)) <= {0.0, 1.0}


@pytest.mark.parametrize("metric", METRICS)
def test_a_model_of_zeros_has_similarity_zero_with_all_and_no_nan(metric):
    w = normal(3, 5, 6)
    w[1] = 0
    s = ws.similarity(w, metric)
    np.testing.assert_array_equal(s[1], 0)
    np.testing.assert_array_equal(s[:, 1], 0)
    assert s[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("metric", ["cosine", "cka", "procrustes", "sign", "row_cosine"])
def test_a_positive_scale_changes_nothing(metric):
    w = normal(2, 6, 8)
    w[1] += w[0]
    scaled = w * np.float32([4.0, 0.5])[:, None, None]
    np.testing.assert_allclose(ws.similarity(scaled, metric), ws.similarity(w, metric), atol=1e-12)


def test_row_cosine_is_the_mean_over_rows():
    w = normal(2, 50, 7, dtype=np.float64)
    expected = np.mean([cosine(x, y) for x, y in zip(w[0], w[1], strict=True)])
    assert ws.similarity(w, "row_cosine")[0, 1] == pytest.approx(expected, abs=1e-12)
    one = normal(2, 30, dtype=np.float64)
    assert ws.similarity(one, "row_cosine")[0, 1] == pytest.approx(cosine(*one), abs=1e-12)


def test_sign_is_the_share_of_equal_signs_where_neither_is_zero():
    w = np.array([[1.0, -1.0, 0.0, 2.0], [3.0, 1.0, 5.0, 0.0]])
    assert ws.similarity(w, "sign")[0, 1] == 0.5


def test_cka_is_the_definition_with_centred_samples():
    w = normal(2, 6, 40, dtype=np.float64)
    x, y = (m.T - m.T.mean(axis=0) for m in w)
    norm = np.linalg.norm
    expected = norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    assert ws.similarity(w, "cka")[0, 1] == pytest.approx(expected, abs=1e-12)
    tall = normal(2, 40, 6, dtype=np.float64)
    x, y = (m.T - m.T.mean(axis=0) for m in tall)
    expected = norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    assert ws.similarity(tall, "cka")[0, 1] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", ["cka", "procrustes"])
def test_a_permutation_or_rotation_of_the_units_is_not_seen(metric):
    w = normal(6, 9, dtype=np.float64)
    rotation = np.linalg.qr(normal(6, 6, dtype=np.float64, seed=1))[0]
    for other in (w[::-1], rotation @ w):
        assert ws.similarity([w, np.ascontiguousarray(other)], metric)[0, 1] == pytest.approx(1)
    assert ws.similarity([w, rotation @ w])[0, 1] < 0.9


def test_the_base_is_subtracted_first():
    base = normal(100) * 10
    w = base + normal(2, 100, seed=1)
    assert ws.similarity(w)[0, 1] > 0.9
    expected = cosine(w[0].astype(float) - base, w[1].astype(float) - base)
    assert ws.similarity(w, base=base)[0, 1] == pytest.approx(expected, abs=1e-12)
    for metric in ("cka", "sign", "row_cosine", "procrustes"):
        deltas = [m.astype(float).reshape(10, 10) - base.astype(float).reshape(10, 10) for m in w]
        given_base = ws.similarity(w.reshape(2, 10, 10), metric, base=base.reshape(10, 10))
        np.testing.assert_allclose(given_base, ws.similarity(deltas, metric), atol=1e-12)


def test_centring_shows_that_uniform_matrices_are_unrelated():
    """Two unrelated matrices of numbers from 0 to 1 have cosine 0.75; centred, about 0."""
    w = np.random.default_rng(0).random((2, 100, 100))
    assert ws.similarity(w)[0, 1] == pytest.approx(0.75, abs=0.02)
    centred = [m - m.mean() for m in w]
    for metric in METRICS:
        expected = ws.similarity(centred, metric)
        np.testing.assert_allclose(ws.similarity(w, metric, center=True), expected, atol=1e-10)
    assert abs(ws.similarity(w, center=True)[0, 1]) < 0.05


def test_mappings_are_compared_as_one_vector_and_by_tensor():
    models = [
        {"w": normal(4, 5, seed=j), "b": normal(7, dtype=np.float64, seed=j + 9), "n": np.int64(j)}
        for j in range(3)
    ]
    flat = [np.concatenate([m["w"].ravel().astype(np.float64), m["b"]]) for m in models]
    np.testing.assert_allclose(ws.similarity(models), pairwise(flat, cosine), atol=1e-12)
    by_name = ws.similarity(models, level="tensor")
    assert list(by_name) == ["w", "b"]
    np.testing.assert_allclose(by_name["b"], pairwise([m["b"] for m in models], cosine), atol=1e-12)
    assert list(ws.similarity(models, "cka", level="tensor")) == ["w"]


def test_distance_is_the_norm_of_the_difference_and_does_not_cancel():
    w = np.full((2, 1000), 1e4)
    w[1, 0] += 1e-7
    assert ws.distance(w)[0, 1] == w[1, 0] - w[0, 0]
    assert ws.distance(w)[0, 0] == 0.0
    pair = normal(2, 100)
    expected = np.linalg.norm(pair[0].astype(float) - pair[1])
    assert ws.distance(pair)[0, 1] == pytest.approx(expected, rel=1e-12)
    relative = ws.distance(pair, "relative")
    assert relative[1, 0] == pytest.approx(
        expected / np.linalg.norm(pair[1].astype(float)), rel=1e-12
    )


def test_relative_distance_from_a_model_of_zeros_is_infinite_and_between_two_zero():
    s = ws.distance(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]), "relative")
    np.testing.assert_array_equal(s, [[0, np.inf, 0], [1, 0, 1], [0, np.inf, 0]])


@pytest.mark.parametrize("metric", METRICS)
def test_threads_change_no_bit(metric):
    w = np.resize(normal(3, 100_003), (3, 400, 1000))
    one = (
        ws.similarity(w[:, :20], metric, threads=1)
        if metric in METRICS[3:]
        else ws.similarity(w, metric, threads=1)
    )
    two = (
        ws.similarity(w[:, :20], metric, threads=2)
        if metric in METRICS[3:]
        else ws.similarity(w, metric, threads=2)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("metric", ["cosine", "row_cosine", "cka", "procrustes"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_models_that_are_not_finite_are_named(metric, bad):
    w = normal(3, 4, 5)
    w[2, 1, 1] = bad
    with pytest.raises(ArgumentError, match=r"models\[2\]: expected finite"):
        ws.similarity(w, metric)
    with pytest.raises(ArgumentError, match=r"models\[2\]: expected finite"):
        ws.distance(w)


def test_words_that_are_not_known_are_refused_with_the_known_ones():
    w = normal(2, 3)
    with pytest.raises(ArgumentError, match=r"metric: expected one of cosine.*'cosin'"):
        ws.similarity(w, "cosin")
    with pytest.raises(ArgumentError, match="level"):
        ws.similarity(w, level="layer")
    with pytest.raises(ArgumentError, match="metric: expected one of l2"):
        ws.distance(w, "l1")
    with pytest.raises(ArgumentError, match="2-D"):
        ws.similarity(w, "cka")
    with pytest.raises(ShapeError, match="base"):
        ws.similarity(w, base=np.ones(4, np.float32))


def test_rows_and_tensors_of_zeros_do_not_make_equal_models_differ():
    table = np.eye(10, 4, dtype=np.float32) + 1
    table[0] = 0
    np.testing.assert_allclose(ws.similarity([table, table], "row_cosine"), 1.0)
    model = {"a": normal(3, 4), "b": np.zeros((3, 4), np.float32)}
    for metric in ("cka", "procrustes"):
        np.testing.assert_allclose(ws.similarity([model, model], metric), 1.0)


def test_what_rounding_leaves_of_centred_constants_is_no_similarity():
    constants = [np.full(3, 0.1), np.full(3, 0.3), np.full(3, 0.7)]
    for metric in ("cosine", "row_cosine"):
        np.testing.assert_array_equal(ws.similarity(constants, metric, center=True), 0.0)
    rows = [np.full((4, 6), 0.1) * np.arange(1, 5)[:, None], np.full((4, 6), 0.7)]
    for metric in ("cka", "procrustes"):
        np.testing.assert_array_equal(ws.similarity(rows, metric), 0.0)


def test_procrustes_of_tall_matrices_is_that_of_the_definition():
    w = normal(2, 40, 6, dtype=np.float64)
    x, y = (m - m.mean(axis=1, keepdims=True) for m in w)
    nuclear = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = nuclear / (np.linalg.norm(x) * np.linalg.norm(y))
    assert ws.similarity(w, "procrustes")[0, 1] == pytest.approx(expected, abs=1e-12)


def test_a_base_that_is_not_finite_and_distances_that_overflow_are_named():
    with pytest.raises(ArgumentError, match="base: expected finite"):
        ws.similarity(np.ones((2, 2)), base=np.array([np.nan, 1.0]))
    with pytest.raises(ArgumentError, match="overflow"):
        ws.distance([np.array([1e154]), np.array([-1e154])])
    with pytest.raises(ElementError, match="expected float16"):
        ws.similarity([{"w": np.ones(2, np.longdouble), "b": np.ones(2)}] * 2)

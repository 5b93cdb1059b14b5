"""Angles and norms: ends, symmetry, scale, and vectors that have no direction."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import spherical
import weightshare as ws
from tiling import fixed_array
from weightshare._core import elementary
from weightshare.errors import ArgumentError

VECTORS = arrays.arrays(np.float64, (3, 11), elements=st.floats(-100, 100, width=32))
FUNCTIONS = [
    ("exp", np.linspace(-745, 709, 40_001)),
    ("log", np.concatenate([np.linspace(1e-3, 4, 20_001), np.logspace(-308, 308, 20_001)])),
    ("sin", np.concatenate([np.linspace(-10, 10, 20_001), np.logspace(0, 300, 20_001)])),
    ("cos", np.concatenate([np.linspace(-10, 10, 20_001), np.logspace(0, 300, 20_001)])),
    ("acos", np.concatenate([np.linspace(-1, 1, 20_001), 1 - np.logspace(-16, -1, 10_001)])),
]


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider here")
@pytest.mark.parametrize(("name", "points"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_elementary_functions_are_within_two_units(name: str, points: np.ndarray) -> None:
    """Against long double, over the whole range of arguments."""
    function = {"acos": np.arccos}.get(name) or getattr(np, name)
    exact = function(points.astype(np.longdouble))
    found = np.array([getattr(elementary, name)(x) for x in points.tolist()])
    sound = np.abs(exact) >= np.finfo(np.float64).tiny
    unit = np.spacing(np.abs(exact.astype(np.float64)))
    error = np.abs(found.astype(np.longdouble) - exact) / unit
    assert np.all(error[sound] < 2)
    if name in ("exp", "log"):
        whole = points.copy()
        getattr(elementary, f"{name}_in_place")(whole)
        assert whole.tobytes() == found.tobytes()


@given(VECTORS, st.sampled_from([0.0, 1.0]))
def test_slerp_and_nuslerp_end_at_their_models(vectors: np.ndarray, t: float) -> None:
    """t = 0 is the first and t = 1 the second; the other does not even round it."""
    first, second, _ = vectors
    chosen = second if t else first
    ended = ws.merge([second], method="slerp", base=first, t=t)
    np.testing.assert_array_equal(ended, chosen)
    for flatten in (True, False):
        found = ws.merge([first, second], [1 - t, t], method="nuslerp", nuslerp_flatten=flatten)
        np.testing.assert_array_equal(found, chosen)


@given(VECTORS, st.integers(-8, 8))
def test_scaling_every_model_scales_the_result(vectors: np.ndarray, power: int) -> None:
    """By a power of two, which is exact, where no threshold on lengths comes between."""
    scale = 2.0**power
    lengths = np.linalg.norm(vectors, axis=1) * min(scale, 1)
    if np.any((lengths > 0) & (lengths < 1)):
        return
    first, second, third = vectors
    for method, models, base, values in (
        ("slerp", [second], first, {"t": 0.3}),
        ("nuslerp", [first, second], None, {}),
        ("karcher", [first, second, third], None, {}),
    ):
        plain = ws.merge(models, method=method, base=base, **values)
        bases = None if base is None else scale * base
        scaled = ws.merge([scale * model for model in models], method=method, base=bases, **values)
        np.testing.assert_array_equal(scaled, scale * plain)


@given(VECTORS, st.permutations(range(3)))
def test_the_order_of_the_models_does_not_matter(vectors: np.ndarray, order: list[int]) -> None:
    """For the symmetric methods, up to rounding, unless directions cancel."""
    if np.linalg.norm(vectors.sum(axis=0)) < 1 or np.any(np.linalg.norm(vectors, axis=1) < 1):
        return
    base = fixed_array((11,), np.float64, 3)
    for method, start in (("multislerp", None), ("model_stock", base)):
        plain = ws.merge(list(vectors), method=method, base=start)
        turned = ws.merge([vectors[i] for i in order], method=method, base=start)
        np.testing.assert_allclose(turned, plain, rtol=1e-6, atol=1e-6)


@given(arrays.arrays(np.float32, (4, 6), elements=st.floats(-100, 100, width=32)))
def test_equal_models_are_their_own_mean(model: np.ndarray) -> None:
    """To rounding of the coefficients; and bit for bit where deltas are merged."""
    for method, values in (
        ("nuslerp", {}),
        ("nuslerp", {"nuslerp_flatten": False}),
        ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("multislerp", {}),
        ("karcher", {"tol": 0.0}),
        ("swa", {}),
    ):
        found = ws.merge([model, model.copy()], method=method, **values)
        np.testing.assert_allclose(found, model, rtol=1e-6, atol=1e-6)
    for method in ("model_stock", "multislerp", "nuslerp"):
        found = ws.merge([model, model.copy()], method=method, base=model)
        assert found.tobytes() == model.tobytes()
    slerped = ws.merge([model], method="slerp", base=model.copy(), t=0.5)
    np.testing.assert_allclose(slerped, model, rtol=1e-6, atol=1e-6)


def test_karcher_of_two_points_as_slerp_half_way() -> None:
    """Its direction; its length is the mean of the lengths."""
    first, second = fixed_array((40,), np.float64, 1), 3 * fixed_array((40,), np.float64, 2)
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    between = spherical.slerp(first / lengths[0], second / lengths[1], 0.5)
    found = ws.merge([first, second], method="karcher", max_iter=50, tol=1e-14)
    np.testing.assert_allclose(found, np.mean(lengths) * between, rtol=1e-10, atol=1e-12)


def test_karcher_takes_an_unlisted_base_in() -> None:
    """As one more model, the last."""
    models = [fixed_array((40,), np.float32, k) for k in range(3)]
    found = ws.merge(models[:2], method="karcher", base=models[2])
    assert found.tobytes() == ws.merge(models, method="karcher").tobytes()


def test_model_stock_with_orthogonal_deltas_stays_at_the_base() -> None:
    """Nothing that the deltas share, no step; with equal deltas the whole step."""
    base = fixed_array((2, 8), np.float64, 1)
    first, second = base.copy(), base.copy()
    first[:, :4] += 0.5
    second[:, 4:] += 0.5
    for by_row in (False, True):
        stayed = ws.merge([first, second], method="model_stock", base=base, filter_wise=by_row)
        np.testing.assert_array_equal(stayed, base)
        moved = ws.merge([first, first], method="model_stock", base=base, filter_wise=by_row)
        np.testing.assert_allclose(moved, first, rtol=1e-14)


def test_opposite_deltas_leave_model_stock_at_the_base() -> None:
    """Where the ratio has its pole, mergekit's formula divides by zero."""
    base = np.zeros(6)
    delta = fixed_array((6,), np.float64, 1)
    np.testing.assert_array_equal(ws.merge([delta, -delta], method="model_stock", base=base), base)


ZERO, RAMP = np.zeros(6), np.arange(6.0)


@pytest.mark.parametrize(
    ("method", "models", "base", "values", "expected"),
    [
        ("slerp", [RAMP], ZERO, {"t": 0.5}, math.sqrt(0.5) * RAMP),
        ("slerp", [-RAMP], RAMP, {"t": 0.25}, 0.5 * RAMP),
        ("slerp", [ZERO], ZERO, {"t": 0.5}, ZERO),
        ("nuslerp", [ZERO, RAMP], None, {}, math.sqrt(0.5) * RAMP),
        ("nuslerp", [RAMP, -RAMP], None, {}, ZERO),
        ("multislerp", [RAMP, -RAMP, ZERO], None, {}, ZERO),
        ("multislerp", [ZERO, ZERO, ZERO], None, {"eps": 0.0}, ZERO),
        ("karcher", [ZERO, ZERO], None, {}, ZERO),
        ("karcher", [RAMP, ZERO], None, {}, 0.5 * RAMP),
        ("karcher", [RAMP, -RAMP], None, {}, RAMP),
        ("karcher", [RAMP], None, {}, RAMP),
        ("model_stock", [ZERO, ZERO], ZERO, {}, ZERO),
    ],
)
def test_vectors_without_a_direction_have_a_defined_result(
    method: str, models: list[np.ndarray], base: Any, values: dict[str, Any], expected: Any
) -> None:
    """Zero and opposite vectors: what the documentation says, and no NaN."""
    found = ws.merge(models, method=method, base=base, **values)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("times", [-1.0, -0.87, -1.978, -2.566, -0.3])
def test_vectors_that_are_opposite_but_for_rounding_are_averaged(times: float, dtype: Any) -> None:
    """A cosine of -1 + 1e-16 is no angle: dividing by its sine gave 1e7 times the weights."""
    for size in (2, 30, 211, 70_000):
        first = fixed_array((1, size), np.float64, size).astype(dtype)
        second = (first * times).astype(dtype)
        mean = 0.5 * first.astype(np.float64) + 0.5 * second
        for method, values in (
            ("nuslerp", {}),
            ("nuslerp", {"nuslerp_flatten": False}),
            ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
            ("multislerp", {}),
        ):
            found = ws.merge([first, second], [0.5, 0.5], method=method, **values)
            np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_spreads_and_never_crashes(bad: float) -> None:
    """A tensor whose norm is not finite gives NaN; by rows, the row alone."""
    spoiled, sound = fixed_array((4, 5), np.float64, 1), fixed_array((4, 5), np.float64, 2)
    spoiled[1, 2] = bad
    spoiled[1, 3] = -bad
    for method, models, base, values in (
        ("slerp", [spoiled], sound, {"t": 0.5}),
        ("nuslerp", [spoiled, sound], None, {}),
        ("multislerp", [spoiled, sound], None, {}),
        ("karcher", [spoiled, sound], None, {}),
        ("model_stock", [spoiled, sound * 2], sound, {}),
    ):
        assert np.all(np.isnan(ws.merge(models, method=method, base=base, **values)))
    by_row = ws.merge([spoiled, sound], method="nuslerp", nuslerp_flatten=False)
    np.testing.assert_array_equal(np.isnan(by_row).all(axis=1), [False, True, False, False])
    by_column = ws.merge(
        [spoiled, sound], method="nuslerp", nuslerp_flatten=False, nuslerp_row_wise=True
    )
    assert np.isnan(by_column).all(axis=0).tolist() == [False, False, True, True, False]
    assert np.isfinite(by_column[:, :2]).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_nearly_equal_models_keep_their_angle(dtype: Any) -> None:
    """A hundred thousand elements that differ in one: between the two, not beyond."""
    first = fixed_array((100_000,), dtype, 1)
    second = first.copy()
    second[7] = dtype(-1)
    found = ws.merge([first, second], method="nuslerp").astype(np.float64)
    low, high = (np.minimum, np.maximum)
    wide = [array.astype(np.float64) for array in (first, second)]
    slack = 1e-3 * np.abs(wide[0]) + 1e-6
    assert np.all(found >= low(*wide) - slack)
    assert np.all(found <= high(*wide) + slack)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("merges 1, got 2", {"method": "slerp", "base": RAMP, "t": 0.5, "models": [RAMP, RAMP]}),
        ("needs a base", {"method": "slerp", "t": 0.5, "models": [RAMP]}),
        ("t: is missing", {"method": "slerp", "base": RAMP, "models": [RAMP]}),
        ("merges 2, got 3", {"method": "nuslerp", "models": [RAMP] * 3}),
        ("sum to zero", {"method": "multislerp", "models": [RAMP] * 2, "weights": [1, -1]}),
        ("normalize_weights: false", {"method": "multislerp", "models": [RAMP], "weights": [0]}),
        ("at least 0, got -1", {"method": "karcher", "models": [RAMP], "tol": -1}),
        ("whole number, got 1.5", {"method": "karcher", "models": [RAMP], "max_iter": 1.5}),
        ("2 or more, got 1", {"method": "model_stock", "models": [RAMP], "base": RAMP}),
        ("expected True or False", {"method": "model_stock", "filter_wise": 2}),
    ],
)
def test_illegal_arguments_are_told(message: str, arguments: dict[str, Any]) -> None:
    """The argument, what was expected, what came."""
    given = {"models": [RAMP, RAMP], "base": None, **arguments}
    if given["method"] == "model_stock":
        given["base"] = RAMP
    if message.startswith("normalize_weights"):
        given["models"], given["weights"] = [RAMP, RAMP], [0, 0]
    with pytest.raises(ArgumentError) as caught:
        ws.merge(**given)
    assert message in str(caught.value)

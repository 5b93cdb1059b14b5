"""Merge and update: forms of models, and bad input."""

from __future__ import annotations

import numpy as np
import pytest

import weightshare as ws
from least_squares import PlainStep, Problem, ring
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)

MEAN_OF_2 = np.full((2, 2), 0.5)


# forms of models


def as_mappings(W, dtype=np.float64):
    return [{"w": row[:2].astype(dtype), "b": np.asarray(row[2], dtype)} for row in W]


def as_array(models):
    return np.array([[*model["w"], model["b"]] for model in models])


@pytest.mark.parametrize("method", ["atc", "dgd", "extra", "tracking"])
def test_mappings_go_the_same_way_as_arrays_and_come_back_as_dicts(method):
    p = Problem()

    def gradient(models):
        return tuple(as_mappings(p.gradient(as_array(models))))

    how = {"step": 0.1, "method": method, "tol": 0, "max_iter": 8}
    expected = ws.merge_and_update(p.start, p.gradient, ring(6), **how)
    fit = ws.merge_and_update(as_mappings(p.start), gradient, ring(6), **how)
    assert isinstance(fit.weights, list)
    assert [(set(m), m["w"].shape, m["b"].shape) for m in fit.weights] == [
        ({"w", "b"}, (2,), ())
    ] * 6
    np.testing.assert_allclose(as_array(fit.weights), expected.weights, atol=1e-13)
    np.testing.assert_allclose(fit.history["consensus"], expected.history["consensus"])


def test_a_step_object_steps_on_mappings_too():
    p = Problem()

    def gradient(models):
        return 0.0, as_mappings(p.gradient(as_array(models)))

    how = {"tol": 0, "max_iter": 4}
    fit = ws.merge_and_update(as_mappings(p.start), gradient, ring(6), step=PlainStep([0.1]), **how)
    expected = ws.merge_and_update(p.start, p.gradient, ring(6), step=0.1, **how)
    np.testing.assert_allclose(as_array(fit.weights), expected.weights, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("method", ["atc", "dgd", "extra", "tracking"])
def test_weights_come_back_in_the_type_in_which_they_were_given(dtype, method):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    p, seen = Problem(), set()

    def gradient(W):
        seen.add(W.dtype)
        return p.gradient(W)

    W = p.start.astype(kind)
    fit = ws.merge_and_update(W, gradient, ring(6), step=0.1, method=method, max_iter=20, tol=0)
    assert fit.weights.dtype == kind.newbyteorder("=")
    assert seen == {np.dtype("f8") if dtype == "float64" else np.dtype("f4")}
    start = W.astype(np.float64)
    expected = ws.merge_and_update(
        start, p.gradient, ring(6), step=0.1, method=method, max_iter=20, tol=0
    )
    loose = 0.03 if kind.itemsize == 2 else 1e-4
    np.testing.assert_allclose(fit.weights.astype(float), expected.weights, atol=loose)


def test_float32_weights_converge_at_the_default_tolerance():
    p = Problem()
    start = p.start.astype(np.float32)
    fit = ws.merge_and_update(start, p.gradient, np.full((6, 6), 1 / 6), step=0.2)
    assert fit.converged
    np.testing.assert_allclose(fit.weights, np.tile(p.pooled(), (6, 1)), atol=1e-5)


def test_each_name_of_a_mapping_keeps_its_own_type():
    start = [{"a": np.ones(2, np.float32), "b": np.ones(3)} for _ in range(2)]
    fit = ws.merge_and_update(start, lambda W: W, MEAN_OF_2, step=0.5, max_iter=3)
    assert {name: a.dtype.name for name, a in fit.weights[0].items()} == {
        "a": "float32",
        "b": "float64",
    }


@pytest.mark.parametrize("method", ["atc", "dgd", "extra", "tracking"])
def test_the_start_is_never_modified_and_a_gradient_may_be_the_weights_or_one_reused_buffer(method):
    start = np.arange(6.0).reshape(2, 3)
    reused = np.empty((2, 3))

    def into_buffer(W):
        np.copyto(reused, W)
        return reused

    how = {"step": 0.3, "method": method, "tol": 0, "max_iter": 6}
    aliased = ws.merge_and_update(start, lambda W: W, MEAN_OF_2, **how)
    buffered = ws.merge_and_update(start, into_buffer, MEAN_OF_2, **how)
    fresh = ws.merge_and_update(start, lambda W: W.copy(), MEAN_OF_2, **how)
    np.testing.assert_array_equal(start, np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(aliased.weights, fresh.weights)
    np.testing.assert_array_equal(buffered.weights, fresh.weights)


def test_the_gradient_sees_weights_that_it_cannot_change():
    def meddle(W):
        W[0] = 0.0

    with pytest.raises(ValueError, match="read-only"):
        ws.merge_and_update(np.ones(2), meddle, MEAN_OF_2, step=0.1)


def test_strided_and_read_only_starts_give_the_bits_of_a_plain_one():
    p = Problem()
    wide = np.repeat(p.start, 2, axis=1)[:, ::2]
    wide.flags.writeable = False
    how = {"step": 0.1, "max_iter": 5}
    plain = ws.merge_and_update(p.start, p.gradient, ring(6), **how)
    for start in (wide, np.asfortranarray(p.start), p.start.tolist()):
        fit = ws.merge_and_update(start, p.gradient, ring(6), **how)
        np.testing.assert_array_equal(fit.weights, plain.weights)


def test_large_models_are_handled_in_blocks_with_the_same_result():
    rng = np.random.default_rng(1)
    start, target = rng.standard_normal((2, 2, 100_001))
    fit = ws.merge_and_update(start, lambda W: W - target, MEAN_OF_2, step=0.5, tol=1e-9)
    np.testing.assert_allclose(fit.weights, np.tile(target.mean(axis=0), (2, 1)), atol=1e-6)
    assert fit.history["consensus"][-1] < 1e-12


# bad input


def zeros(W):
    return np.zeros_like(W)


GOOD = {"W": np.ones((2, 3)), "gradient": zeros, "A": MEAN_OF_2, "step": 0.1}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gradient": 3}, ArgumentTypeError, "gradient: expected a callable, got int"),
        ({"callback": 3}, ArgumentTypeError, "callback: expected a callable, got int"),
        ({"method": "sgd"}, ArgumentError, "method: expected one of atc, dgd, .* got 'sgd'"),
        ({"tol": -1.0}, ArgumentError, "tol: .* of at least 0, got -1.0"),
        ({"tol": np.nan}, ArgumentError, "tol: expected a finite number"),
        ({"max_iter": 0}, ArgumentError, "max_iter: .* of at least 1, got 0"),
        ({"max_iter": 2.5}, ArgumentTypeError, "max_iter: expected a whole number, got 2.5"),
        ({"step": 0}, ArgumentError, "step: .* above 0, got 0.0"),
        ({"step": np.inf}, ArgumentError, "step: expected a finite number above 0, got inf"),
        ({"step": "a"}, ArgumentTypeError, "step: expected a number or a step object .* got str"),
        ({"step": True}, ArgumentTypeError, "step: expected a number or a step object"),
        ({"step": PlainStep([np.nan])}, ArgumentError, "step.lr: expected a finite number"),
        (
            {"step": PlainStep([0.1]), "method": "extra"},
            ArgumentTypeError,
            "step: expected a plain number for method 'extra', .* got PlainStep; .* 'atc' or 'dgd'",
        ),
        (
            {"step": PlainStep([0.1]), "method": "tracking"},
            ArgumentTypeError,
            "step: expected a plain number for method 'tracking'",
        ),
        ({"A": np.eye(3)}, ShapeError, r"A: expected shape \(2, 2\) for the 2 .* got \(3, 3\)"),
        ({"A": np.ones((2, 3))}, ShapeError, "A: expected a square matrix"),
        ({"A": np.eye(2) * 1j}, ElementError, "A: expected real numbers"),
        ({"A": [[np.nan, 1], [0, 1]]}, ArgumentError, "A: expected finite numbers"),
        ({"A": np.ones((2, 2))}, ArgumentError, "A: expected rows that sum to one, got sums from"),
        (
            {"A": [[0.5, 0.5], [0.2, 0.8]], "method": "extra"},
            ArgumentError,
            r"A: .* method 'extra' can use \(symmetric\)",
        ),
        (
            {"A": [[0.5, 0.5], [0.2, 0.8]], "method": "tracking"},
            ArgumentError,
            r"A: .* method 'tracking' can use \(columns that sum to one\)",
        ),
        ({"W": np.ones((2, 3), int)}, ElementError, "W: expected real floating-point .* int64"),
        ({"W": np.ones((2, 3)) * 1j}, ElementError, "W: .* complex128"),
        ({"W": np.ones((2, 3), object)}, ElementError, "W: .* object"),
        ({"W": np.ones((2, 3), np.longdouble)}, ElementError, "W: expected at most float64"),
        ({"W": np.ones((0, 3))}, ShapeError, r"W: .* at least one number, got shape \(0, 3\)"),
        ({"W": 1.0}, ShapeError, r"W: expected an array \(n, ...\)"),
        ({"W": []}, ShapeError, r"W: expected an array \(n, ...\)"),
        ({"W": [[1.0], [1.0, 2.0]]}, ShapeError, "W: .* ragged"),
        ({"W": [[1.0], [np.nan]]}, ArgumentError, "W: expected finite weights"),
        ({"W": {"a": np.ones(2)}}, ArgumentTypeError, "W: .* got one mapping; put the models"),
        (
            {"W": [{"a": np.ones(2)}, {"b": np.ones(2)}]},
            NamesError,
            r"W\[1\]: expected the names of W\[0\], got \['a'\] missing and \['b'\] unknown",
        ),
        (
            {"W": [{"a": np.ones(2)}, {"a": np.ones(3)}]},
            ShapeError,
            r"W\[1\]\['a'\]: expected shape \(2,\) as W\[0\]\['a'\], got \(3,\)",
        ),
        (
            {"W": [{"a": np.ones(2)}, {"a": np.ones(2, np.float32)}]},
            ElementError,
            r"W\[1\]\['a'\]: expected float64 as in W\[0\], got float32; cast",
        ),
        (
            {"W": [{"a": np.ones(2)}, {"a": np.full(2, np.inf)}]},
            ArgumentError,
            r"W\[1\]\['a'\]: expected finite weights",
        ),
        ({"W": [{1: np.ones(2)}] * 2}, NamesError, r"W\[0\]: expected names that are strings"),
        ({"W": [{}, {}]}, ShapeError, "W: expected at least one number, got empty models"),
    ],
)
def test_every_bad_argument_is_named_with_what_was_expected_and_what_came(change, error, message):
    arguments = {**GOOD, **change}
    positional = [arguments.pop(name) for name in ("W", "gradient", "A")]
    with pytest.raises(error, match=f"^{message}"):
        ws.merge_and_update(*positional, **arguments)


PAIR = [{"a": np.ones(2)}, {"a": np.ones(2)}]


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (PAIR[:1], ShapeError, r"gradient\(W\): expected a sequence of 2 mappings .* 1 entries"),
        (PAIR[0], ShapeError, r"gradient\(W\): expected a sequence of 2 mappings as W, got dict"),
        (None, ShapeError, r"gradient\(W\): expected a sequence .* got NoneType"),
        ([1.0, 2.0], ArgumentTypeError, r"gradient\(W\)\[0\]: expected a mapping"),
        ([{"a": np.ones(2)}, {}], NamesError, r"gradient\(W\)\[1\]: .* \['a'\] missing"),
        (
            [{"a": np.ones(2)}, {"a": np.ones((2, 1))}],
            ShapeError,
            r"gradient\(W\)\[1\]\['a'\]: expected shape \(2,\) as W\[1\]\['a'\], got \(2, 1\)",
        ),
        ([{"a": np.ones(2) * 1j}] * 2, ElementError, r"gradient\(W\)\[0\]\['a'\]: .* complex128"),
    ],
)
def test_a_gradient_of_another_form_than_the_mappings_is_refused(returned, error, message):
    with pytest.raises(error, match=f"^{message}"):
        ws.merge_and_update(PAIR, lambda W: returned, MEAN_OF_2, step=0.1)


def test_a_vector_of_losses_is_refused():
    with pytest.raises(
        ArgumentTypeError, match=r"^gradient: .* total loss as one number, .*\(2,\)"
    ):
        ws.merge_and_update(np.ones((2, 3)), lambda W: (np.ones(2), zeros(W)), MEAN_OF_2, step=0.1)


def test_a_loss_at_some_calls_only_is_refused():
    calls = []

    def sometimes(W):
        calls.append(1)
        return (1.0, zeros(W) + 1) if len(calls) == 1 else zeros(W) + 1

    with pytest.raises(ArgumentError, match=r"^gradient: .* at every call or at none"):
        ws.merge_and_update(np.ones((2, 3)), sometimes, MEAN_OF_2, step=0.1)

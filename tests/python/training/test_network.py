"""Small networks: gradients against finite differences, dtypes, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightshare as ws
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)
from weightshare.training.network import (
    ACTIVATIONS,
    accuracy,
    initial_weights,
    logits,
    loss_and_gradient,
)

SIZES = ([5, 3], [5, 4, 3], [5, 4, 6, 3])


def problem(n=7, n_in=5, classes=3, seed=0, dtype=np.float64):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, n_in)).astype(dtype), draw.integers(0, classes, n)


def reference_logits(model, X, activation):
    functions = {
        "identity": lambda z: z,
        "relu": lambda z: np.maximum(z, 0),
        "tanh": np.tanh,
        "logistic": lambda z: 1 / (1 + np.exp(-z)),
    }
    depth = len(model) // 2
    for k in range(depth):
        X = X @ model[f"layers.{k}.weight"].T + model[f"layers.{k}.bias"]
        if k < depth - 1:
            X = functions[activation](X)
    return X


def reference_loss(model, X, y, activation):
    z = reference_logits(model, X, activation)
    z = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]))


def wide_model(sizes, seed=1, dtype=np.float64):
    """Return weights with biases that are not zero, so that every gradient is tested."""
    draw = np.random.default_rng(seed)
    model = initial_weights(sizes, seed, dtype=dtype)
    return {
        name: array + dtype(0.3) * draw.normal(size=array.shape).astype(dtype)
        for name, array in model.items()
    }


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_logits_and_loss_are_those_of_plain_numpy(sizes, activation):
    model, (X, y) = wide_model(sizes), problem()
    np.testing.assert_allclose(
        logits(model, X, activation), reference_logits(model, X, activation), rtol=1e-12, atol=1e-13
    )
    loss, _ = loss_and_gradient(model, X, y, activation)
    assert loss == pytest.approx(reference_loss(model, X, y, activation), rel=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradient_is_that_of_central_differences(sizes, activation):
    model, (X, y) = wide_model(sizes), problem()
    _, gradient = loss_and_gradient(model, X, y, activation)
    h = 1e-6
    for name, array in model.items():
        measured = np.empty_like(array)
        for place in np.ndindex(array.shape):
            ends = []
            for sign in (1.0, -1.0):
                moved = {**model, name: array.copy()}
                moved[name][place] += sign * h
                ends.append(loss_and_gradient(moved, X, y, activation)[0])
            measured[place] = (ends[0] - ends[1]) / (2 * h)
        error = np.linalg.norm(measured - gradient[name]) / np.linalg.norm(measured)
        assert error <= 1e-6, name


@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    n=st.integers(1, 12),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_float32_agrees_with_float64_for_any_sizes(widths, n, activation, seed):
    model = wide_model(widths, seed)
    X, y = problem(n, widths[0], widths[-1], seed)
    single = {name: array.astype(np.float32) for name, array in model.items()}
    loss, gradient = loss_and_gradient(single, X, y, activation)
    # the same rounded numbers in float64, so that a relu at zero falls to the same side
    exact_loss, exact = loss_and_gradient(
        {name: array.astype(np.float64) for name, array in single.items()},
        X.astype(np.float32),
        y,
        activation,
    )
    assert loss == pytest.approx(exact_loss, rel=1e-4, abs=1e-5)
    for name in model:
        assert gradient[name].dtype == np.float32
        np.testing.assert_allclose(gradient[name], exact[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_give_half_precision_gradients_and_float32_scores(dtype):
    model, (X, y) = initial_weights([5, 4, 3], dtype=dtype), problem()
    _, gradient = loss_and_gradient(model, X, y)
    assert {array.dtype for array in gradient.values()} == {np.dtype(dtype)}
    assert logits(model, X).dtype == np.float32


def test_a_gradient_step_lowers_the_loss_and_leaves_the_arguments_alone():
    model, (X, y) = initial_weights([5, 8, 3], dtype=np.float64), problem(40)
    before = {name: array.copy() for name, array in model.items()}
    loss, gradient = loss_and_gradient(model, X, y)
    assert all(np.array_equal(model[name], before[name]) for name in model)
    ws.GD(0.1).step(model, gradient)
    assert loss_and_gradient(model, X, y)[0] < loss


def test_results_do_not_depend_on_where_the_arrays_lie_in_memory():
    def placed(array, offset):
        raw = np.empty(array.nbytes + 128, np.uint8)
        start = -raw.ctypes.data % 64 + offset
        moved = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved

    model, (X, y) = (
        wide_model([64, 20, 10], dtype=np.float32),
        problem(40, 64, 10, dtype=np.float32),
    )
    found = set()
    for offset in (0, 4, 16, 20, 32, 48):
        for other in (0, 4, 16, 32):
            there = {name: placed(array, offset) for name, array in model.items()}
            loss, gradient = loss_and_gradient(there, placed(X, other), y, "tanh")
            found.add((loss, b"".join(array.tobytes() for array in gradient.values())))
    assert len(found) == 1


def test_large_scores_neither_overflow_nor_give_nan():
    model = {"layers.0.weight": np.float32([[1e4], [-1e4]]), "layers.0.bias": np.zeros(2, "f4")}
    loss, gradient = loss_and_gradient(model, [[1.0], [1.0]], [0, 1])
    assert loss == pytest.approx(1e4)
    assert all(np.isfinite(array).all() for array in gradient.values())


def test_inputs_may_be_lists_strided_integer_or_of_another_byte_order():
    model, (X, y) = wide_model([5, 4, 3]), problem()
    whole = (4 * X).round()
    expected = logits(model, whole)
    wide = np.zeros((14, 10))
    wide[::2, ::2] = whole
    for same in (whole.tolist(), whole.astype(int), whole.astype(">f8"), wide[::2, ::2]):
        assert np.array_equal(logits(model, same), expected)
    reordered = {name: np.asfortranarray(array) for name, array in reversed(model.items())}
    assert np.array_equal(logits(reordered, whole), expected)
    assert loss_and_gradient(model, X, y.tolist())[0] == loss_and_gradient(model, X, y)[0]


def test_no_rows_have_no_scores():
    assert logits(initial_weights([5, 4, 3]), np.empty((0, 5))).shape == (0, 3)


def test_accuracy_counts_the_largest_score_and_the_first_of_equal_ones():
    model = {"layers.0.weight": np.eye(2), "layers.0.bias": np.zeros(2)}
    assert accuracy(model, [[2.0, 1.0], [1.0, 2.0], [1.0, 1.0], [0.0, 3.0]], [0, 1, 0, 0]) == 0.75


@pytest.mark.parametrize(("scheme", "bound"), [("glorot", np.sqrt(6 / 1000)), ("he", None)])
def test_initial_weights_have_the_variance_of_their_scheme(scheme, bound):
    weight = initial_weights([600, 400], 3, scheme=scheme)["layers.0.weight"]
    expected = 2 / 1000 if scheme == "glorot" else 2 / 600
    assert abs(float(weight.mean())) < 1e-3
    assert float(weight.var()) == pytest.approx(expected, rel=0.02)
    if bound is not None:
        assert float(np.abs(weight).max()) <= bound


def test_one_seed_gives_one_start_and_another_seed_another():
    first, again, other = (initial_weights([4, 3], seed)["layers.0.weight"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([4],), ArgumentError, "at least two widths"),
        (([4, 0],), ArgumentError, "at least two widths of at least 1"),
        (([4, 2.5],), ArgumentTypeError, "whole numbers, got 2.5"),
        (([4, True],), ArgumentTypeError, "whole numbers"),
        ((4,), ArgumentTypeError, "such as"),
        (([4, 3], -1), ArgumentTypeError, "seed: expected a whole number"),
        (([4, 3], 0.5), ArgumentTypeError, "seed: expected a whole number"),
    ],
)
def test_bad_sizes_and_seeds_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        initial_weights(*arguments)


def test_unknown_scheme_and_dtype_are_refused_with_the_known_ones():
    with pytest.raises(ArgumentError, match="scheme: expected one of glorot, he"):
        initial_weights([4, 3], scheme="xavier")
    for dtype in (np.int8, np.complex64, "nonsense"):
        with pytest.raises(ElementError, match="dtype: expected float16"):
            initial_weights([4, 3], dtype=dtype)


@pytest.mark.parametrize("activation", ["sigmoid", None, 3])
def test_unknown_activation_is_refused_with_the_known_ones(activation):
    with pytest.raises(ArgumentError, match="activation: expected one of identity, relu"):
        logits(initial_weights([5, 3]), problem()[0], activation)


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        ([0, 1, 2], ShapeError, r"y: expected shape \(7,\)"),
        (np.eye(3)[[0, 1, 2, 0, 1, 2, 0]], ShapeError, "not one-hot"),
        ([[0], [1, 2]], ShapeError, "ragged"),
        ([0.0] * 7, ElementError, "whole numbers, got float64"),
        ([True] * 7, ElementError, "whole numbers, got bool"),
        (["0"] * 7, ElementError, "whole numbers"),
        ([0, 1, 2, 3, 0, 1, 2], ArgumentError, "from 0 to 2, got 3"),
        ([0, 1, 2, -1, 0, 1, 2], ArgumentError, "from 0 to 2, got -1"),
        (np.array([0, 1, 2, 2**63, 0, 1, 2], np.uint64), ArgumentError, "got 9223372036854775808"),
    ],
)
def test_bad_labels_are_refused_by_loss_and_by_accuracy(y, error, words):
    model, (X, _) = initial_weights([5, 4, 3]), problem()
    for function in (loss_and_gradient, accuracy):
        with pytest.raises(error, match=words):
            function(model, X, y)


@pytest.mark.parametrize(
    ("X", "error", "words"),
    [
        (np.ones(5), ShapeError, r"X: expected shape \(n, 5\)"),
        (np.ones((2, 4)), ShapeError, r"got \(2, 4\)"),
        (np.ones((2, 8, 8)), ShapeError, "flatten each sample"),
        ([[1.0, np.nan, 0.0, 0.0, 0.0]], ArgumentError, "NaN or infinity in row 0"),
        (np.full((1, 5), 1e300), ArgumentError, "finite float32"),
        (np.ones((1, 5), complex), ElementError, "X"),
        ([["a"] * 5], ElementError, "X"),
    ],
)
def test_bad_inputs_are_refused(X, error, words):
    with pytest.raises(error, match=words):
        logits(initial_weights([5, 4, 3]), X)


def test_a_loss_of_no_rows_is_refused():
    model = initial_weights([5, 3])
    for function in (loss_and_gradient, accuracy):
        with pytest.raises(ShapeError, match="at least 1 row"):
            function(model, np.empty((0, 5)), [])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layers.1.weight": np.ones((3, 9), "f4")}, ShapeError, r"expected shape \(n_out, 4\)"),
        ({"layers.0.weight": np.ones(4, "f4")}, ShapeError, r"\(n_out, n_in\), got \(4,\)"),
        ({"layers.0.bias": np.ones(5, "f4")}, ShapeError, r"expected shape \(4,\)"),
        ({"layers.0.bias": np.ones((4, 1), "f4")}, ShapeError, r"got \(4, 1\)"),
        ({"layers.1.bias": np.ones(3)}, ElementError, "expected float32"),
        ({"layers.0.weight": np.ones((4, 5), int)}, ElementError, "int64"),
        ({"layers.2.weight": np.ones((3, 3), "f4")}, NamesError, "layers.2.weight"),
        ({"head": np.ones(3, "f4")}, NamesError, "head"),
    ],
)
def test_models_whose_arrays_do_not_fit_are_refused(change, error, words):
    model, (X, y) = {**initial_weights([5, 4, 3]), **change}, problem()
    with pytest.raises(error, match=words):
        loss_and_gradient(model, X, y)


@pytest.mark.parametrize("model", [np.ones((3, 5)), None, [1, 2]])
def test_a_model_that_is_no_mapping_is_refused(model):
    with pytest.raises(ArgumentTypeError, match="model: expected a mapping"):
        logits(model, np.ones((1, 5)))


def test_an_empty_model_is_refused():
    with pytest.raises(NamesError, match=r"layers\.0\.weight"):
        logits({}, np.ones((1, 5)))

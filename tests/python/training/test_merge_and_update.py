"""Merge and update: limits known in closed form, stops, forms of models, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightshare as ws
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    DivergedError,
    ElementError,
    NamesError,
    ShapeError,
)

X = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]])
Y = np.array([1.0, 2.0, 3.0])
MEAN_OF_2 = np.full((2, 2), 0.5)


class Problem:
    """n least-squares tasks of d unknowns each, with their closed-form optima."""

    def __init__(self, n: int = 6, d: int = 3, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        inputs = rng.standard_normal((n, 8, d))
        self.H = np.einsum("tij,tik->tjk", inputs, inputs) / 8
        self.b = rng.standard_normal((n, d))
        self.n, self.d = n, d
        self.L = float(np.linalg.eigvalsh(self.H).max())
        self.start = rng.standard_normal((n, d))

    def gradient(self, W: np.ndarray) -> np.ndarray:
        return np.einsum("tij,tj->ti", self.H, W) - self.b

    def loss(self, W: np.ndarray) -> float:
        return float(0.5 * np.einsum("ti,tij,tj", W, self.H, W) - (W * self.b).sum())

    def pooled(self, pi: np.ndarray | None = None) -> np.ndarray:
        pi = np.ones(self.n) if pi is None else pi
        return np.linalg.solve(np.einsum("t,tij->ij", pi, self.H), pi @ self.b)

    def penalised(self, M: np.ndarray) -> np.ndarray:
        """Minimise Σ f_t + ½ tr(Wᵀ M W)."""
        n, d = self.n, self.d
        full = np.kron(M, np.eye(d))
        for t in range(n):
            full[t * d : (t + 1) * d, t * d : (t + 1) * d] += self.H[t]
        return np.linalg.solve(full, self.b.ravel()).reshape(n, d)


def ring(n: int) -> np.ndarray:
    return ws.mixing.circulant([1 / 3, 1 / 3, 1 / 3], n)


def task_similarity(n: int) -> np.ndarray:
    place = np.arange(n)
    return np.exp(-np.abs(place[:, None] - place[None, :]) / 2.0)


def graph_laplacian(S: np.ndarray) -> np.ndarray:
    V = S - np.diag(np.diag(S))
    return np.diag(V.sum(axis=1)) - V


class PlainStep:
    """The least step object: a rate, and a step in place on arrays and mappings."""

    def __init__(self, rates):
        self.rates, self.count = rates, 0

    @property
    def lr(self):
        return self.rates[min(self.count, len(self.rates) - 1)]

    def step(self, params, grads):
        if isinstance(params, dict):
            for name in params:
                params[name] -= self.lr * grads[name]
        else:
            params -= self.lr * grads
        self.count += 1


# the founding example


def seed_gradient(w):
    return 2 * X.T @ (X @ w - Y)


def test_the_founding_example_without_merging_finds_least_squares():
    fit = ws.merge_and_update(
        np.zeros(2), seed_gradient, np.eye(2), step=0.02, tol=0, max_iter=20_000
    )
    np.testing.assert_allclose(fit.weights, [1.0, 0.0], atol=1e-12)


def test_the_founding_example_merged_at_every_step_finds_tied_least_squares():
    fit = ws.merge_and_update(
        np.zeros(2), seed_gradient, MEAN_OF_2, step=0.02, tol=0, max_iter=2000
    )
    total = X.sum(axis=1)
    np.testing.assert_allclose(fit.weights, total @ Y / (total @ total), atol=1e-12)
    np.testing.assert_allclose(fit.weights, 0.4096385542, atol=5e-11)


@pytest.mark.parametrize("method", ["atc", "dgd", "extra", "tracking"])
@pytest.mark.parametrize("with_loss", [False, True])
def test_a_gradient_of_the_wrong_sign_is_an_error_that_says_to_check_the_sign(method, with_loss):
    def uphill(w):
        residual = X @ w - Y
        return (float(residual @ residual), -seed_gradient(w)) if with_loss else -seed_gradient(w)

    with pytest.raises(DivergedError, match="check the sign of the gradient") as caught:
        ws.merge_and_update(np.ones(2), uphill, MEAN_OF_2, step=0.005, method=method)
    assert 0.005 < caught.value.safe_step < 0.025


def test_targets_that_broadcast_against_predictions_are_a_shape_error():
    def broadcast(w):
        return 2 * X.T @ (X @ w - Y)  # (3, 1) against (3,) makes (3, 3)

    with pytest.raises(
        ShapeError,
        match=r"gradient\(W\): expected shape \(2, 1\) as W, got \(2, 3\); .* broadcast",
    ):
        ws.merge_and_update(np.zeros((2, 1)), broadcast, MEAN_OF_2, step=0.02)


# limits


def test_dgd_minimises_the_penalised_objective_of_its_step():
    p, a = Problem(), 0.1
    A = ring(p.n)
    fit = ws.merge_and_update(p.start, p.gradient, A, step=a, method="dgd", tol=1e-14)
    assert fit.converged
    np.testing.assert_allclose(fit.weights, p.penalised((np.eye(p.n) - A) / a), atol=1e-10)


@pytest.mark.parametrize("a", [0.03, 0.1])
def test_the_limit_of_dgd_with_the_laplacian_form_does_not_depend_on_the_step(a):
    p, S, strength = Problem(), task_similarity(6), 0.8
    A = ws.mixing.laplacian(S, a * strength)
    fit = ws.merge_and_update(p.start, p.gradient, A, step=a, method="dgd", tol=1e-14)
    expected = p.penalised(strength * graph_laplacian(S))
    np.testing.assert_allclose(fit.weights, expected, atol=1e-10)


@pytest.mark.parametrize("a", [0.02, 0.2])
@pytest.mark.parametrize("strength", [0.5, 500.0])
def test_the_limit_of_atc_with_the_implicit_laplacian_is_the_penalised_optimum(a, strength):
    p, S = Problem(), task_similarity(6)
    A = ws.mixing.laplacian(S, a * strength, implicit=True)
    fit = ws.merge_and_update(p.start, p.gradient, A, step=a, tol=1e-14)
    expected = p.penalised(strength * graph_laplacian(S))
    np.testing.assert_allclose(fit.weights, expected, atol=1e-10)


def test_one_atc_step_with_the_implicit_laplacian_is_a_proximal_step():
    p, S, a, strength = Problem(), task_similarity(6), 0.1, 2.0
    A = ws.mixing.laplacian(S, a * strength, implicit=True)
    points = []

    def gradient(W):
        points.append(np.array(W))
        return p.gradient(W)

    fit = ws.merge_and_update(p.start, gradient, A, step=a, tol=0, max_iter=1)
    V = points[0] - a * p.gradient(points[0])
    # argmin ½ ‖Z - V‖² + a λ/2 tr(Zᵀ Lap Z) is where this gradient is zero
    slope = fit.weights - V + a * strength * graph_laplacian(S) @ fit.weights
    np.testing.assert_allclose(slope, 0, atol=1e-13)


def test_the_limit_of_atc_with_the_explicit_laplacian_moves_with_the_step():
    p, S = Problem(), task_similarity(6)
    limits = [
        ws.merge_and_update(p.start, p.gradient, ws.mixing.laplacian(S, 0.8 * a), step=a).weights
        for a in (0.05, 0.2)
    ]
    assert np.abs(limits[0] - limits[1]).max() > 1e-3


@pytest.mark.parametrize("method", ["extra", "tracking"])
def test_extra_and_tracking_reach_the_pooled_optimum_with_a_constant_step(method):
    p = Problem()
    fit = ws.merge_and_update(p.start, p.gradient, ring(p.n), step=0.1, method=method, tol=1e-12)
    assert fit.converged
    np.testing.assert_allclose(fit.weights, np.tile(p.pooled(), (p.n, 1)), atol=1e-10)


def test_atc_with_the_mean_returns_the_merged_iterate_which_is_the_pooled_optimum():
    p = Problem()
    fit = ws.merge_and_update(p.start, p.gradient, np.full((6, 6), 1 / 6), step=0.2, tol=1e-15)
    np.testing.assert_allclose(fit.weights, np.tile(p.pooled(), (p.n, 1)), atol=1e-12)
    before_merge = fit.weights - 0.2 * p.gradient(fit.weights)
    assert np.abs(before_merge - p.pooled()).max() > 0.01


def test_a_matrix_with_only_its_rows_summing_to_one_goes_to_the_weighted_optimum():
    p, rng = Problem(), np.random.default_rng(3)
    A = ws.mixing.softmax(rng.standard_normal(6) + 0.1 * rng.standard_normal((6, 6)), 1.0)
    values, vectors = np.linalg.eig(A.T)
    pi = vectors[:, np.argmax(values.real)].real
    weighted = p.pooled(pi / pi.sum() * p.n)
    start = np.tile(weighted, (6, 1))
    errors = []
    for a in (0.02, 0.01):
        fit = ws.merge_and_update(start, p.gradient, A, step=a, tol=1e-10)
        errors.append(np.abs(fit.weights - weighted).max())
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)  # of the order of the step
    assert errors[1] < 0.05 * np.abs(weighted - p.pooled()).max()


def reference(method, p, A, a, count):
    """Run the iterations as they are written in the papers."""
    W, g = p.start, p.gradient
    n = len(A)
    if method == "atc":
        Z = A @ W
        for _ in range(count):
            Z = A @ (Z - a * g(Z))
        return Z
    if method == "dgd":
        for _ in range(count):
            W = A @ W - a * g(W)
        return W
    if method == "extra":
        old, W = W, A @ W - a * g(W)
        for _ in range(count - 1):
            step = a * (g(W) - g(old))
            old, W = W, (np.eye(n) + A) @ W - (np.eye(n) + A) / 2 @ old - step
        return W
    tracker = g(W)
    for _ in range(count):
        new = A @ (W - a * tracker)
        W, tracker = new, A @ (tracker + g(new) - g(W))
    return W


@settings(deadline=None, max_examples=40)
@given(
    method=st.sampled_from(["atc", "dgd", "extra", "tracking"]),
    count=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_every_iterate_is_that_of_the_formula(method, count, seed):
    p = Problem(seed=seed)
    A = ring(p.n)
    fit = ws.merge_and_update(
        p.start, p.gradient, A, step=0.05, method=method, tol=0, max_iter=count
    )
    np.testing.assert_allclose(fit.weights, reference(method, p, A, 0.05, count), atol=1e-12)


@pytest.mark.parametrize("method", ["atc", "dgd"])
def test_a_step_object_gives_the_same_iterates_as_its_rate(method):
    p = Problem()
    by_number, by_object = (
        ws.merge_and_update(
            p.start, p.gradient, ring(6), step=step, method=method, tol=0, max_iter=9
        )
        for step in (0.1, PlainStep([0.1]))
    )
    np.testing.assert_allclose(by_object.weights, by_number.weights, atol=1e-14)
    np.testing.assert_allclose(by_object.history["residual"], by_number.history["residual"])


def test_momentum_makes_the_step_of_the_penalty_longer_and_still_converges():
    p, A = Problem(), ring(6)
    step = ws.SGD(0.02, momentum=0.8)
    fit = ws.merge_and_update(p.start, p.gradient, A, step=step, method="dgd", tol=1e-13)
    assert fit.converged
    np.testing.assert_allclose(fit.weights, p.penalised((np.eye(6) - A) / 0.1), atol=1e-9)


def test_warm_restarts_reach_the_pooled_optimum_too():
    p = Problem()
    step = ws.SGDR(0.2, 5, 2, lr_min=0.01)
    fit = ws.merge_and_update(p.start, p.gradient, np.full((6, 6), 1 / 6), step=step, tol=1e-13)
    np.testing.assert_allclose(fit.weights, np.tile(p.pooled(), (6, 1)), atol=1e-9)
    np.testing.assert_allclose(fit.history["step"][5], 0.2)


# stops and history


def test_it_stops_when_change_and_residual_are_within_tolerance():
    p = Problem()
    fit = ws.merge_and_update(p.start, p.gradient, ring(6), step=0.1, tol=1e-5)
    bound = 1e-5 * (1 + np.linalg.norm(fit.weights))
    assert (fit.converged, fit.reason) == (True, "tolerance")
    assert fit.history["change"][-1] <= bound < fit.history["change"][-2]
    assert fit.iterations == len(fit.history["change"]) < 10_000


def test_no_tolerance_never_stops_even_at_a_fixed_point():
    fit = ws.merge_and_update(
        np.zeros(2), lambda W: np.zeros(2), MEAN_OF_2, step=1.0, tol=0, max_iter=7
    )
    assert (fit.converged, fit.reason, fit.iterations) == (False, "max_iter", 7)


def test_a_true_callback_stops_after_seeing_each_iteration():
    p, seen = Problem(), []

    def callback(state):
        seen.append((state.iteration, state.loss, np.array(state.weights)))
        return state.iteration == 3

    fit = ws.merge_and_update(
        p.start, lambda W: (p.loss(W), p.gradient(W)), ring(6), step=0.1, callback=callback
    )
    assert (fit.converged, fit.reason, fit.iterations) == (False, "callback", 3)
    assert [entry[:2] for entry in seen] == list(enumerate(fit.history["loss"], start=1))
    np.testing.assert_array_equal(seen[-1][2], fit.weights)


@pytest.mark.parametrize("method", ["atc", "dgd", "extra", "tracking"])
def test_history_has_an_entry_of_every_kind_for_every_iteration(method):
    p, points, after = Problem(), [], []

    def gradient(W):
        points.append(np.array(W))
        return p.loss(W), p.gradient(W)

    fit = ws.merge_and_update(
        p.start,
        gradient,
        ring(6),
        step=0.1,
        method=method,
        tol=0,
        max_iter=5,
        callback=lambda state: after.append(np.array(state.weights)),
    )
    assert set(fit.history) == {"step", "change", "residual", "consensus", "loss"}
    assert {len(values) for values in fit.history.values()} == {5}
    assert fit.history["step"] == [0.1] * 5
    assert fit.history["loss"] == [p.loss(W) for W in points]
    changes = [np.linalg.norm(b - a) for a, b in zip(points, after, strict=True)]
    np.testing.assert_allclose(fit.history["change"], changes)
    spreads = [np.linalg.norm(W - W.mean(axis=0)) / np.sqrt(6) for W in after]
    np.testing.assert_allclose(fit.history["consensus"], spreads)


def test_the_residual_of_dgd_is_that_of_its_fixed_point_equation():
    p, a, A = Problem(), 0.1, ring(6)
    fit = ws.merge_and_update(p.start, p.gradient, A, step=a, method="dgd", tol=0, max_iter=1)
    expected = np.linalg.norm((np.eye(6) - A) @ p.start + a * p.gradient(p.start))
    assert fit.history["residual"] == [pytest.approx(expected)]


@pytest.mark.parametrize("method", ["extra", "tracking"])
def test_the_residual_of_the_exact_methods_is_disagreement_and_mean_gradient(method):
    p, points = Problem(), []

    def gradient(W):
        points.append(np.array(W))
        return p.gradient(W)

    fit = ws.merge_and_update(
        p.start, gradient, ring(6), step=0.1, method=method, tol=0, max_iter=4
    )
    pull = 0.1 * np.sqrt(6) * np.linalg.norm(p.gradient(points[-1]).mean(axis=0))
    apart = np.linalg.norm(fit.weights - fit.weights.mean(axis=0))
    assert fit.history["residual"][-1] == pytest.approx(np.hypot(apart, pull))


def test_there_is_no_loss_in_the_history_when_none_is_given():
    p = Problem()
    fit = ws.merge_and_update(p.start, p.gradient, ring(6), step=0.1, max_iter=2)
    assert "loss" not in fit.history


def test_a_rate_annealed_to_almost_nothing_is_not_taken_for_convergence():
    p = Problem()
    rates = PlainStep([0.1, 1e-12, 1e-12, 1e-12, 0.1])
    fit = ws.merge_and_update(p.start, p.gradient, np.eye(6), step=rates, tol=1e-6, max_iter=5)
    assert fit.reason == "max_iter"


def test_merging_models_that_are_each_at_their_optimum_is_not_taken_for_divergence():
    targets = np.arange(6.0)[:, None]

    def gradient(W):
        return float(((W - targets) ** 2).sum()), 2 * (W - targets)

    fit = ws.merge_and_update(targets, gradient, ring(6), step=0.01, method="dgd")
    assert fit.converged
    assert fit.history["loss"][-1] > fit.history["loss"][0] == 0


def test_a_fit_is_short_in_text_and_in_html():
    p = Problem()
    fit = ws.merge_and_update(p.start, p.gradient, ring(6), step=0.1, max_iter=2)
    assert repr(fit).startswith("SharedFit(models: 6, converged: no, reason: max_iter, iterations")
    assert "<th>reason</th><td>max_iter</td>" in fit._repr_html_()
    with pytest.raises(AttributeError, match="cannot assign"):
        fit.reason = "other"


# divergence


@pytest.mark.parametrize("method", ["atc", "dgd", "extra", "tracking"])
def test_too_large_a_step_is_an_error_that_gives_the_safe_one(method):
    p, A = Problem(), ring(6)
    with pytest.raises(DivergedError, match="use a step below") as caught:
        ws.merge_and_update(
            p.start, lambda W: (p.loss(W), p.gradient(W)), A, step=30 / p.L, method=method
        )
    least = np.linalg.eigvalsh(A)[0]
    safe = (1 + least if method in ("dgd", "extra") else 2) / p.L
    # differences along the run never exceed the true curvature, and come close to it
    assert safe * (1 - 1e-9) <= caught.value.safe_step < 1.2 * safe
    cautious = caught.value.safe_step * (0.1 if method == "tracking" else 0.8)
    again = ws.merge_and_update(p.start, p.gradient, A, step=cautious, method=method)
    assert again.converged


def test_dgd_diverges_just_above_its_safe_step_and_converges_just_below():
    p, A = Problem(n=6, d=1), ring(6)
    p.H[:] = 2.0  # equal curvature makes the bound sharp
    safe = (1 + np.linalg.eigvalsh(A)[0]) / 2.0
    fit = ws.merge_and_update(p.start, p.gradient, A, step=0.99 * safe, method="dgd")
    assert fit.converged
    with pytest.raises(DivergedError) as caught:
        ws.merge_and_update(
            p.start, p.gradient, A, step=1.05 * safe, method="dgd", max_iter=100_000
        )
    assert caught.value.safe_step == pytest.approx(safe)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda W: np.full_like(W, np.nan), "the gradient is not finite at iteration 0"),
        (lambda W: (np.inf, np.zeros_like(W)), "the loss is inf at iteration 0"),
    ],
)
def test_numbers_that_are_not_finite_are_divergence_with_no_safe_step_known(returned, message):
    with pytest.raises(DivergedError, match=message) as caught:
        ws.merge_and_update(np.ones((2, 3)), returned, MEAN_OF_2, step=0.1)
    assert np.isnan(caught.value.safe_step)


def test_divergence_of_the_callers_own_arithmetic_raises_no_warning_before_the_error():
    with pytest.raises(DivergedError):
        ws.merge_and_update(np.full(2, 10.0), lambda W: -(W**9), MEAN_OF_2, step=1.0)


def test_a_loss_that_grew_too_far_is_an_error_even_when_the_iterations_run_out():
    losses = iter([1.0, 20.0])
    with pytest.raises(DivergedError, match="the loss grew from 1 to 20 at iteration 2"):
        ws.merge_and_update(
            np.ones(2), lambda W: (next(losses), np.ones(2)), MEAN_OF_2, step=0.1, max_iter=2
        )


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

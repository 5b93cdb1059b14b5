"""Merge and update: limits known in closed form, iterates, stops and divergence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightshare as ws
from least_squares import PlainStep, Problem, graph_laplacian, ring, task_similarity
from weightshare.errors import (
    DivergedError,
    ShapeError,
)

X = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]])
Y = np.array([1.0, 2.0, 3.0])
MEAN_OF_2 = np.full((2, 2), 0.5)


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


@pytest.mark.parametrize("lr", [0.5582, 0.5582456140350878])
def test_a_turning_point_of_the_velocity_is_not_taken_for_convergence(lr):
    step = ws.SGD(lr, momentum=0.9)
    start = np.full((2, 1), 2.0)
    fit = ws.merge_and_update(start, lambda W: W - 1, MEAN_OF_2, step=step, tol=1e-2)
    assert fit.converged
    np.testing.assert_allclose(fit.weights, 1.0, atol=0.15)


def test_a_gradient_that_is_a_tuple_of_arrays_is_the_gradient():
    fit = ws.merge_and_update(np.zeros((2, 3)), lambda W: (W[0] - 1, W[1] - 1), MEAN_OF_2, step=0.5)
    np.testing.assert_allclose(fit.weights, 1.0, atol=1e-6)

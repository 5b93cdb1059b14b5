"""The mixing matrices: their laws, their limits, and what they say to bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightshare as ws
from weightshare.errors import ArgumentError


def cosines(n: int, seed: int, size: int = 12, common: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    models = rng.standard_normal((n, size)) + common * rng.standard_normal(size)
    models /= np.linalg.norm(models, axis=1, keepdims=True)
    return models @ models.T


def path_laplacian(S: np.ndarray, power: float = 1.0) -> np.ndarray:
    V = np.maximum(S, 0.0) ** power
    np.fill_diagonal(V, 0.0)
    return np.diag(V.sum(axis=1)) - V


def assert_doubly_stochastic(A: np.ndarray, error: float = 1e-12) -> None:
    assert np.abs(A.sum(axis=0) - 1).max() < error
    assert np.abs(A.sum(axis=1) - 1).max() < error
    assert A.min() >= 0


# pair and softmax


def test_pair_is_the_symmetric_two_by_two_matrix():
    np.testing.assert_array_equal(ws.mixing.pair(0.9), [[0.9, 1 - 0.9], [1 - 0.9, 0.9]])


def test_softmax_rows_are_the_softmax_of_the_similarities():
    S = cosines(5, 0)
    expected = np.exp(S / 0.3) / np.exp(S / 0.3).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ws.mixing.softmax(S, 0.3), expected, rtol=1e-13)


def test_softmax_at_a_tiny_temperature_listens_to_the_most_similar_model_only():
    S = np.array([[0.0, 1.0, 0.5], [0.2, 0.1, 0.9], [0.7, 0.1, 0.0]])
    expected = np.eye(3)[[1, 2, 0]]
    np.testing.assert_array_equal(ws.mixing.softmax(S, 1e-300), expected)


# sinkhorn


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 9),
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.02, 50.0),
)
def test_sinkhorn_of_cosines_is_symmetric_doubly_stochastic_and_positive(n, seed, temperature):
    A = ws.mixing.sinkhorn(cosines(n, seed), temperature=temperature)
    assert_doubly_stochastic(A)
    np.testing.assert_array_equal(A, A.T)
    assert np.linalg.eigvalsh(A)[0] > -1e-12


def test_sinkhorn_is_a_diagonal_scaling_of_the_exponential_of_the_similarity():
    S = cosines(6, 3)
    ratio = ws.mixing.sinkhorn(S, temperature=0.4) / np.exp((S - 1) / 0.4)
    d = np.sqrt(np.diag(ratio))
    np.testing.assert_allclose(ratio, np.outer(d, d), rtol=1e-11)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 9), seed=st.integers(0, 10_000), gap=st.floats(0.01, 0.99))
def test_sinkhorn_reaches_the_gap_that_is_asked_for(n, seed, gap):
    A = ws.mixing.sinkhorn(cosines(n, seed), gap=gap)
    found = 1 - np.abs(np.linalg.eigvalsh(A - 1 / n)).max()
    assert found == pytest.approx(gap, abs=1e-9)
    assert_doubly_stochastic(A)


def test_sinkhorn_reaches_a_gap_of_three_tenths_when_told_nothing():
    assert ws.mixing.diagnose(ws.mixing.sinkhorn(cosines(8, 1))).spectral_gap == pytest.approx(0.3)


def test_sinkhorn_keeps_its_row_error_when_the_temperature_is_far_below_the_similarities():
    S = cosines(8, 4)
    A = ws.mixing.sinkhorn(S, temperature=1e-4)
    assert_doubly_stochastic(A)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.1}, {"gap": 0.9}])
def test_equal_models_give_the_mean_at_every_temperature_and_gap(how):
    S = np.full((4, 4), 1.0 - 1e-16)
    np.testing.assert_array_equal(ws.mixing.sinkhorn(S, **how), np.full((4, 4), 0.25))


def test_a_gap_of_one_is_the_mean():
    np.testing.assert_array_equal(ws.mixing.sinkhorn(cosines(3, 0), gap=1), np.full((3, 3), 1 / 3))


def test_one_model_keeps_itself():
    np.testing.assert_array_equal(ws.mixing.sinkhorn([[1.0]]), [[1.0]])


def test_sinkhorn_ignores_a_constant_added_to_the_similarities():
    S = cosines(5, 6)
    np.testing.assert_allclose(ws.mixing.sinkhorn(S + 7), ws.mixing.sinkhorn(S), atol=1e-9)


def test_a_model_of_zeros_is_left_alone_at_a_low_temperature():
    S = cosines(4, 8)
    S[2] = S[:, 2] = 0.0
    A = ws.mixing.sinkhorn(S, temperature=0.01)
    assert_doubly_stochastic(A)


def chained() -> np.ndarray:
    # the middle model is equal to two that are unlike each other: no temperature parts them
    return np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])


def test_a_gap_that_no_temperature_reaches_gives_the_nearest_with_a_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        A = ws.mixing.sinkhorn(chained(), gap=0.05)
        lowest = ws.mixing.sinkhorn(chained(), temperature=1e-3)
    assert any("expected a gap that some temperature reaches, got 0.05" in str(w.message)
               for w in caught)  # fmt: skip
    assert caught[0].filename == __file__
    assert_doubly_stochastic(A)
    np.testing.assert_allclose(A, lowest, atol=1e-6)


def test_sinkhorn_warns_of_a_negative_least_eigenvalue_instead_of_assuming_it_away():
    with pytest.warns(ws.mixing.MixingWarning, match="least eigenvalue is -0.6"):
        A = ws.mixing.sinkhorn([[0.0, 1.0], [1.0, 0.0]], temperature=1 / np.log(4))
    np.testing.assert_allclose(A, [[0.2, 0.8], [0.8, 0.2]], atol=1e-13)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(3, 7), seed=st.integers(0, 10_000))
def test_sinkhorn_scales_clipped_similarities_and_says_so_exactly_when_indefinite(n, seed):
    S = np.maximum(cosines(n, seed, size=3, common=0.0), 0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        A = ws.mixing.sinkhorn(S, temperature=0.05)
    assert_doubly_stochastic(A)
    assert bool(caught) == (np.linalg.eigvalsh(A)[0] < -1e-9)


# metropolis


def ring_similarity(n: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n
    return np.cos(angle[:, None] - angle[None, :])


@pytest.mark.parametrize("n", [8, 32, 128])
def test_metropolis_on_a_ring_has_the_gap_of_the_formula(n):
    A = ws.mixing.metropolis(ring_similarity(n), 2)
    gap = ws.mixing.diagnose(A).spectral_gap
    assert gap == pytest.approx(2 / 3 * (1 - np.cos(2 * np.pi / n)), rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 12), seed=st.integers(0, 10_000), data=st.data())
def test_metropolis_follows_the_mutual_neighbours_and_their_degrees(n, seed, data):
    S = cosines(n, seed)
    k = data.draw(st.integers(1, n - 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        A = ws.mixing.metropolis(S, k)
    off = S - 10 * np.eye(n)
    rank = (off[:, None, :] > off[:, :, None]).sum(axis=2)
    edges = (rank < k) & (rank < k).T & ~np.eye(n, dtype=bool)
    degree = edges.sum(axis=1)
    expected = np.where(edges, 1 / (1 + np.maximum.outer(degree, degree)), 0)
    np.testing.assert_allclose(A - np.diag(np.diag(A)), expected, atol=1e-15)
    assert_doubly_stochastic(A)
    assert bool(caught) == (not ws.mixing.diagnose(A).connected)


def test_metropolis_warns_that_two_islands_never_agree():
    S = np.kron(np.eye(2), np.ones((2, 2)))
    with pytest.warns(ws.mixing.MixingWarning, match="not connected with neighbours=1"):
        A = ws.mixing.metropolis(S, 1)
    np.testing.assert_array_equal(A, S / 2)


def test_metropolis_breaks_ties_by_the_first_models():
    with pytest.warns(ws.mixing.MixingWarning, match="not connected"):
        A = ws.mixing.metropolis(np.ones((3, 3)), 1)
    np.testing.assert_array_equal(A, [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])


# laplacian


def test_explicit_laplacian_is_the_identity_less_strength_times_the_laplacian():
    S = cosines(5, 2)
    expected = np.eye(5) - 0.1 * path_laplacian(S, 2.0)
    np.testing.assert_allclose(ws.mixing.laplacian(S, 0.1, power=2), expected, atol=1e-15)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 8), seed=st.integers(0, 10_000), strength=st.floats(0.0, 100.0))
def test_implicit_laplacian_is_the_inverse_and_doubly_stochastic(n, seed, strength):
    S = cosines(n, seed)
    A = ws.mixing.laplacian(S, strength, implicit=True)
    inverse = np.linalg.inv(np.eye(n) + strength * path_laplacian(S))
    np.testing.assert_allclose(A, inverse, atol=1e-11)
    np.testing.assert_allclose(A.sum(axis=1), 1, atol=1e-13)
    np.testing.assert_array_equal(A, A.T)


def test_implicit_laplacian_of_immense_strength_pools_each_connected_part():
    S = np.kron(np.eye(2), np.full((3, 3), 0.5))
    A = ws.mixing.laplacian(S, 1e18, implicit=True)
    np.testing.assert_allclose(A, np.kron(np.eye(2), np.full((3, 3), 1 / 3)), atol=1e-13)


def test_negative_similarities_couple_nothing():
    A = ws.mixing.laplacian([[1.0, -0.9], [-0.9, 1.0]], 5.0)
    np.testing.assert_array_equal(A, np.eye(2))


def test_a_laplacian_that_is_too_strong_is_refused_with_the_largest_legal_strength():
    S = np.ones((4, 4))
    with pytest.raises(ArgumentError, match=r"strength: .* = 0.25, got 0.26; .* implicit=True"):
        ws.mixing.laplacian(S, 0.26)
    np.testing.assert_allclose(ws.mixing.laplacian(S, 0.25), np.full((4, 4), 0.25), atol=1e-15)


# projection


def test_projection_with_labels_is_the_mean_inside_clusters_and_a_projection():
    A = ws.mixing.projection(np.eye(5), ["a", "b", "a", "b", "a"])
    models = np.arange(10.0).reshape(5, 2)
    np.testing.assert_allclose((A @ models)[0], models[[0, 2, 4]].mean(axis=0))
    np.testing.assert_allclose(A @ A, A, atol=1e-15)
    np.testing.assert_array_equal(A, A.T)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 12), seed=st.integers(0, 10_000), data=st.data())
def test_projection_with_a_number_makes_that_many_clusters(n, seed, data):
    count = data.draw(st.integers(1, n))
    A = ws.mixing.projection(cosines(n, seed), count)
    assert np.trace(A) == pytest.approx(count)
    np.testing.assert_allclose(A @ A, A, atol=1e-14)
    assert_doubly_stochastic(A)


@pytest.mark.parametrize("seed", range(5))
def test_average_linkage_finds_the_clusters_that_scipy_finds(seed):
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    S = cosines(12, seed)
    condensed = (1 - S)[np.triu_indices(12, 1)]
    labels = hierarchy.fcluster(hierarchy.linkage(condensed, "average"), 4, "maxclust")
    found = ws.mixing.projection(S, 4) > 0
    np.testing.assert_array_equal(found, labels[:, None] == labels[None, :])


def test_equal_similarities_join_the_first_models_first():
    A = ws.mixing.projection(np.ones((4, 4)), 3)
    np.testing.assert_array_equal(A[0], [0.5, 0.5, 0, 0])


# interpolation


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 9), seed=st.integers(0, 10_000), scale=st.floats(1e-150, 1e150))
def test_interpolation_reproduces_every_polynomial_of_lower_degree(n, seed, scale):
    rng = np.random.default_rng(seed)
    nodes = np.cos((2 * rng.permutation(n) + 1) * np.pi / (2 * n))
    targets = rng.uniform(-1.2, 1.2, 6)
    A = ws.mixing.interpolation(scale * nodes, scale * targets)
    polynomial = np.polynomial.Polynomial(rng.standard_normal(n))
    bound = 1e-12 * np.abs(A).sum(axis=1) * max(1, np.abs(polynomial(nodes)).max())
    assert (np.abs(A @ polynomial(nodes) - polynomial(targets)) <= bound).all()
    assert (np.abs(A.sum(axis=1) - 1) <= 1e-14 * n * np.abs(A).sum(axis=1)).all()


def test_interpolation_at_a_node_is_a_unit_row_to_the_last_bit():
    nodes = np.array([0.1, 0.7, 0.3])
    np.testing.assert_array_equal(ws.mixing.interpolation(nodes, nodes[::-1]), np.eye(3)[::-1])


def test_interpolation_next_to_a_node_stays_finite():
    A = ws.mixing.interpolation([0.0, 1.0], [5e-324])
    np.testing.assert_allclose(A, [[1.0, 0.0]], atol=1e-300)


def test_interpolation_between_nodes_has_negative_entries():
    assert ws.mixing.interpolation([0.0, 1.0, 2.0], [0.5]).min() == -0.125


def test_interpolation_far_outside_the_nodes_agrees_with_the_product_formula():
    nodes, t = np.linspace(0, 1, 8), 3.0
    expected = [
        np.prod([(t - nodes[k]) / (nodes[j] - nodes[k]) for k in range(8) if k != j])
        for j in range(8)
    ]
    np.testing.assert_allclose(ws.mixing.interpolation(nodes, [t])[0], expected, rtol=1e-12)


def test_equal_nodes_are_refused_with_their_places():
    with pytest.raises(ArgumentError, match=r"nodes: expected different .* got 1 at 0 and 2"):
        ws.mixing.interpolation([1.0, 2.0, 1.0], [0.0])


def test_nodes_whose_weights_overflow_are_refused():
    with pytest.raises(ArgumentError, match=r"nodes: .* too many or too close"):
        ws.mixing.interpolation(np.concatenate([np.arange(8) * 1e-60, [1.0]]), [0.5])


# regression


@settings(deadline=None, max_examples=40)
@given(d=st.integers(1, 3), degree=st.integers(0, 3), seed=st.integers(0, 10_000))
def test_hat_matrix_is_a_symmetric_projection_onto_the_polynomials(d, degree, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(5.0, 9.0, (25, d))
    A = ws.mixing.regression(x, degree)
    powers = [p for p in np.ndindex(*(degree + 1,) * d) if sum(p) <= degree]
    values = np.column_stack([np.prod((x - 7) ** p, axis=1) for p in powers])
    np.testing.assert_allclose(A @ values, values, atol=1e-9)
    np.testing.assert_allclose(A @ A, A, atol=1e-12)
    np.testing.assert_array_equal(A, A.T)
    assert np.trace(A) == pytest.approx(len(powers))


def test_regression_of_degree_zero_is_the_mean():
    np.testing.assert_allclose(ws.mixing.regression(np.arange(4.0), 0), np.full((4, 4), 0.25))


def test_ridge_leaves_the_constant_alone_and_solves_the_penalised_problem():
    rng = np.random.default_rng(5)
    x, y, ridge = rng.uniform(-3, 8, 12), rng.standard_normal(12), 0.7
    scaled = (x - (x.max() + x.min()) / 2) / (np.ptp(x) / 2)
    V = np.vander(scaled, 4, increasing=True)
    b = np.linalg.solve(V.T @ V + ridge * np.diag([0, 1, 1, 1]), V.T @ y)
    A = ws.mixing.regression(x, 3, ridge=ridge)
    np.testing.assert_allclose(A @ y, V @ b, atol=1e-12)
    np.testing.assert_allclose(A.sum(axis=1), 1, atol=1e-14)


def test_regression_stays_exact_where_normal_equations_lose_all_digits():
    x = np.linspace(-1, 1, 60)
    A = ws.mixing.regression(x, 25)
    assert np.linalg.cond(np.vander(x, 26)) ** 2 > 1e16
    np.testing.assert_allclose(A @ x**25, x**25, atol=1e-7)


@pytest.mark.parametrize(
    ("coordinates", "degree", "message"),
    [
        ([0.0, 1.0, 1.0], 2, "coordinates: .* 3 monomials apart, got rank 2"),
        ([[0.0, 3.0], [1.0, 3.0], [2.0, 3.0]], 1, "coordinates: .* got rank 2; .* constant"),
        ([0.0, 1.0], 2, "degree: expected at most 2 monomials for 2 models, got 3"),
    ],
)
def test_coordinates_that_cannot_carry_the_degree_are_refused_and_ridge_takes_them(
    coordinates, degree, message
):
    with pytest.raises(ArgumentError, match=message):
        ws.mixing.regression(coordinates, degree)
    A = ws.mixing.regression(coordinates, degree, ridge=1e-3)
    np.testing.assert_allclose(A.sum(axis=1), 1, atol=1e-14)


def test_a_degree_that_would_fill_the_memory_is_refused():
    with pytest.raises(ArgumentError, match="degree: expected at most 10000"):
        ws.mixing.regression(np.ones((3, 30)), 20, ridge=1.0)


# circulant


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 9), size=st.integers(1, 14), seed=st.integers(0, 10_000))
def test_circulant_mixing_is_circular_correlation_with_the_centred_kernel(n, size, seed):
    rng = np.random.default_rng(seed)
    kernel, models = rng.standard_normal(size), rng.standard_normal(n)
    wrapped = np.zeros(n)
    for k in range(size):
        wrapped[(k - size // 2) % n] += kernel[k]
    expected = np.fft.ifft(np.conj(np.fft.fft(wrapped)) * np.fft.fft(models)).real
    np.testing.assert_allclose(ws.mixing.circulant(kernel, n) @ models, expected, atol=1e-12)


def test_an_uneven_kernel_takes_its_last_entry_from_the_right_neighbour():
    A = ws.mixing.circulant([0.0, 0.7, 0.3], 4)
    assert (A[0, 0], A[0, 1], A[3, 0]) == (0.7, 0.3, 0.3)


@pytest.mark.parametrize("n", [8, 32, 128])
def test_a_ring_of_thirds_has_the_gap_of_the_formula(n):
    gap = ws.mixing.diagnose(ws.mixing.circulant([1 / 3] * 3, n)).spectral_gap
    assert gap == pytest.approx(2 / 3 * (1 - np.cos(2 * np.pi / n)), rel=1e-9)


# diagnose


def test_diagnose_tells_sums_symmetry_gap_least_eigenvalue_and_connection():
    found = ws.mixing.diagnose([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 0.5, 0.5]])
    np.testing.assert_allclose(found.row_sums, 1)
    np.testing.assert_allclose(found.column_sums, [0.75, 1.5, 0.75])
    assert (found.symmetric, found.connected) == (False, True)
    assert found.spectral_gap == pytest.approx(0.5)
    assert found.least_eigenvalue == pytest.approx(0.0, abs=1e-12)


def test_diagnose_needs_a_path_in_both_directions_to_call_a_graph_connected():
    assert not ws.mixing.diagnose([[1.0, 0.0], [0.5, 0.5]]).connected
    assert ws.mixing.diagnose(np.roll(np.eye(3), 1, axis=1)).connected


def test_a_diagnosis_is_short_in_text_and_in_html_and_cannot_be_changed():
    found = ws.mixing.diagnose(ws.mixing.pair(0.75))
    assert repr(found) == (
        "Diagnosis(models: 2, row sums: 1, column sums: 1, symmetric: yes, spectral gap: 0.5, "
        "least eigenvalue: 0.5, connected: yes)"
    )
    assert "<th>spectral gap</th><td>0.5</td>" in found._repr_html_()
    with pytest.raises(ValueError, match="read-only"):
        found.row_sums[0] = 2.0


def test_an_implicit_laplacian_of_immense_strength_keeps_the_mean():
    S = np.kron(np.eye(2), np.ones((2, 2)))
    S[S == 0] = 1e-13
    A = ws.mixing.laplacian(S, 1e15, implicit=True)
    np.testing.assert_allclose(A.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(A, A.T, atol=1e-12)


def test_nodes_at_the_ends_of_float64_interpolate_too():
    np.testing.assert_allclose(ws.mixing.interpolation([-1e308, 1e308], [0.0]), [[0.5, 0.5]])

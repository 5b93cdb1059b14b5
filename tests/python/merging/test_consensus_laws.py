"""Laws that TIES, DARE, breadcrumbs, DELLA and SCE obey, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import consensus as oracle
import weightshare as ws

SPARSE = sorted(oracle.TRIM)
DRAWN = {"dare_linear", "dare_ties", "della", "della_linear"}
ALL = [*SPARSE, "sce"]


def family(shape, n=3, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape, dtype=np.float32)
    return [base + rng.standard_normal(shape, dtype=np.float32) / 8 for _ in range(n)], base


def options(method, density=0.5):
    return {"select_topk": density} if method == "sce" else {"density": density}


@pytest.mark.parametrize("method", ALL)
def test_models_that_equal_the_base_give_the_base_bit_for_bit(method):
    base = np.array([[0.0, -0.0, 1.5], [-2.0, 3e-45, 1e38]], np.float32)
    for density in (0.5, 1.0):
        got = ws.merge([base.copy()] * 3, method=method, base=base, **options(method, density))
        assert got.tobytes() == base.tobytes()


@pytest.mark.parametrize("method", [m for m in ALL if m not in DRAWN])
def test_the_order_of_the_models_does_not_matter_where_nothing_is_drawn(method):
    models, base = family((50, 40), n=2)
    there = ws.merge(models, method=method, base=base, **options(method))
    back = ws.merge(models[::-1], method=method, base=base, **options(method))
    assert there.tobytes() == back.tobytes()  # a sum of two is the same in either order


@pytest.mark.parametrize("method", [m for m in SPARSE if m not in oracle.ELECTED])
def test_density_one_without_an_election_is_task_arithmetic_bit_for_bit(method):
    models, base = family((37, 50))
    weights = [0.3, 0.5, -0.2]
    for normalize in (False, True):
        shared = {"lambda_": 0.7, "normalize": normalize}
        plain = ws.merge(models, weights, method="task_arithmetic", base=base, **shared)
        sparse = ws.merge(models, weights, method=method, base=base, density=1.0, **shared)
        assert plain.tobytes() == sparse.tobytes()


@pytest.mark.parametrize("method", [m for m in SPARSE if m in oracle.ELECTED])
def test_density_one_trims_nothing_whatever_gamma_and_epsilon_say(method):
    models, base = family((37, 50))
    extra = {"gamma": 0.9} if "breadcrumbs" in method else {}
    extra |= {"epsilon": 0.9} if "della" in method else {}
    got = ws.merge(models, method=method, base=base, density=1.0, **extra)
    plain = ws.merge(models, method="ties", base=base, normalize=method in oracle.NORMALIZED)
    assert got.tobytes() == plain.tobytes()


@pytest.mark.parametrize("method", SPARSE)
def test_a_weight_of_zero_leaves_a_model_out_even_where_it_is_not_finite(method):
    models, base = family((20, 30))
    broken = np.full_like(base, np.nan)
    got = ws.merge([*models, broken], [1, 1, 1, 0], method=method, base=base, density=0.5)
    assert got.tobytes() == ws.merge(models, method=method, base=base, density=0.5).tobytes()


@pytest.mark.parametrize("method", SPARSE)
def test_density_zero_keeps_nothing(method):
    models, base = family((20, 30))
    assert ws.merge(models, method=method, base=base, density=0.0).tobytes() == base.tobytes()


@pytest.mark.parametrize("method", SPARSE)
def test_lambda_zero_gives_the_base(method):
    models, base = family((20, 30))
    got = ws.merge(models, method=method, base=base, density=0.5, lambda_=0.0)
    assert got.tobytes() == base.tobytes()


def test_an_election_among_winners_changes_nothing():
    models, base = family((60, 60))
    once = ws.merge(models, method="ties", base=base * 0, normalize=False)
    sign = np.where(once >= 0, 1, -1)
    winners = [np.where(np.sign(model) == sign, model, 0).astype(np.float32) for model in models]
    again = ws.merge(winners, method="ties", base=base * 0, normalize=False)
    assert again.tobytes() == once.tobytes()


@given(
    shape=st.sampled_from([(1,), (2,), (99,), (100, 7), (65537,), (300, 300)]),
    density=st.floats(0.0, 1.0, exclude_min=True),
    few=st.booleans(),
)
def test_ties_keeps_just_so_many_and_the_first_of_equals(shape, density, few):
    rng = np.random.default_rng(1)
    values = rng.integers(1, 4, shape) if few else rng.standard_normal(shape)
    tau = np.asarray(values * rng.choice([-1, 1], shape), np.float32)
    got = ws.merge([tau], method="ties", base=np.zeros_like(tau), density=density)
    kept = oracle.kept_of("magnitude", tau, density, None)
    assert np.count_nonzero(got) == (tau.size if density == 1 else max(1, int(density * tau.size)))
    assert np.array_equal(got, np.where(kept, tau, 0))


@given(
    size=st.sampled_from([1, 5, 50, 99, 1000, 70000]),
    density=st.sampled_from([0.001, 0.1, 0.5, 0.9, 0.99, 0.999]),
    gamma=st.sampled_from([0.0, 0.001, 0.01, 0.3, 1.0]),
)
def test_breadcrumbs_keep_a_band_of_ranks(size, density, gamma):
    tau = np.random.default_rng(size).integers(1, 500, size).astype(np.float32)
    got = ws.merge(
        [tau], method="breadcrumbs", base=np.zeros_like(tau), density=density, gamma=gamma
    )
    assert np.array_equal(got, tau * oracle.kept_of("band", tau, density, None, gamma))
    assert np.count_nonzero(got) == max(1, int(density * size))


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_dare_keeps_each_element_with_the_chance_density(density):
    n = 1 << 20
    tau = np.ones(n, np.float32)
    got = ws.merge(
        [tau], method="dare_linear", base=tau * 0, density=density, rescale=False, seed=11
    )
    sigma = np.sqrt(n * density * (1 - density))
    assert abs(np.count_nonzero(got) - n * density) < 4 * sigma


def test_della_keeps_more_of_the_greater_and_density_of_all():
    rows, row, density, epsilon = 400, 1000, 0.4, 0.3
    rng = np.random.default_rng(0)
    tau = rng.permuted(np.tile(np.arange(1, row + 1, dtype=np.float32), (rows, 1)), axis=1)
    got = ws.merge(
        *([tau],), method="della_linear", base=tau * 0, density=density, epsilon=epsilon, seed=3
    )
    kept = np.zeros(row)
    for line in tau * (got != 0):
        kept[line[line > 0].astype(int) - 1] += 1
    tenths = kept.reshape(10, -1).sum(axis=1)
    expected = density - epsilon + 2 * epsilon * (np.arange(10) + 0.5) / 10
    trials = rows * row / 10
    assert np.all(np.abs(tenths / trials - expected) < 4 * np.sqrt(0.25 / trials))
    assert np.all(np.diff(tenths) > 0)


@pytest.mark.parametrize("method", sorted(DRAWN))
def test_rescaling_gives_a_task_vector_its_l1_norm_back(method):
    models, base = family((300, 301), n=1)
    extra = {"normalize": False}
    tau = (
        ws.merge(models, method=method, base=base * 0, density=0.3, epsilon=0.1, **extra)
        if ("della" in method)
        else ws.merge(models, method=method, base=base * 0, density=0.3, **extra)
    )
    assert np.count_nonzero(tau) < 0.5 * tau.size
    whole = np.abs(models[0]).sum(dtype=np.float64)
    assert abs(np.abs(tau).sum(dtype=np.float64) / whole - 1) < 1e-6


def test_a_nan_ranks_above_infinity_and_shows():
    tau = np.array([1, np.nan, np.inf, 2, -np.inf, 3], np.float32)
    zero = np.zeros_like(tau)
    for density, kept in ((0.17, [1]), (0.34, [1, 2]), (0.5, [1, 2, 4]), (0.67, [1, 2, 4, 5])):
        got = ws.merge([tau], method="breadcrumbs", base=zero, density=density, gamma=0.0)
        assert np.flatnonzero(got != 0).tolist() == kept
    elected = ws.merge([tau, tau], method="ties", base=zero)
    assert np.isnan(elected).tolist() == np.isnan(tau).tolist()


def test_weights_that_cancel_among_the_winners_are_not_divided_by():
    tau = np.full((1, 9), 2.0, np.float32)
    got = ws.merge([tau, tau, -tau], [0.7, 0.1, -0.8], method="ties", base=tau * 0)
    assert np.all(np.abs(got - 3.2) < 1e-5)
    got = ws.merge([tau, tau, tau * 4], [0.7, 0.1, -0.8], method="ties", base=tau * 0)
    assert np.all(np.abs(got - 8) < 1e-5)
    near = ws.merge([tau, tau], [0.5, 1e-9], method="ties", base=tau * 0)
    assert np.all(np.abs(near - 2) < 1e-5)


def test_della_refuses_chances_outside_zero_and_one_while_planning():
    models, base = family((4, 4))
    for density, epsilon in ((0.9, 0.15), (0.1, 0.15), (0.5, 0.5)):
        with pytest.raises(ws.errors.ArgumentError, match="choose a smaller epsilon"):
            ws.merge(models, method="della", base=base, density=density, epsilon=epsilon)
    for density in (0.0, 1.0):
        ws.merge(models, method="della", base=base, density=density, epsilon=0.9)


@pytest.mark.parametrize("method", [m for m in SPARSE if m not in oracle.ELECTED])
def test_weights_that_sum_to_zero_cannot_be_normalised_without_an_election(method):
    models, base = family((4, 4), n=2)
    with pytest.raises(ws.errors.ArgumentError, match="sum to zero"):
        ws.merge(models, [1, -1], method=method, base=base, normalize=True)


@pytest.mark.parametrize(
    ("name", "value"), [("density", 1.01), ("density", -0.1), ("gamma", 2), ("select_topk", -1)]
)
def test_shares_outside_zero_and_one_are_refused(name, value):
    models, base = family((4, 4))
    method = "sce" if name == "select_topk" else "breadcrumbs"
    with pytest.raises(ws.errors.ArgumentError, match=f"{name}: expected 0 to 1"):
        ws.merge(models, method=method, base=base, **{name: value})


def test_sce_keeps_nothing_where_nothing_varies_and_the_shape_stays():
    models, base = family((2, 3), n=1)
    got = ws.merge(models * 2, method="sce", base=base, select_topk=0.5)
    assert got.tobytes() == base.tobytes()
    assert got.shape == (2, 3)

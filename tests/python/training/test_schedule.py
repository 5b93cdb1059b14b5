"""The learning rate of SGDR: its golden values, its boundaries, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightshare.errors import ArgumentError, ArgumentTypeError
from weightshare.training.schedule import check_schedule, cosine_restarts, restart_rate

GOLDEN = (
    ".1 .085502 .0505 .015498 .1 .096232 .085502 .069443 .0505 .031557 .015498 .004768 .1 .099049"
)


def test_golden_values_of_the_paper_formula_hold():
    rates = [restart_rate(s, lr_max=0.1, T_0=4, T_mult=2, lr_min=0.001) for s in range(14)]
    np.testing.assert_allclose(rates, [float(x) for x in GOLDEN.split()], atol=5e-7)


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 1000])
def test_a_boundary_where_a_logarithm_gives_the_wrong_cycle_is_a_restart(steps_per_epoch):
    here = {"lr_max": 0.1, "T_0": 1, "T_mult": 3, "steps_per_epoch": steps_per_epoch}
    assert restart_rate(121 * steps_per_epoch, **here) == 0.1
    assert cosine_restarts(121.0, lr_max=0.1, T_0=1, T_mult=3) == 0.1


def test_every_restart_of_many_schedules_is_exactly_at_the_peak_and_the_step_before_is_not():
    for T_0 in range(1, 50):
        for T_mult in (1, 2, 3, 4, 5, 10):
            start, length = 0, T_0
            for _ in range(11):
                start, length = start + length, length * T_mult
                assert restart_rate(start, lr_max=0.3, T_0=T_0, T_mult=T_mult, lr_min=0.1) == 0.3
                if length > T_mult:
                    before = restart_rate(start - 1, lr_max=0.3, T_0=T_0, T_mult=T_mult, lr_min=0.1)
                    assert before < 0.3


@given(
    step=st.integers(0, 10**7),
    T_0=st.integers(1, 60),
    T_mult=st.integers(1, 5),
    steps_per_epoch=st.integers(1, 999),
    warmup=st.integers(0, 5),
    decay=st.floats(0.01, 1.0),
)
def test_rates_are_those_of_the_cycle_found_by_counting_and_stay_in_range(
    step, T_0, T_mult, steps_per_epoch, warmup, decay
):
    rate = restart_rate(
        step,
        lr_max=0.5,
        T_0=T_0,
        T_mult=T_mult,
        lr_min=0.01,
        steps_per_epoch=steps_per_epoch,
        decay=decay,
        warmup=warmup,
    )
    assert 0.01 * (1 - 1e-12) <= rate <= 0.5
    left = step - warmup * steps_per_epoch
    if left < 0:
        expected = 0.01 + 0.49 * step / (warmup * steps_per_epoch)
    else:
        lengths = [T_0 * steps_per_epoch]
        cycle = 0
        if T_mult == 1:
            cycle, left = divmod(left, lengths[0])
        else:
            while left >= lengths[-1]:
                left -= lengths[-1]
                lengths.append(lengths[-1] * T_mult)
                cycle += 1
        peak = max(0.01, 0.5 * decay**cycle)
        expected = 0.01 + (peak - 0.01) / 2 * (1 + math.cos(math.pi * left / lengths[-1]))
    assert rate == pytest.approx(expected, rel=1e-12)


@given(step=st.integers(0, 10**6), steps_per_epoch=st.sampled_from([1, 2, 64, 1024]))
def test_steps_and_fractional_epochs_agree_where_the_fraction_is_exact(step, steps_per_epoch):
    here = {"lr_max": 0.1, "T_0": 3, "T_mult": 2, "lr_min": 1e-3, "decay": 0.9, "warmup": 2}
    by_step = restart_rate(step, steps_per_epoch=steps_per_epoch, **here)
    assert by_step == pytest.approx(cosine_restarts(step / steps_per_epoch, **here), rel=1e-13)


def test_warmup_rises_linearly_in_epochs_from_the_least_rate_to_the_first_peak():
    here = {"lr_max": 0.5, "T_0": 4, "lr_min": 0.1, "warmup": 2, "steps_per_epoch": 2}
    rates = [restart_rate(s, **here) for s in range(5)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.5])


def test_decay_multiplies_the_peak_at_each_restart_and_stops_at_the_least_rate():
    peaks = [restart_rate(s, lr_max=0.8, T_0=1, lr_min=0.15, decay=0.5) for s in range(5)]
    np.testing.assert_allclose(peaks, [0.8, 0.4, 0.2, 0.15, 0.15])


def test_numpy_integers_do_not_overflow_in_long_cycles():
    here = {"lr_max": 0.1, "T_0": np.int32(10**5), "T_mult": np.int32(10)}
    rate = restart_rate(np.int64(6 * 10**9), steps_per_epoch=np.int32(10**4), **here)
    assert rate == pytest.approx(0.05)


GOOD = {
    "lr_max": 0.1,
    "T_0": 4,
    "T_mult": 2,
    "lr_min": 0.0,
    "steps_per_epoch": 1,
    "decay": 1.0,
    "warmup": 0,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lr_max": 0.0}, ArgumentError, "lr_max: expected a finite number above 0, got 0.0"),
        ({"lr_max": math.nan}, ArgumentError, "lr_max: expected a finite number above 0, got nan"),
        ({"lr_max": "a"}, ArgumentTypeError, "lr_max: expected a real number, got 'a'"),
        ({"lr_min": -0.1}, ArgumentError, "lr_min: .* of at least 0 and at most 0.1, got -0.1"),
        ({"lr_min": 0.2}, ArgumentError, "lr_min: .* at most 0.1, got 0.2"),
        ({"T_0": 0}, ArgumentError, "T_0: expected a whole number of at least 1, got 0"),
        ({"T_0": 1.5}, ArgumentTypeError, "T_0: expected a whole number, got 1.5"),
        ({"T_mult": 0}, ArgumentError, "T_mult: expected a whole number of at least 1, got 0"),
        ({"T_mult": True}, ArgumentTypeError, "T_mult: expected a whole number, got True"),
        ({"steps_per_epoch": 0}, ArgumentError, "steps_per_epoch: .* of at least 1, got 0"),
        ({"decay": 0.0}, ArgumentError, "decay: .* above 0 and at most 1, got 0.0"),
        ({"decay": 1.1}, ArgumentError, "decay: .* above 0 and at most 1, got 1.1"),
        ({"warmup": -1}, ArgumentError, "warmup: .* of at least 0, got -1"),
    ],
)
def test_a_parameter_that_no_schedule_can_use_is_refused_by_name(change, error, message):
    for call in (check_schedule, lambda **kw: restart_rate(0, **kw)):
        with pytest.raises(error, match=f"^{message}.*; "):
            call(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (-1, ArgumentError, "step: .* of at least 0, got -1"),
        (0.5, ArgumentTypeError, "step: expected a whole number, got 0.5"),
    ],
)
def test_a_step_that_is_no_count_is_refused(step, error, message):
    with pytest.raises(error, match=f"^{message}"):
        restart_rate(step, **GOOD)


def test_an_epoch_before_the_start_is_refused():
    with pytest.raises(ArgumentError, match=r"^epoch: .* of at least 0, got -0.5"):
        cosine_restarts(-0.5, lr_max=0.1, T_0=1)


def test_good_parameters_pass():
    assert check_schedule(**GOOD) is None

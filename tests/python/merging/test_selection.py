"""Exact order statistics over tiles, beside a stable sort."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightshare._core import selection as core
from weightshare.merging import selection
from weightshare.merging.method import Settings, Tensor, Tile
from weightshare.merging.selection import Ranking, find_cuts


def find(values, wanted, cuts=(), exact=False, threads=1, steps=find_cuts):
    """Run the survey over tiles of one array of nonnegative numbers."""
    tensor = Tensor("w", values.shape, Settings({}, ()), 0, (values.dtype,), False)
    edges = sorted({0, values.size, *(cut for cut in cuts if cut < values.size)})
    parts = [
        Tile(values[:0], [values[a:b]], None, tensor, a, threads)
        for a, b in itertools.pairwise(edges)
    ]
    ranking = Ranking(lambda tile: (tile.models, None), values.size, values.dtype == np.float64)
    survey = steps(ranking, wanted, exact)
    try:
        look = next(survey)
        while True:
            total = look.start
            for part in parts:
                total = look.fold(total, look.look(part))
            look = survey.send(total)
    except StopIteration as end:
        return end.value


def kept_by(values, cut):
    keys = np.abs(values).view(np.int64 if values.dtype == np.float64 else np.int32).astype(int)
    place = np.arange(values.size)
    return (keys > cut.key) | ((keys == cut.key) & (place < cut.cutoff))


def sorted_kept(values, k):
    kept = np.zeros(values.size, dtype=bool)
    kept[np.argsort(-np.abs(values), kind="stable")[:k]] = True
    return kept & (values != 0)


MATERIAL = {
    "few values": lambda rng, n: rng.integers(0, 4, n),
    "one value": lambda rng, n: np.full(n, 2.5),
    "mostly zero": lambda rng, n: rng.integers(0, 2, n) * (rng.random(n) < 0.2),
    "normal": lambda rng, n: rng.standard_normal(n),
    "many octaves": lambda rng, n: 10.0 ** rng.uniform(-38, 38, n),
    "neighbours": lambda rng, n: 1 + rng.integers(0, 9, n) * 2.0**-23,
    "subnormal": lambda rng, n: rng.integers(0, 9, n) * 1e-44,
}


@pytest.mark.parametrize("held", ["all", "a digit", "nothing"])
@given(
    material=st.sampled_from(sorted(MATERIAL)),
    dtype=st.sampled_from([np.float32, np.float64]),
    size=st.sampled_from([1, 2, 33, 1000, 5001]),
    share=st.floats(0, 1),
    cuts=st.lists(st.integers(1, 5000), max_size=4),
    threads=st.sampled_from([1, 3]),
    exact=st.booleans(),
)
def test_cuts_keep_what_a_stable_sort_keeps(
    held, material, dtype, size, share, cuts, threads, exact
):
    values = MATERIAL[material](np.random.default_rng(size), size).astype(dtype)
    k = max(1, int(share * size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_SMALL", selection._SMALL if held == "all" else 0)
        patch.setattr(selection, "_MOST_HELD", 0 if held == "nothing" else selection._MOST_HELD)
        first, second = find(values, [(0, k), (0, size)], cuts, exact, threads)
    for cut, count in ((first, k), (second, size)):
        kept = kept_by(values, cut) & (values != 0)
        assert np.array_equal(kept, sorted_kept(values, count))


@given(rank=st.integers(0, 999), dtype=st.sampled_from([np.float32, np.float64]))
def test_an_exact_key_is_the_element_of_that_rank(rank, dtype):
    values = np.random.default_rng(4).random(1000).astype(dtype)
    (cut,) = find(values, [(0, 1000 - rank)], exact=True)
    bits = np.int64(cut.key) if dtype is np.float64 else np.int32(cut.key)
    assert bits.view(dtype) == np.sort(values)[rank]


def test_nothing_wanted_needs_no_look():
    assert find(np.ones(3, np.float32), []) == []


def test_histograms_are_counts_of_digits_whatever_the_threads():
    values = np.random.default_rng(0).standard_normal(3_000_001).astype(np.float32)
    keys = np.abs(values).view(np.int32)
    counts = [np.zeros((1, core.HISTOGRAM), np.int64) for _ in range(2)]
    for threads, out in zip((1, 3), counts, strict=True):
        core.count_digits(out, [values], None, 0, [0], threads=threads)
    assert np.array_equal(counts[0], counts[1])
    assert np.array_equal(counts[0][0, :-1], np.bincount(keys >> 15, minlength=1 << 16))
    digit = int(np.argmax(counts[0]))
    fine = np.zeros((1, core.HISTOGRAM), np.int64)
    core.count_digits(fine, [values], None, 1, [digit])
    inside = keys[keys >> 15 == digit] & 0x7FFF
    assert np.array_equal(fine[0, :-1], np.bincount(inside, minlength=1 << 16))


def test_zeros_of_both_signs_are_counted_apart():
    values = np.array([0.0, -0.0, 1e-45, 1.0], np.float32)
    counts = np.zeros((1, core.HISTOGRAM), np.int64)
    core.count_digits(counts, [values], None, 0, [0])
    assert counts[0, -1] == 2
    assert counts[0, 0] == 3


def test_the_core_refuses_what_does_not_fit():
    values = np.ones(4, np.float32)
    counts = np.zeros((1, core.HISTOGRAM), np.int64)
    with pytest.raises(ValueError, match="level"):
        core.count_digits(counts, [values], None, 2, [0])
    with pytest.raises(ValueError, match="same number of elements"):
        core.count_digits(counts, [values], values[:3], 0, [0])
    with pytest.raises(ValueError, match="expected magnitude or variance"):
        core.count_digits(counts, [values], None, 0, [0], "median")
    with pytest.raises(ValueError, match="one histogram"):
        core.count_digits(counts, [values], None, 0, [0, 0])
    with pytest.raises(ValueError, match="one ranking"):
        core.mark_key([values, values], None, 0)

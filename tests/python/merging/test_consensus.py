"""TIES, DARE, breadcrumbs, DELLA and SCE beside float64 oracles, in tiles and in threads."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import consensus as oracle
import weightshare as ws
from weightshare.merging.method import Settings, Tensor, Tile

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BF16, np.dtype(np.float32), np.dtype(np.float64)]
SHAPES = [(), (1,), (1, 1), (7,), (1, 33), (33, 1), (5, 13), (2, 3, 17), (130, 70), (3, 5000)]
SPARSE = sorted(oracle.TRIM)


def family(shape, dtype, n=3, seed=0, grain=1 / 256):
    """A base and n models whose differences are of few values, so that many are equal."""
    rng = np.random.default_rng(seed)
    base = (rng.integers(-300, 300, shape) * grain).astype(dtype)
    models = [
        (base.astype(np.float64) + rng.integers(-9, 10, shape) * grain).astype(dtype)
        for _ in range(n)
    ]
    return models, base


def close(got, want, dtype, scale):
    """Within one rounding to the dtype, and the roundings of float32 sums."""
    step = float(np.finfo(np.float32).eps if dtype == np.float64 else ml_dtypes.finfo(dtype).eps)
    wide = dtype == np.float64
    slack = (1e-13 if wide else 4e-6) * scale
    off = np.abs(got.astype(np.float64) - want)
    return np.all(off <= (0 if wide else step) * np.abs(want) + slack)


def tensor_of(method, shape, shared, per_model, dtypes, seed=0, name="w"):
    known = ws.methods()[method].parameters
    full = {p.name: p.default for p in known if not p.per_model} | shared
    rows = [{p.name: p.default for p in known if p.per_model} | row for row in per_model]
    return Tensor(name, shape, Settings(full, tuple(rows)), seed, tuple(dtypes), True)


def run_in_tiles(method, models, base, tensor, cuts=(), threads=1):
    """What a merge from file to file does: every pass over every tile, then every tile combined."""
    chosen = ws.methods()[method]
    unit = chosen.unit(tensor)
    edges = sorted({0, base.size, *(cut * unit for cut in cuts if cut * unit < base.size)})
    out = np.empty(base.size, base.dtype)
    flat = [model.reshape(-1) for model in models]

    def tiles(surveying):
        for a, b in itertools.pairwise(edges):
            place = out[:0] if surveying else out[a:b]
            parts = [model[a:b] for model in flat]
            yield Tile(place, parts, base.reshape(-1)[a:b], tensor, a, threads)

    survey, found = chosen.survey(tensor), None
    try:
        wanted = next(survey)
        while True:
            total = wanted.start
            for tile in tiles(surveying=True):
                total = wanted.fold(total, wanted.look(tile))
            wanted = survey.send(total)
    except StopIteration as end:
        found = end.value
    for tile in tiles(surveying=False):
        chosen.combine(tile, found)
    return out.reshape(base.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", SPARSE)
def test_every_sparse_method_is_its_formula_on_every_shape_and_dtype(method, shape, dtype):
    models, base = family(shape, dtype, seed=len(shape))
    work = np.float64 if dtype == np.float64 else np.float32
    weights = [1.0, 0.5, 0.25]
    for density in (0.4, [0.3, 1.0, 0.61]):
        got = ws.merge(models, weights, method=method, base=base, density=density, seed=5)
        want = oracle.merged(method, models, base, weights, density=density, seed=5, work=work)
        assert got.dtype == dtype
        assert got.shape == base.shape
        assert close(got, want, dtype, 8.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sce_is_its_formula_on_every_shape_and_dtype(shape, dtype):
    models, base = family(shape, dtype, seed=3, grain=1 / 64)
    work = np.float64 if dtype == np.float64 else np.float32
    for share in (1.0, 0.5, 0.07):
        got = ws.merge(models, method="sce", base=base, select_topk=share)
        want = oracle.merged_sce(models, base, share, work=work)
        assert close(got, want, dtype, 8.0)


@pytest.mark.parametrize("method", [*SPARSE, "sce"])
def test_an_empty_tensor_stays_empty(method):
    base = np.zeros((3, 0), np.float32)
    assert ws.merge([base, base], method=method, base=base).shape == (3, 0)


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_the_options_do_what_the_formula_says(method, normalize, rescale):
    models, base = family((41, 29), np.float32, n=4)
    weights = [0.75, -0.25, 0.5, 0.0]  # exact, so that equal votes cancel exactly
    options = {"normalize": normalize, "rescale": rescale}
    extra = {"gamma": 0.2} if "breadcrumbs" in method else {}
    extra |= {"epsilon": 0.05} if "della" in method else {}
    got = ws.merge(
        models, weights, method=method, base=base, density=0.6, lambda_=1.5, **options, **extra
    )
    want = oracle.merged(
        method, models, base, weights, density=0.6, strength=1.5, **options, **extra
    )
    assert close(got, want, np.dtype(np.float32), 8.0)


def test_elements_of_mixed_dtypes_are_merged_as_their_values():
    models, base = family((20, 30), np.float32)
    mixed = [models[0].astype(np.float16), models[1].astype(BF16), models[2]]
    got = ws.merge(mixed, method="ties", base=base.astype(BF16), density=0.5)
    want = oracle.merged("ties", mixed, base.astype(BF16), [1, 1, 1], density=0.5)
    assert close(got, want, BF16, 8.0)
    wide = ws.merge([models[0], models[1].astype(float)], method="ties", base=base, density=0.5)
    want = oracle.merged("ties", models[:2], base, [1, 1], density=0.5, work=np.float64)
    assert close(wide, want, np.dtype(np.float32), 8.0)


@given(
    method=st.sampled_from([*SPARSE, "sce"]),
    rows=st.integers(1, 60),
    row=st.sampled_from([1, 17, 999, 8192, 5003]),
    cuts=st.lists(st.integers(1, 8), max_size=3),
    threads=st.sampled_from([1, 2, 3]),
    dtype=st.sampled_from([BF16, np.dtype(np.float32), np.dtype(np.float64)]),
    seed=st.integers(0, 2**63),
)
def test_tiles_and_threads_do_not_change_a_byte(method, rows, row, cuts, threads, dtype, seed):
    shape = (rows * 5, row)
    models, base = family(shape, dtype, n=2, seed=seed % 97, grain=1 / 16)
    shared, one = ({"select_topk": 0.4}, {}) if method == "sce" else ({"rescale": True}, {})
    one = one if method == "sce" else {"weight": 1.0, "density": 0.45}
    tensor = tensor_of(method, shape, shared, [one, one], [dtype] * 3, seed)
    whole = run_in_tiles(method, models, base, tensor)
    cut = run_in_tiles(method, models, base, tensor, cuts, threads)
    assert whole.tobytes() == cut.tobytes()


@pytest.mark.parametrize("method", ["della", "dare_ties"])
def test_what_is_drawn_depends_on_seed_name_and_model_alone(method):
    models, base = family((64, 64), np.float32)
    twice = [models[0], models[0]]

    def merge(order, name="w", seed=1):
        family = [{name: model, "other": model} for model in order]
        anchor = {name: base, "other": base}
        return ws.merge(family, method=method, base=anchor, density=0.5, seed=seed)[name]

    assert merge(models).tobytes() == merge(models).tobytes()
    assert merge(models).tobytes() != merge(models, seed=2).tobytes()
    assert merge(models).tobytes() != merge(models, name="v").tobytes()
    one = merge(twice[:1]) - base
    two = merge(twice) - base
    assert np.count_nonzero(one) < np.count_nonzero(two)  # the second model drew other elements


def test_the_words_do_not_run_into_those_of_another_seed_or_model():
    from weightshare.merging.sparsity import by_chance

    streams = {
        by_chance(tensor_of("ties", (1,), {}, [], [], seed, name), index, 0.5).fields[0]
        for seed, index, name in [
            (1, 11, "a"),
            (11, 1, "a"),
            (1, 1, "1:a"),
            (1, 1, "a"),
            (1, 1, ""),
        ]
    }
    assert len(streams) == 5


def test_int8_mask_has_no_effect():
    models, base = family((30, 30), np.float32)
    for method in ("ties", "sce"):
        plain = ws.merge(models, method=method, base=base)
        assert np.array_equal(plain, ws.merge(models, method=method, base=base, int8_mask=True))

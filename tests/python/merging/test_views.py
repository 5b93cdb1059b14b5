"""Tensors that are made while they are read: low-rank adapters, scaled 8-bit floats."""

from __future__ import annotations

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightshare.checkpoint.header import dtype_code
from weightshare.merging.adapter_view import AdapterView, ReplacedView
from weightshare.merging.plan import Source
from weightshare.merging.scaled_view import ScaledBlocksView
from weightshare.merging.spans import row_spans

BF16 = np.dtype(ml_dtypes.bfloat16)
F8 = np.dtype(ml_dtypes.float8_e4m3fn)
F8_RANGE = np.dtype(ml_dtypes.float8_e5m2)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)


class Memory:
    """A reader over arrays, which counts what it reads."""

    def __init__(self, **tensors):
        self.tensors = tensors
        self.bytes = 0

    def read_into(self, name, offset, buffer):
        raw = np.ascontiguousarray(self.tensors[name]).reshape(-1).view(np.uint8)
        buffer[:] = raw[offset : offset + len(buffer)]
        assert len(buffer) <= len(raw) - offset
        self.bytes += len(buffer)

    def source(self, model, name):
        return Source(model, name, dtype_code(self.tensors[name].dtype))


def read(opened, start, count, dtype=np.float32):
    buffer = np.full(count * np.dtype(dtype).itemsize + 1, 0xA5, np.uint8)
    opened.read_into(start, count, buffer[:-1])
    assert buffer[-1] == 0xA5
    return buffer[:-1].view(dtype)


def adapter(weight, down, up, scaling=0.5, transposed=False, dtype="F32"):
    """An adapter's view and the readers it is over: the model, then the adapter."""
    model, beside = Memory(w=weight), Memory(a=down, b=up)
    sources = model.source(0, "w"), beside.source(1, "a"), beside.source(1, "b")
    rank = down.shape[0]
    return AdapterView(*sources, weight.shape, rank, scaling, transposed, dtype), [model, beside]


def random_adapter(seed, rows, width, rank, weight=BF16, factors=np.float32, transposed=False):
    generator = np.random.default_rng(seed)

    def draw(*shape):
        return generator.standard_normal(shape)

    down = draw(rank, rows if transposed else width).astype(factors)
    up = draw(width if transposed else rows, rank).astype(factors)
    return draw(rows, width).astype(weight), down, up


def added(weight, down, up, scaling, transposed):
    product = up.astype(np.float64) @ down.astype(np.float64)
    return weight.astype(np.float64) + scaling * (product.T if transposed else product)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("factors", [np.float32, np.float16, BF16], ids=str)
@pytest.mark.parametrize("weight", [np.float32, np.float16, BF16], ids=str)
def test_an_adapter_is_added_as_its_formula_says(weight, factors, transposed):
    arrays = random_adapter(1, 70, 33, 5, weight, factors, transposed)
    view, readers = adapter(*arrays, scaling=1.75, transposed=transposed)
    made = read(view.open(readers), 0, 70 * 33).reshape(70, 33)
    expected = added(*arrays, 1.75, transposed)
    np.testing.assert_allclose(made, expected, rtol=0, atol=4e-6 * np.abs(expected).max())


def test_a_float64_weight_is_adapted_in_float64():
    arrays = random_adapter(2, 9, 7, 3, np.float64, np.float64)
    view, readers = adapter(*arrays, dtype="F64")
    made = read(view.open(readers), 0, 63, np.float64).reshape(9, 7)
    np.testing.assert_allclose(made, added(*arrays, 0.5, False), rtol=1e-14, atol=1e-14)


@given(st.data())
def test_an_adapted_weight_has_the_same_bytes_however_it_is_cut(data):
    rows, width, rank = (data.draw(st.integers(1, most)) for most in (150, 40, 6))
    transposed = data.draw(st.booleans())
    arrays = random_adapter(3, rows, width, rank, transposed=transposed)
    view, readers = adapter(*arrays, transposed=transposed)
    opened = view.open(readers)
    whole = read(opened, 0, rows * width)
    start = data.draw(st.integers(0, whole.size))
    count = data.draw(st.integers(0, whole.size - start))
    np.testing.assert_array_equal(
        read(opened, start, count).view(np.uint32), whole[start : start + count].view(np.uint32)
    )


def test_an_adapter_whose_second_factor_is_zero_changes_no_bit_of_the_weight():
    weight, down, up = random_adapter(4, 6, 5, 2)
    down[0, 0] = np.nan
    view, readers = adapter(weight, down, np.zeros_like(up))
    made = read(view.open(readers), 0, 30)
    np.testing.assert_array_equal(made, weight.astype(np.float32).reshape(-1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_factor_that_is_not_finite_spoils_its_own_row_and_no_other(bad):
    weight, down, up = random_adapter(5, 6, 5, 2)
    up[3, 1] = bad
    view, readers = adapter(weight, down, up)
    made = read(view.open(readers), 0, 30).reshape(6, 5)
    assert np.isnan(made[3]).all()
    assert np.isfinite(np.delete(made, 3, axis=0)).all()


def test_an_adapter_reads_of_its_factors_what_a_tile_needs_and_holds_one_of_them():
    view, readers = adapter(*random_adapter(6, 1000, 16, 4))
    opened = view.open(readers)
    assert readers[1].bytes == 4 * 16 * 4 <= view.held_bytes
    read(opened, 16 * 10, 16 * 20)
    assert readers[1].bytes == 4 * 16 * 4 + 20 * 4 * 4
    assert readers[0].bytes == 16 * 20 * 2


def test_the_columns_of_a_transposed_adapter_are_read_many_rows_at_a_time():
    arrays = random_adapter(7, 1000, 16, 4, transposed=True)
    view, readers = adapter(*arrays, transposed=True)
    opened = view.open(readers)
    readings, plain = [], readers[1].read_into
    readers[1].read_into = lambda *asked: (readings.append(asked), plain(*asked))
    found = read(opened, 0, 16_000)
    assert len(readings) == 4
    expected = added(*arrays, 0.5, True)
    np.testing.assert_allclose(found, expected.reshape(-1), rtol=1e-5, atol=1e-5)


def test_an_adapter_of_rank_zero_leaves_the_weight():
    arrays = random_adapter(7, 4, 3, 0)
    view, readers = adapter(*arrays)
    np.testing.assert_array_equal(read(view.open(readers), 0, 12), arrays[0].reshape(-1))


def scaled(weight, scale=None, block=()):
    reader = Memory(w=weight, s=scale)
    own = None if scale is None else reader.source(0, "s")
    shape = () if scale is None else scale.shape
    return ScaledBlocksView(reader.source(0, "w"), own, weight.shape, shape, block), [reader]


def dequantised(weight, scale, block):
    """Every element times the scale of its block, element by element, rounded once."""
    out = np.empty(weight.shape, np.float32)
    for place in np.ndindex(*weight.shape):
        at = tuple(i // b for i, b in zip(place, block, strict=True)) if block else ()
        value = np.float32(weight[place])
        out[place] = value if scale is None else value * scale[at].astype(np.float32)
    return out


def random_scaled(data):
    rank = data.draw(st.integers(1, 3))
    shape = tuple(data.draw(st.integers(1, 9)) for _ in range(rank))
    block = tuple(data.draw(st.integers(1, length)) for length in shape)
    if data.draw(st.booleans()):
        block = ()
    scales = tuple(-(-n // b) for n, b in zip(shape, block, strict=True)) if block else ()
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    code = data.draw(st.sampled_from([F8, F8_RANGE]))
    weight = generator.standard_normal(shape).astype(code)
    kept = data.draw(st.sampled_from([np.float32, np.float16, BF16, np.float64, E8M0]))
    scale = np.exp2(generator.integers(-9, 9, scales)) * (
        1 if kept == E8M0 else generator.uniform(1, 2)
    )
    return weight, np.asarray(scale).astype(kept), block


@given(st.data())
def test_scaled_blocks_are_each_code_times_the_scale_of_its_block_however_they_are_cut(data):
    weight, scale, block = random_scaled(data)
    view, readers = scaled(weight, scale, block)
    opened = view.open(readers)
    expected = dequantised(weight, scale, block).reshape(-1)
    start = data.draw(st.integers(0, expected.size))
    count = data.draw(st.integers(0, expected.size - start))
    np.testing.assert_array_equal(read(opened, start, count), expected[start : start + count])


@pytest.mark.parametrize("code", [F8, F8_RANGE], ids=str)
def test_every_one_of_the_256_codes_is_made_into_its_value(code):
    weight = np.arange(256, dtype=np.uint8).view(code)
    view, readers = scaled(weight)
    np.testing.assert_array_equal(
        read(view.open(readers), 0, 256).view(np.uint32), weight.astype(np.float32).view(np.uint32)
    )


def test_a_matrix_larger_than_one_step_is_scaled_by_blocks_of_128():
    generator = np.random.default_rng(8)
    weight = generator.standard_normal((700, 1000)).astype(F8)
    scale = generator.uniform(0.5, 2, (6, 8)).astype(np.float32)
    view, readers = scaled(weight, scale, (128, 128))
    grown = np.repeat(np.repeat(scale, 128, 0), 128, 1)[:700, :1000]
    np.testing.assert_array_equal(
        read(view.open(readers), 0, weight.size).reshape(700, 1000),
        weight.astype(np.float32) * grown,
    )


def test_an_adapter_may_lie_over_a_scaled_weight():
    generator = np.random.default_rng(9)
    weight = generator.standard_normal((12, 8)).astype(F8)
    scale = generator.uniform(0.5, 2, (3, 2)).astype(np.float32)
    under, readers = scaled(weight, scale, (4, 4))
    down, up = (generator.standard_normal(shape).astype(BF16) for shape in ((2, 8), (12, 2)))
    beside = Memory(a=down, b=up)
    factors = beside.source(1, "a"), beside.source(1, "b")
    view = AdapterView(Source(0, "w", "F32", under), *factors, (12, 8), 2, 0.25)
    assert [source.name for source in view.reads] == ["w", "s", "a", "b"]
    made = read(view.open([*readers, beside]), 5, 80)
    plain = dequantised(weight, scale, (4, 4))
    expected = added(plain, down, up, 0.25, False).reshape(-1)[5:85]
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)


def test_a_weight_may_be_another_models_and_an_adapter_may_lie_over_that():
    weight, down, up = random_adapter(11, 6, 5, 2)
    model, beside = Memory(), Memory(own=weight, a=down, b=up)
    own = Source(0, "w", "BF16", ReplacedView(beside.source(1, "own")))
    assert own.view is not None
    read_back = read(own.view.open([model, beside]), 7, 20, BF16)
    np.testing.assert_array_equal(read_back, weight.reshape(-1)[7:27])
    factors = beside.source(1, "a"), beside.source(1, "b")
    view = AdapterView(own, *factors, (6, 5), 2, 0.5)
    plain, readers = adapter(weight, down, up)
    np.testing.assert_array_equal(
        read(view.open([model, beside]), 0, 30), read(plain.open(readers), 0, 30)
    )


def test_views_are_plain_data_that_pickles_and_tells_itself_as_json():
    view, _ = adapter(*random_adapter(10, 4, 3, 2))
    blocks, _ = scaled(np.zeros((4, 4), F8), np.ones((2, 2), np.float32), (2, 2))
    whole = ReplacedView(Source(1, "b", "BF16"))
    assert whole.held_bytes == 0
    for one in (view, blocks, whole):
        assert pickle.loads(pickle.dumps(one)) == one
        assert json.loads(json.dumps(one.to_json())) == one.to_json()
    assert view.held_bytes > 0 < blocks.held_bytes


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 9), st.integers(1, 5))
def test_spans_cover_a_stretch_once_and_in_order(start, count, width, most):
    covered = []
    for span in row_spans(start, count, width, most):
        assert span.rows == 1 or (span.left == 0 and span.right == width)
        assert 1 <= span.rows <= most
        covered += [
            row * width + column
            for row in range(span.top, span.bottom)
            for column in range(span.left, span.right)
        ]
    assert covered == list(range(start, start + count))

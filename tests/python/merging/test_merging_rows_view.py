"""Tables made row by row: against NumPy, and read in pieces of every size."""

from __future__ import annotations

import pickle
import sys
import threading
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightshare.merging.plan import Source
from weightshare.merging.rows_view import MEAN, ZERO, RowsView

DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


class Memory:
    """A model whose tensors are in memory; counts how often it is read."""

    def __init__(self, **tensors):
        self.tensors = tensors
        self.readings = 0

    def read_into(self, name, offset, buffer):
        self.readings += 1
        target = memoryview(buffer).cast("B")
        raw = self.tensors[name].tobytes()
        assert 0 <= offset <= offset + len(target) <= len(raw)
        target[:] = raw[offset : offset + len(target)]


def ints(*values):
    return np.array(values, dtype=np.int32)


def view_of(codes, made, rows, means=(), width=3, padding=0):
    """`rows` are pairs of a table and its row; `means` lists of such pairs."""
    starts = np.cumsum([0, *(len(mean) for mean in means)]).astype(np.int32)
    return RowsView(
        tables=tuple(Source(i, "t", code) for i, code in enumerate(codes)),
        width=width,
        dtype=made,
        donor=ints(*(donor for donor, _ in rows)),
        place=ints(*(place for _, place in rows)),
        starts=starts,
        mean_donor=ints(*(donor for mean in means for donor, _ in mean)),
        mean_place=ints(*(place for mean in means for _, place in mean)),
        padding=padding,
    )


def oracle(tables, made, rows, means, width, padding):
    """Row by row in float64, rounded once."""
    out = []
    for donor, place in rows:
        if donor == ZERO:
            out.append(np.zeros(width))
        elif donor == MEAN:
            picked = [tables[d][p].astype(np.float64) for d, p in means[place]]
            out.append(sum(picked) / len(picked))
        else:
            out.append(tables[donor][place].astype(np.float64))
    made_rows = np.array(out).reshape(-1, width).astype(DTYPES[made])
    mean = made_rows.astype(np.float64).mean(axis=0) if out else np.zeros(width)
    return np.concatenate([made_rows, np.tile(mean.astype(DTYPES[made]), (padding, 1))])


def read(view, inputs, cuts=()):
    """Read all of a view, piece by piece."""
    opened = view.open(inputs)
    size = view.rows * view.width
    out = np.full(size, 7, dtype=DTYPES[view.dtype])
    edges = sorted({0, size, *(cut for cut in cuts if cut < size)})
    for start, stop in pairwise(edges):
        opened.read_into(start, stop - start, out[start:stop].view(np.uint8))
    return out.reshape(-1, view.width)


@st.composite
def cases(draw):
    codes = draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=3))
    width = draw(st.integers(1, 7))
    lengths = [draw(st.integers(1, 9)) for _ in codes]
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    tables = [
        random.standard_normal((length, width)).astype(DTYPES[code])
        for code, length in zip(codes, lengths, strict=True)
    ]
    pair = st.integers(0, len(codes) - 1).flatmap(
        lambda d: st.tuples(st.just(d), st.integers(0, lengths[d] - 1))
    )
    means = draw(st.lists(st.lists(pair, min_size=1, max_size=4), max_size=3))
    row = st.one_of(pair, st.just((ZERO, -1)))
    if means:
        row = st.one_of(row, st.tuples(st.just(MEAN), st.integers(0, len(means) - 1)))
    rows = draw(st.lists(row, max_size=70))
    made = "F64" if codes[0] == "F64" else "F32"
    padding = draw(st.integers(0, 3))
    cuts = draw(st.lists(st.integers(0, (len(rows) + padding) * width), max_size=6))
    return codes, tables, made, rows, means, width, padding, cuts


@given(cases())
def test_a_table_read_in_any_pieces_is_that_of_the_formula(case):
    codes, tables, made, rows, means, width, padding, cuts = case
    view = view_of(codes, made, rows, means, width, padding)
    inputs = [Memory(t=table) for table in tables]
    whole = read(view, inputs)
    pieces = read(view, inputs, cuts)
    expected = oracle(tables, made, rows, means, width, padding)
    assert whole.tobytes() == pieces.tobytes()
    real = len(rows)
    # The mean of two rounded numbers may round once more in the oracle's sum of many.
    np.testing.assert_allclose(
        whole.astype(np.float64), expected.astype(np.float64), rtol=3e-7, atol=1e-7
    )
    exact = [r for r in range(real) if rows[r][0] != MEAN]
    assert whole[exact].tobytes() == expected[exact].tobytes()


def test_rows_that_follow_each_other_are_read_at_once():
    table = np.arange(300, dtype=np.float32).reshape(100, 3)
    model = Memory(t=table)
    view = view_of(["F32"], "F32", [(0, row) for row in range(10, 90)])
    assert (read(view, [model]) == table[10:90]).all()
    assert model.readings == 1


def test_scattered_rows_that_lie_near_each_other_are_read_together():
    random = np.random.default_rng(3)
    table = random.standard_normal((5000, 4)).astype(ml_dtypes.bfloat16)
    places = random.permutation(5000)
    rows = [(0, int(place)) for place in places]
    for made in ("BF16", "F32"):
        model = Memory(t=table)
        got = read(view_of(["BF16"], made, rows, width=4), [model], [4, 9999])
        assert got.tobytes() == table[places].astype(DTYPES[made]).tobytes()
        assert model.readings < 10


def test_one_row_that_thousands_of_rows_take_is_read_few_times():
    table = np.arange(2048, dtype=np.float32).reshape(2, 1024)
    model = Memory(t=table)
    got = read(view_of(["F32"], "F32", [(0, 1)] * 3000, width=1024), [model])
    assert (got == table[1]).all()
    assert model.readings == 1


def test_rows_that_lie_far_from_each_other_are_read_one_by_one():
    table = np.random.default_rng(4).standard_normal((64, 40_000)).astype(np.float32)
    places = np.random.default_rng(5).permutation(64)
    model = Memory(t=table)
    got = read(view_of(["F32"], "F32", [(0, int(p)) for p in places], width=40_000), [model])
    assert got.tobytes() == table[places].tobytes()
    assert model.readings <= 64


def test_scattered_means_are_read_together_and_keep_their_order_of_addition():
    random = np.random.default_rng(6)
    tables = [random.standard_normal((700, 3)).astype(np.float32) for _ in range(3)]
    means = [
        [(int(d), int(random.integers(700))) for d in random.permutation(3)[: 1 + m % 3]]
        for m in range(700)
    ]
    order = random.permutation(700)
    models = [Memory(t=table) for table in tables]
    view = view_of(["F32"] * 3, "F32", [(MEAN, int(m)) for m in order], means)
    got = read(view, models)
    for row, number in enumerate(order):
        total = np.zeros(3)
        for donor, place in means[number]:
            total += tables[donor][place]
        assert got[row].tobytes() == (total / len(means[number])).astype(np.float32).tobytes()
    assert sum(model.readings for model in models) < 20


def test_rows_that_are_only_moved_keep_bytes_that_are_no_numbers():
    table = np.array([[0x7F81, 0xFF81], [0x7FC1, 0x8000]], dtype=np.uint16)
    view = view_of(["BF16"], "BF16", [(0, 1), (0, 0), (ZERO, -1)], width=2)
    opened = view.open([Memory(t=table)])
    out = np.full(6, 1, np.uint16)
    opened.read_into(0, 6, out.view(np.uint8))
    assert out.reshape(3, 2).tolist() == [[0x7FC1, 0x8000], [0x7F81, 0xFF81], [0, 0]]


def test_padding_is_the_mean_whatever_is_read_first():
    random = np.random.default_rng(0)
    table = random.standard_normal((1000, 5)).astype(ml_dtypes.bfloat16)
    view = view_of(["BF16"], "F32", [(0, r) for r in range(1000)], width=5, padding=24)
    only = np.empty(24 * 5, np.float32)
    view.open([Memory(t=table)]).read_into(5000, 120, only.view(np.uint8))
    whole = read(view, [Memory(t=table)])
    assert whole[1000:].tobytes() == only.tobytes()
    expected = table.astype(np.float64).sum(axis=0) / 1000
    np.testing.assert_allclose(whole[1000], expected, rtol=1e-6)
    assert (whole[1000:] == whole[1000]).all()


def test_threads_that_read_at_once_get_the_same_rows():
    table = np.random.default_rng(1).standard_normal((400, 6)).astype(np.float32)
    rows = [(0, (r * 7) % 400) for r in range(400)]
    view = view_of(["F32"], "F32", rows, width=6, padding=8)
    opened = view.open([Memory(t=table)])
    expected = read(view, [Memory(t=table)]).reshape(-1)
    got = np.empty_like(expected)
    step = 101

    def work(first):
        for start in range(first * step, len(got), 3 * step):
            part = got[start : start + step]
            opened.read_into(start, len(part), part.view(np.uint8))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.tobytes() == expected.tobytes()


class Doubled:
    """A view of a table whose elements are doubled while they are read."""

    def __init__(self, source):
        self.reads = (source,)
        self.held_bytes = 11

    def to_json(self):
        return {"kind": "doubled"}

    def open(self, inputs):
        return OpenDoubled(self.reads[0], inputs)


class OpenDoubled:
    def __init__(self, source, inputs):
        self.source, self.input = source, inputs[source.model]

    def read_into(self, start, count, buffer):
        read = np.empty(count, np.float32)
        self.input.read_into(self.source.name, 4 * start, read.view(np.uint8))
        np.asarray(buffer).view(np.float32)[:] = 2 * read


def test_rows_of_a_table_that_has_a_view_of_its_own():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    inner = Source(0, "t", "F32")
    view = view_of(["F32"], "F32", [(0, 3), (0, 1)])
    view = RowsView(
        tables=(Source(0, "t", "F32", Doubled(inner)),),
        **{
            name: getattr(view, name)
            for name in ("width", "dtype", "donor", "place", "starts", "mean_donor", "mean_place")
        },
    )
    assert (read(view, [Memory(t=table)], [2, 5]) == 2 * table[[3, 1]]).all()
    assert view.reads == (inner,)
    assert view.held_bytes >= 11


def test_a_view_pickles_compares_and_tells_what_it_is():
    rows = [(0, 1), (1, 0), (ZERO, -1), (MEAN, 0)]
    view = view_of(["F32", "BF16"], "F32", rows, [[(0, 0), (1, 1)]], padding=2)
    again = pickle.loads(pickle.dumps(view))
    assert again == view
    assert hash(again) == hash(view)
    assert view != view_of(["F32", "BF16"], "F32", rows, [[(0, 0), (1, 2)]], padding=2)
    assert view != "a table"
    told = view.to_json()
    assert told == again.to_json()
    counts = {key: told[key] for key in ("rows", "own", "other", "zero", "mean", "padding")}
    assert counts == {"rows": 6, "own": 1, "other": 1, "zero": 1, "mean": 1, "padding": 2}
    assert told["tables"] == [[0, "t"], [1, "t"]]


def test_a_number_too_large_for_float32_becomes_infinite_in_silence():
    table = np.array([[1e300, -1e300, 1.0]])
    view = view_of(["F32", "F64"], "F32", [(1, 0)])
    assert read(view, [Memory(t=np.zeros((1, 3), np.float32)), Memory(t=table)]).tolist() == [
        [np.inf, -np.inf, 1.0]
    ]


@pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are those of little-endian")
def test_the_bytes_of_means_are_known():
    random = np.random.default_rng(5)
    tables = [random.standard_normal((50, 4)).astype(np.float32) for _ in range(3)]
    means = [[(0, r), (1, 49 - r), (2, r)] for r in range(50)]
    view = view_of(["F32"] * 3, "F32", [(MEAN, r) for r in range(50)], means, 4, 2)
    made = read(view, [Memory(t=table) for table in tables])
    total = tables[0].astype(np.float64) + tables[1][::-1]
    total = (total + tables[2]) / 3
    assert made[:50].tobytes() == total.astype(np.float32).tobytes()

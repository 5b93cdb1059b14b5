"""Arcee fusion: the elements of a model that matter beside its base, by rows' divergence."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from weightshare.merging.elements import Array
from weightshare.merging.gram import appended
from weightshare.merging.method import Method, Pass, Survey, Tensor, Tile, at_rows

# Elements whose importance is held at a time.
_SCRATCH = 1 << 20
# Bits of the lower of the two digits of a float32 key.
_LOW_BITS = 15


def _base(tile: Tile) -> Array:
    assert tile.base is not None
    return tile.base


def _rows(tile: Tile) -> slice:
    row = max(1, tile.tensor.row)
    first = tile.start // row
    return slice(first, first + tile.models[0].size // row)


def _divergences(tile: Tile) -> Array:
    from weightshare._core import fusion as _fusion

    row = max(1, tile.tensor.row)
    out = np.empty(tile.models[0].size // row)
    _fusion.row_divergences(out, tile.models[0], _base(tile), row, tile.threads)
    return out


def _importances(tile: Tile, of_rows: Array) -> Iterator[Array]:
    """Yield the importance of some rows after the other, or of pieces of a long row."""
    from weightshare._core import fusion as _fusion

    row = max(1, tile.tensor.row)
    step = _SCRATCH // row * row if row <= _SCRATCH else _SCRATCH
    size = tile.models[0].size
    scratch = np.empty(min(step, size), dtype=np.float32)
    model, base = tile.models[0], _base(tile)
    place = 0
    while place < size:
        # A piece of a long row is a row with that row's number.
        stop = min(size, place + step, size if row <= _SCRATCH else (place // row + 1) * row)
        width = min(row, stop - place)
        first = place // row
        factors = of_rows[first : first + (stop - place) // width]
        found = scratch[: stop - place]
        _fusion.importance(found, model[place:stop], base[place:stop], factors, width, tile.threads)
        yield found
        place = stop


def _histogram_pass(of_rows: Array, level: int, prefixes: list[int]) -> Pass:
    from weightshare._core import selection as _selection

    def look(tile: Tile) -> Array:
        counts = np.zeros((len(prefixes), _selection.HISTOGRAM), dtype=np.int64)
        for found in _importances(tile, of_rows[_rows(tile)]):
            ranked = [found] * len(prefixes)
            _selection.count_digits(counts, ranked, None, level, prefixes, threads=tile.threads)
        return counts

    return Pass(look, lambda total, told: told if total is None else total + told)


def _digit_of_rank(counts: list[int], rank: int) -> tuple[int, int]:
    """Return the digit that holds the element of that ascending rank, and its rank among them."""
    below = 0
    for digit, upto in enumerate(accumulate(counts)):
        if rank < upto:
            return digit, rank - below
        below = upto
    raise AssertionError("a histogram counts every element")


def _survey(tensor: Tensor) -> Survey:
    from weightshare._core import selection as _selection

    parts = yield Pass(_divergences, appended)
    of_rows = np.concatenate(parts)
    last = tensor.size - 1
    ranks = [last // 4, last // 2, 3 * last // 4]
    digits = _selection.HISTOGRAM - 1
    high = yield _histogram_pass(of_rows, 0, [0])
    tops = [_digit_of_rank(high[0, :digits].tolist(), rank) for rank in ranks]
    low = yield _histogram_pass(of_rows, 1, [digit for digit, _ in tops])
    keys = [
        digit << _LOW_BITS | _digit_of_rank(counts[:digits].tolist(), rank)[0]
        for counts, (digit, rank) in zip(low, tops, strict=True)
    ]
    quartile, median, upper = np.array(keys, dtype=np.uint32).view(np.float32).tolist()
    return of_rows, median + 1.5 * (upper - quartile)


def _scratch(tensor: Tensor) -> int:
    """Return the bytes of the divergences of all rows, which are held twice while they are joined."""
    return 16 * (tensor.size // max(1, tensor.row))


def _combine(tile: Tile, found: tuple[Array, float]) -> None:
    from weightshare._core import fusion as _fusion

    of_rows, threshold = found
    row = max(1, tile.tensor.row)
    model, base, factors = tile.models[0], _base(tile), of_rows[_rows(tile)]
    _fusion.keep_important(tile.out, model, base, factors, row, threshold, tile.threads)


ARCEE_FUSION = Method(
    name="arcee_fusion",
    summary=(
        "x where |x - base| KL(row) is at least median + 1.5 (Q3 - Q1) of it over the tensor, else"
        " the base; KL of the softmax of a row of x from that of the base"
    ),
    source="Arcee Fusion, as mergekit has it",
    parameters=(),
    combine=_combine,
    base="required",
    max_models=1,
    survey=_survey,
    unit=at_rows,
    scratch=_scratch,
    differs=(
        "the output has the dtype of the base, where mergekit writes float32; quartiles are of all"
        " elements, where mergekit draws a random million of a larger tensor"
    ),
)

METHODS = (ARCEE_FUSION,)

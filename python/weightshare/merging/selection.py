"""Exact order statistics of a tensor that is seen tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from weightshare.merging.elements import Array
from weightshare.merging.method import Pass, Tile

Quantity = Literal["magnitude", "variance"]
# What is ranked: some tensors, each by itself or all by their variance, less a base.
Read = Callable[[Tile], tuple[list[Array], Array | None]]
Steps = Generator[Pass, Any, Any]

# Elements whose keys and places may be held, instead of looking at the tensor again.
_MOST_HELD = 1 << 20
# A tensor that is small enough to stay in memory is looked at again rather than held twice.
_SHARE_HELD = 16
# Bytes of a key and a place that are held, with those that are made on the way.
_HELD_BYTES = 32
# Tensors this small are sorted at once: a histogram has more bins than they have elements.
_SMALL = 1 << 14
# Keys that lie so close together are counted one by one, which is quicker than sorting them.
_SPAN = 1 << 16


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the greatest elements of a ranking end.

    Attributes
    ----------
    key : int
        Bit pattern of the least quantity that is kept; greater ones all are.
    cutoff : int
        Flat index before which elements of just that key are kept: equal ones rank by place.
    """

    key: int
    cutoff: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Some tensors whose elements are ranked.

    Attributes
    ----------
    read : callable
        ``read(tile)`` returns the tensors' elements and the base's, if there is one.
    size : int
        Elements of the whole tensor.
    wide : bool
        Whether to compute in float64, with keys of 63 bits, or in float32, with keys of 31.
    quantity : {"magnitude", "variance"}
        Of each tensor less the base, or over all of them.
    """

    read: Read
    size: int
    wide: bool
    quantity: Quantity = "magnitude"

    @property
    def shifts(self) -> tuple[int, ...]:
        """How many bits lie below the digit of each level."""
        return (47, 31, 15, 0) if self.wide else (15, 0)

    def one(self, tile: Tile, index: int) -> tuple[list[Array], Array | None]:
        """Return what one of the rankings is made from."""
        arrays, base = self.read(tile)
        return (arrays if self.quantity == "variance" else [arrays[index]]), base


def find_cuts(ranking: Ranking, wanted: Sequence[tuple[int, int]], exact: bool = False) -> Steps:
    """Find which elements are the greatest, in one to four looks at a tensor.

    Parameters
    ----------
    ranking : Ranking
        What is ranked.
    wanted : sequence of (int, int)
        Tensors, by their place in what is read, and how many elements of each: 1 to its size.
    exact : bool
        Whether the key must be that of an element; else any that parts the same elements will do.

    Returns
    -------
    generator
        Yields each `Pass`, is sent its total, and returns a list of `Cut`.
    """
    if not wanted:
        return []
    if ranking.size <= _SMALL:
        return (yield from _gather(ranking, -1, [(index, 0, k) for index, k in wanted]))
    counts = yield first_digits(ranking)
    return (yield from refine_cuts(ranking, counts, wanted, exact))


def first_digits(ranking: Ranking) -> Pass:
    """Return the pass that counts the first digit in every ranking; zeros are counted last."""
    return _count(ranking, 0, None, 0)


def refine_cuts(
    ranking: Ranking, counts: Array, wanted: Sequence[tuple[int, int]], exact: bool = False
) -> Steps:
    """Find the cuts, from the total of `first_digits`; see `find_cuts`."""
    room = _most_held(ranking.size) // max(1, len(wanted))
    cuts: list[Cut | None] = [None] * len(wanted)
    held, held_places, deeper, deeper_places = [], [], [], []
    for place, (index, k) in enumerate(wanted):
        digit, rest, here = _digit_of(counts[index], k)
        zeros = int(counts[index][-1])
        if digit == 0 and rest > here - zeros:
            # A task vector of zero is nothing, kept or not.
            cuts[place] = Cut(0, ranking.size)
        elif rest == here and not exact:
            cuts[place] = Cut(digit << ranking.shifts[0], ranking.size)
        elif here <= room:
            held.append((index, digit, rest))
            held_places.append(place)
        else:
            deeper.append(_refine(ranking, index, digit, rest, room))
            deeper_places.append(place)
    first = [_gather(ranking, 0, held)] if held else []
    found = yield from together([*first, *deeper])
    settled = [*(found.pop(0) if held else []), *found]
    for place, cut in zip([*held_places, *deeper_places], settled, strict=True):
        cuts[place] = cut
    return cuts


def _most_held(size: int) -> int:
    return min(_MOST_HELD, max(_SMALL, size // _SHARE_HELD))


def ranking_bytes(size: int) -> int:
    """Return the bytes that `find_cuts` may hold at once for a tensor of so many elements."""
    return _HELD_BYTES * min(size, _most_held(size))


def _digit_of(counts: Array, k: int) -> tuple[int, int, int]:
    """Return the digit of the k-th greatest, its rank among those of that digit, and their number."""
    from_top = np.cumsum(counts[-2::-1])
    place = int(np.searchsorted(from_top, k))
    digit = len(from_top) - 1 - place
    return digit, k - (int(from_top[place - 1]) if place else 0), int(counts[digit])


def together(steps: Sequence[Steps]) -> Steps:
    """Run several surveys of one tensor side by side; return what each returns, in their order."""
    results: list[Any] = [None] * len(steps)
    waiting: dict[int, Pass] = {}

    def advance(index: int, total: Any) -> None:
        try:
            waiting[index] = steps[index].send(total)
        except StopIteration as end:
            results[index] = end.value

    for index in range(len(steps)):
        advance(index, None)
    while waiting:
        now, waiting = waiting, {}
        totals = yield _joined(list(now.values()))
        for index, total in zip(now, totals, strict=True):
            advance(index, total)
    return results


def _joined(passes: list[Pass]) -> Pass:
    def look(tile: Tile) -> list[Any]:
        return [part.look(tile) for part in passes]

    def fold(totals: list[Any], told: list[Any]) -> list[Any]:
        parts = zip(passes, totals, told, strict=True)
        return [part.fold(total, news) for part, total, news in parts]

    return Pass(look, fold, [part.start for part in passes])


def _count(ranking: Ranking, level: int, index: int | None, prefix: int) -> Pass:
    """Count the digits of one ranking, or of all of them at once."""

    def look(tile: Tile) -> Array:
        from weightshare._core import selection as _selection

        arrays, base = ranking.read(tile) if index is None else ranking.one(tile, index)
        n = 1 if ranking.quantity == "variance" else len(arrays)
        counts = np.zeros((n, _selection.HISTOGRAM), dtype=np.int64)
        _selection.count_digits(
            *(counts, arrays, base, level, [prefix] * n),
            *(ranking.quantity, ranking.wide, tile.threads),
        )
        return counts

    def fold(total: Array | None, told: Array) -> Array:
        return told if total is None else np.add(total, told, out=total)

    return Pass(look, fold)


def _refine(ranking: Ranking, index: int, prefix: int, k: int, room: int) -> Steps:
    """Follow the k-th greatest of a prefix down the digits, until the rest can be held."""
    for level, shift in enumerate(ranking.shifts[1:], start=1):
        counts = (yield _count(ranking, level, index, prefix))[0]
        digit, k, here = _digit_of(counts, k)
        prefix = (prefix << (15 if shift == 0 else 16)) | digit
        if shift == 0 and k == here:
            return Cut(prefix, ranking.size)
        if here <= room and shift > 0:
            return (yield from _gather(ranking, level, [(index, prefix, k)]))[0]
    return Cut(prefix, (yield from _place_of(ranking, index, prefix, k)))


def _gather(ranking: Ranking, level: int, wanted: list[tuple[int, int, int]]) -> Steps:
    """Hold all elements of some (ranking, prefix), and cut off the first k, when they are there."""

    def look(tile: Tile) -> list[tuple[Array, Array]]:
        from weightshare._core import selection as _selection

        which, prefixes, _ = zip(*wanted, strict=True)
        found = _selection.gather_digits(
            *(*ranking.read(tile), level, which, prefixes),
            *(ranking.quantity, ranking.wide, tile.threads),
        )
        return [(keys, places + tile.start) for keys, places in found]

    def fold(total: list[Any], told: list[tuple[Array, Array]]) -> list[Any]:
        total.append(told)
        return total

    parts = yield Pass(look, fold, [])
    cuts = []
    for pieces, (_, _, k) in zip(zip(*parts, strict=True), wanted, strict=True):
        keys, places = (_end_to_end(arrays) for arrays in zip(*pieces, strict=True))
        key, rest = _key_of(keys, k)
        cuts.append(Cut(key, int(places[np.flatnonzero(keys == key)[rest - 1]]) + 1))
    return cuts


def _end_to_end(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _key_of(keys: Array, k: int) -> tuple[int, int]:
    """Return the k-th greatest key, and its rank among those that equal it."""
    least = int(keys.min())
    if int(keys.max()) - least < _SPAN:
        digit, rest, _ = _digit_of(np.append(np.bincount(keys - least), 0), k)
        return least + digit, rest
    key = int(np.partition(keys, len(keys) - k)[len(keys) - k])
    return key, k - int(np.count_nonzero(keys > key))


def _place_of(ranking: Ranking, index: int, key: int, k: int) -> Steps:
    """Find where the first k elements of a key end."""

    def look(tile: Tile) -> tuple[int, Array]:
        from weightshare._core import selection as _selection

        arrays, base = ranking.one(tile, index)
        bits = _selection.mark_key(arrays, base, key, ranking.quantity, ranking.wide, tile.threads)
        return tile.start, bits

    def fold(total: tuple[int, int], told: tuple[int, Array]) -> tuple[int, int]:
        left, cutoff = total
        start, bits = told
        if left == 0:
            return total
        so_far = np.cumsum(np.bitwise_count(bits), dtype=np.int64)
        if so_far[-1] < left:
            return left - int(so_far[-1]), cutoff
        byte = int(np.searchsorted(so_far, left))
        left -= int(so_far[byte - 1]) if byte else 0
        ones = np.flatnonzero(np.unpackbits(bits[byte : byte + 1], bitorder="little"))
        return 0, start + 8 * byte + int(ones[left - 1]) + 1

    _, cutoff = yield Pass(look, fold, (k, 0))
    return cutoff

"""Inner products of the models of one tensor, the same however the tensor is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import numpy as np

from weightshare.merging.elements import Array
from weightshare.merging.method import CHUNK, Pass, Tile

# An (n, n) table of inner products.
Gram = list[list[float]]


def exact_sum(values: Iterable[float]) -> float:
    """Return the sum, rounded once; NaN where there is no sum, as of infinities of both signs.

    Parameters
    ----------
    values : iterable of float
        In any order: the result does not depend on it.

    Returns
    -------
    float
        The sum.

    Examples
    --------
    >>> exact_sum([1e100, 1.0, -1e100]), exact_sum([float("inf"), -float("inf")])
    (1.0, nan)
    """
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return math.nan


def appended(total: list[Any] | None, told: Any) -> list[Any]:
    """Return the parts of all tiles in their order, for a `Pass` that keeps them apart."""
    total = [] if total is None else total
    total.append(told)
    return total


def gram_pass(tensors: Callable[[Tile], Sequence[Array]], *, deltas: bool) -> Pass:
    """Return the look at a tensor that `folded_gram` makes inner products of.

    Parameters
    ----------
    tensors : callable
        ``tensors(tile)`` returns the arrays whose inner products are taken.
    deltas : bool
        Whether the tile's base is subtracted from each.

    Returns
    -------
    Pass
        Its tiles must begin at multiples of `CHUNK`.
    """

    def look(tile: Tile) -> Array:
        from weightshare._core import spherical as _spherical

        arrays = list(tensors(tile))
        chunks = -(-arrays[0].size // CHUNK)
        out = np.empty((chunks, len(arrays), len(arrays)))
        base = tile.base if deltas else None
        _spherical.chunk_products(out, arrays, CHUNK, base, tile.threads)
        return out

    return Pass(look, appended)


def folded_gram(parts: Sequence[Array]) -> Gram:
    """Return the inner products of a whole tensor from those of its chunks, each summed exactly.

    Parameters
    ----------
    parts : sequence of ndarray, shape (chunks, n, n)
        What `gram_pass` found in each tile.

    Returns
    -------
    list of list of float
        All NaN when one is not finite: a vector that is not finite has no direction.
    """
    chunks = np.concatenate(parts)
    n = chunks.shape[1]
    gram = [[exact_sum(chunks[:, i, j].tolist()) for j in range(n)] for i in range(n)]
    if all(math.isfinite(value) for row in gram for value in row):
        return gram
    return [[math.nan] * n for _ in range(n)]


def gram_of(
    tensors: Callable[[Tile], Sequence[Array]], *, deltas: bool
) -> Generator[Pass, Any, Gram]:
    """Take one pass over a tensor and return its inner products; for ``yield from`` in a survey."""
    parts = yield gram_pass(tensors, deltas=deltas)
    return folded_gram(parts)


def norm(squared: float) -> float:
    """Return the square root of a squared norm that rounding may have made negative."""
    return math.sqrt(squared) if not squared < 0.0 else 0.0


def clamped(cosine: float) -> float:
    """Return a cosine in [-1, 1]; NaN stays NaN."""
    if cosine > 1.0:
        return 1.0
    return -1.0 if cosine < -1.0 else cosine

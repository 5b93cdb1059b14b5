"""Inner products of the models of one tensor, the same however the tensor is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from weightshare.merging.elements import Array
from weightshare.merging.method import CHUNK, Pass, Tile

# An (n, n) table of inner products.
Gram = list[list[float]]


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

    return Pass(look, _added)


def _added(total: Array | None, told: Array) -> Array:
    """Return the sums over chunks so far, added one by one: an order that no cut changes."""
    total = np.zeros(told.shape[1:]) if total is None else total
    with np.errstate(over="ignore", invalid="ignore"):
        for chunk in told:
            total = total + chunk
    return total


def folded_gram(total: Array) -> Gram:
    """Return the inner products of a whole tensor as numbers.

    Parameters
    ----------
    total : ndarray, shape (n, n)
        What the pass of `gram_pass` added up.

    Returns
    -------
    list of list of float
        All NaN when one is not finite: a vector that is not finite has no direction.
    """
    gram: Gram = total.tolist()
    if all(math.isfinite(value) for row in gram for value in row):
        return gram
    return [[math.nan] * len(gram) for _ in gram]


def gram_of(
    tensors: Callable[[Tile], Sequence[Array]], *, deltas: bool
) -> Generator[Pass, Any, Gram]:
    """Take one pass over a tensor and return its inner products; for ``yield from`` in a survey."""
    total = yield gram_pass(tensors, deltas=deltas)
    return folded_gram(total)


def norm(squared: float) -> float:
    """Return the square root of a squared norm that rounding may have made negative."""
    return math.sqrt(squared) if not squared < 0.0 else 0.0


def clamped(cosine: float) -> float:
    """Return a cosine in [-1, 1]; NaN stays NaN."""
    if cosine > 1.0:
        return 1.0
    return -1.0 if cosine < -1.0 else cosine

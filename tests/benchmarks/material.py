"""Data for the benchmarks, made cheaply: a random tile with an offset, repeated; and what is there to use."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np

TILE = 1 << 20
DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
MEAN = 100.0  # with a standard deviation of 1: what float32 sums lose shows at once


def tiles(n: int, mean: float = MEAN, seed: int = 0, dtype: str = "float32") -> Any:
    """n different rows of one tile, normal with that mean: all that there is of random numbers."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((n, TILE), np.float32) + np.float32(mean)
    return drawn.astype(DTYPES[dtype])


def repeated(rows: Any, size: int, pad: int = 0) -> Any:
    """Each row of tiles repeated to `size` elements, a multiple of the tile; `pad` between rows."""
    w = np.empty((len(rows), size + pad), rows.dtype)[:, :size]
    for row, tile in zip(w, rows, strict=True):
        row.reshape(-1, TILE)[...] = tile
    return w


def error_of_tiles(result: Any, exact: Any) -> float:
    """Largest error of the first, middle and last tile of each row, over the row's largest value."""
    places = {0, result.shape[1] // TILE // 2, result.shape[1] // TILE - 1}
    scale = np.abs(exact).max(axis=-1)
    pieces = [result[:, k * TILE : (k + 1) * TILE] for k in places]
    wrong = [np.abs(piece.astype(np.float64) - exact).max(axis=-1) for piece in pieces]
    return float((np.max(wrong, axis=0) / scale).max())


def installed(package: str) -> bool:
    """Whether a peer is there."""
    return find_spec(package) is not None


def cached_fraction(path: str) -> float:
    """The share of a file that is in the page cache, by a sample of one byte in each MiB."""
    size = os.path.getsize(path)
    number = os.open(path, os.O_RDONLY)
    places = range(0, size, 1 << 20)
    try:
        return sum(_is_cached(number, place) for place in places) / max(1, len(places))
    finally:
        os.close(number)


def _is_cached(number: int, place: int) -> bool:
    try:
        os.preadv(number, [bytearray(1)], place, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True

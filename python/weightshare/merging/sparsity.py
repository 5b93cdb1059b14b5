"""Sparse task vectors: which elements are kept, and by how much they are scaled."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from weightshare.merging.elements import Array
from weightshare.merging.method import CHUNK, Pass, Tensor, Tile
from weightshare.merging.selection import Cut, Quantity, Ranking

# Norms this small are not divided by.
_NOTHING = 1e-7
_WORDS = 1 << 32
# Bits that tell what masks by rank or chance keep are held up to so many bytes, not drawn again.
_MOST_HELD = 32 << 20
_KINDS = ("all", "none", "magnitude", "band", "random", "ranked", "held", "variance")


@dataclass(frozen=True, slots=True)
class Mask:
    """Which elements of one task vector are kept.

    Attributes
    ----------
    kind : str
        ``"all"``, ``"none"``, ``"magnitude"``, ``"band"``, ``"random"``, ``"ranked"`` or
        ``"variance"``.
    fields : tuple of int
        A cut for magnitude and variance, two for a band; else the stream of random words and the
        bound below which they keep.
    span : tuple of float
        For ranks: the probability that the least of a row is kept, and that the greatest is.
    """

    kind: str
    fields: tuple[int, ...] = ()
    span: tuple[float, float] = (0.0, 0.0)

    @property
    def drops(self) -> bool:
        """Whether it keeps some elements and not others."""
        return self.kind not in ("all", "none")


ALL, NONE = Mask("all"), Mask("none")


@dataclass(frozen=True)
class Sparse:
    """The masks of all models of one tensor, as the core takes them.

    Attributes
    ----------
    masks : tuple of Mask
        One for each model.
    scales : tuple of float
        What the kept elements of each are multiplied by.
    chunk : int
        Elements that are taken together.
    held : tuple of ndarray or None
        For masks of kind ``"held"``: one bit for each element of the whole tensor, lowest first.
    """

    masks: tuple[Mask, ...]
    scales: tuple[float, ...]
    chunk: int
    held: tuple[Array | None, ...] = ()
    fields: Array = field(init=False, repr=False)
    spans: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fields = np.zeros((len(self.masks), 5), dtype=np.int64)
        for row, mask in zip(fields, self.masks, strict=True):
            row[0] = _KINDS.index(mask.kind)
            row[1 : 1 + len(mask.fields)] = mask.fields
        spans = np.array([mask.span for mask in self.masks], dtype=np.float64)
        object.__setattr__(self, "fields", fields)
        object.__setattr__(self, "spans", spans)

    def only(self, chosen: Sequence[int]) -> Sparse:
        """Return the same for some of the models."""
        return replace(
            self,
            masks=tuple(self.masks[j] for j in chosen),
            scales=tuple(self.scales[j] for j in chosen),
        )


def chunk_of(tensor: Tensor, ranked: bool) -> int:
    """Return how many elements are taken together; runs of whole rows when rows are ranked."""
    if not ranked:
        return CHUNK
    row = max(1, tensor.row)
    # Multiples of 8 rows, so that bits of one chunk do not share a byte with those of the next.
    return max(1, CHUNK // (8 * row)) * 8 * row


def by_cut(cut: Cut, kind: str = "magnitude") -> Mask:
    """Return the mask that keeps what a cut does."""
    return Mask(kind, (cut.key, cut.cutoff))


def by_band(low: Cut, top: Cut) -> Mask:
    """Return the mask that keeps what one cut does and a stricter one does not."""
    return Mask("band", (low.key, low.cutoff, top.key, top.cutoff))


def by_chance(tensor: Tensor, index: int, density: float) -> Mask:
    """Return the mask that keeps each element with that probability."""
    return Mask("random", (_stream(tensor, index), math.ceil(density * _WORDS)))


def by_rank(tensor: Tensor, index: int, density: float, epsilon: float) -> Mask:
    """Return the mask that keeps with a probability that grows with the rank in the row."""
    return Mask("ranked", (_stream(tensor, index), 0), (density - epsilon, density + epsilon))


def _stream(tensor: Tensor, index: int) -> int:
    """Return the key of the random words of one model's tensor, as a signed 64-bit integer."""
    text = f"{tensor.seed}:{index}:{tensor.name}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def is_wide(tensor: Tensor) -> bool:
    """Return whether task vectors are computed in float64: when a model or the base is float64."""
    return np.dtype(np.float64) in tensor.dtypes


def magnitudes(tensor: Tensor, quantity: Quantity = "magnitude") -> Ranking:
    """Return the ranking of the task vectors of a tensor, each by magnitude or all by variance."""
    return Ranking(lambda tile: (tile.models, tile.base), tensor.size, is_wide(tensor), quantity)


def may_hold(sparse: Sparse, chosen: Sequence[int], size: int) -> bool:
    """Return whether the bits of all masks by rank or chance may be held at once."""
    drawn = all(sparse.masks[j].kind in ("ranked", "random") for j in chosen)
    return drawn and len(chosen) * size // 8 <= _MOST_HELD


def norms(sparse: Sparse, chosen: Sequence[int], power: int, hold: bool = False) -> Pass:
    """Return the pass over the norms of some of the task vectors, before and behind their masks.

    Parameters
    ----------
    sparse : Sparse
        The masks.
    chosen : sequence of int
        Which models, at least one.
    power : int
        1 for sums of magnitudes, 2 for sums of squares.
    hold : bool
        Whether to tell as well which elements the masks by rank or chance keep.

    Returns
    -------
    Pass
        Its total is a list of pairs: an array of shape (chunks, 2, models), for `total_norms`, and
        an array of bits for each model, or None.
    """
    part = sparse.only(chosen)

    def look(tile: Tile) -> tuple[Array, Array | None]:
        from weightshare._core import sparsity as _sparsity

        assert tile.base is not None
        shape = (-(-tile.base.size // sparse.chunk), len(chosen))
        every, kept = np.empty(shape), np.empty(shape)
        models = [tile.models[j] for j in chosen]
        place = (tile.start, max(1, tile.tensor.row), sparse.chunk)
        bits = np.empty((len(chosen), -(-tile.base.size // 8)), np.uint8) if hold else None
        _sparsity.chunk_norms(
            *(every, kept, models, tile.base, part.fields, part.spans, *place),
            power=power,
            bits=bits,
            wide=is_wide(tile.tensor),
            threads=tile.threads,
        )
        return np.stack([every, kept], axis=1), bits

    def fold(total: list[Any], told: tuple[Array, Array | None]) -> list[Any]:
        total.append(told)
        return total

    return Pass(look, fold, [])


def total_norms(parts: list[Any]) -> list[list[float]]:
    """Return the norms before the masks, and those behind them, of each chosen model.

    The sums are exact and rounded once, so it does not matter how the tensor was cut.
    """
    chunks = np.concatenate([part[0] for part in parts])
    return [[_sum(chunks[:, side, j]) for j in range(chunks.shape[2])] for side in (0, 1)]


def _sum(values: Array) -> float:
    try:
        return math.fsum(values.tolist())
    except OverflowError:
        return math.inf


def rescaled(sparse: Sparse, chosen: Sequence[int], parts: list[Any]) -> Sparse:
    """Return the masks with scales that give each task vector its norm back."""
    scales = list(sparse.scales)
    for j, before, after in zip(chosen, *total_norms(parts), strict=True):
        if not (before < _NOTHING or after < _NOTHING):
            scales[j] = before / after
    if parts[0][1] is None:
        return replace(sparse, scales=tuple(scales))
    masks = list(sparse.masks)
    held: list[Array | None] = [None] * len(scales)
    for place, j in enumerate(chosen):
        masks[j] = Mask("held")
        held[j] = np.concatenate([bits[place] for _, bits in parts])
    return replace(sparse, masks=tuple(masks), scales=tuple(scales), held=tuple(held))


def sum_tile(tile: Tile, sparse: Sparse, **ballot: Any) -> None:
    """Write the base and the sum of the masked task vectors; see `sum_task_vectors` of the core."""
    from weightshare._core import sparsity as _sparsity

    assert tile.base is not None
    place = (tile.start, max(1, tile.tensor.row), sparse.chunk)
    first, last = tile.start // 8, -(-(tile.start + tile.base.size) // 8)
    _sparsity.sum_task_vectors(
        *(tile.out, tile.models, tile.base, sparse.fields, sparse.spans, *place),
        wide=is_wide(tile.tensor),
        held=[None if bits is None else bits[first:last] for bits in sparse.held],
        threads=tile.threads,
        **ballot,
    )

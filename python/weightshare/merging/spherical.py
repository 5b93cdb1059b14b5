"""Merge methods of angles and norms: slerp, nuslerp, multislerp, karcher, Model Stock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from weightshare.merging.elements import Array, added
from weightshare.merging.gram import Gram, clamped, gram_of, norm
from weightshare.merging.linear import WEIGHT, mix_tile, weights_problem
from weightshare.merging.method import (
    Method,
    Parameter,
    Pass,
    Settings,
    Survey,
    Tensor,
    Tile,
    at_chunks,
    at_rows,
)

# Vectors shorter than this are not normalised, angles with a larger cosine are taken as 0: mergekit's.
_SHORT, _NEARLY_PARALLEL = 1e-8, 0.9995
# Two weights that sum to less than this share equally: mergekit's.
_NO_WEIGHT = 1e-6
# The sine of an angle that has no direction to go: equal or opposite vectors.
_NO_DIRECTION = 1e-8
# A sum of directions this short beside their weights is the rounding of inner products, no direction.
_CANCELLED = 1e-6
# Rows of a tensor whose products by column are summed apart: at most so many, in about so many elements.
_RUN_ROWS, _RUN_ELEMENTS = (8, 64), 1 << 18


def _base_first(tile: Tile) -> list[Array]:
    return [tile.inputs[-1], *tile.models]


def _models(tile: Tile) -> list[Array]:
    return tile.models


def slerp_coefficients(gram: Gram, t: float) -> list[float]:
    """Return what slerp multiplies two vectors with.

    Parameters
    ----------
    gram : list of list of float
        Their inner products.
    t : float
        0 is the first, 1 the second.

    Returns
    -------
    list of float
        Two coefficients; NaN when a vector is not finite.

    Examples
    --------
    >>> slerp_coefficients([[4.0, 0.0], [0.0, 1.0]], 1.0)
    [0.0, 1.0]
    """
    from weightshare._core import elementary as _elementary

    lengths = [norm(gram[i][i]) for i in range(2)]
    scale = math.prod(length if not length <= _SHORT else 1.0 for length in lengths)
    cosine = clamped(gram[0][1] / scale)
    if abs(cosine) > _NEARLY_PARALLEL:
        return [1.0 - t, t]
    angle = _elementary.acos(cosine)
    sine = _elementary.sin(angle)
    return [_elementary.sin((1.0 - t) * angle) / sine, _elementary.sin(t * angle) / sine]


def _survey_slerp(tensor: Tensor) -> Survey:
    gram = yield from gram_of(_base_first, deltas=False)
    return slerp_coefficients(gram, float(tensor.settings.shared["t"]))


def _combine_slerp(tile: Tile, coefficients: Sequence[float]) -> None:
    _mix(tile.out, _base_first(tile), coefficients, None, tile.threads)


def _mix(
    out: Array, models: list[Array], coefficients: Sequence[float], base: Array | None, threads: int
) -> None:
    from weightshare._core import mixing as _mixing

    _mixing.mix([out], models, np.array([coefficients], dtype=np.float64), base, threads)


def _combine_found(tile: Tile, coefficients: list[float]) -> None:
    mix_tile(tile, coefficients, tile.base)


# nuslerp


def _share(settings: Settings) -> float:
    """Return how far from the first model to the second."""
    first, second = settings.of_models("weight")
    return 0.5 if abs(first + second) < _NO_WEIGHT else second / (first + second)


def _direction(tensor: Tensor) -> str:
    shared = tensor.settings.shared
    # A tensor of one axis is one row and one column.
    if shared["nuslerp_flatten"] or len(tensor.shape) < 2:
        return "flat"
    return "columns" if shared["nuslerp_row_wise"] else "rows"


def _columns(tensor: Tensor) -> int:
    return max(1, tensor.size // max(1, tensor.shape[0]))


def _run(tensor: Tensor) -> int:
    """Return the rows whose products by column are summed apart, whatever the tiles."""
    least, most = _RUN_ROWS
    return max(least, min(most, _RUN_ELEMENTS // _columns(tensor)))


def _unit_nuslerp(tensor: Tensor) -> int:
    direction = _direction(tensor)
    if direction == "flat":
        return at_chunks(tensor)
    return at_rows(tensor) if direction == "rows" else _columns(tensor) * _run(tensor)


def _survey_nuslerp(tensor: Tensor) -> Survey | None:
    direction = _direction(tensor)
    if direction == "flat":
        return _survey_nuslerp_flat(tensor)
    return None if direction == "rows" else _survey_nuslerp_columns(tensor)


def _survey_nuslerp_flat(tensor: Tensor) -> Survey:
    from weightshare._core import spherical as _spherical

    gram = yield from gram_of(_models, deltas=True)
    products = gram[0][0], gram[0][1], gram[1][1]
    return list(_spherical.spherical_coefficients(*products, _share(tensor.settings)))


def _survey_nuslerp_columns(tensor: Tensor) -> Survey:
    from weightshare._core import spherical as _spherical

    columns, run = _columns(tensor), _run(tensor)

    def look(tile: Tile) -> Array:
        rows = tile.models[0].size // columns
        out = np.empty((-(-rows // run), 3, columns))
        _spherical.column_products(out, tile.models, columns, run, tile.base, tile.threads)
        return out

    def fold(total: Array | None, told: Array) -> Array:
        with np.errstate(all="ignore"):
            for part in told:
                total = part.copy() if total is None else total + part
        assert total is not None
        return total

    products = yield Pass(look, fold)
    coefficients = np.empty((2, columns))
    share = _share(tensor.settings)
    _spherical.spherical_coefficients_of_columns(coefficients, products, share)
    return coefficients


def _combine_nuslerp(tile: Tile, found: Any) -> None:
    from weightshare._core import spherical as _spherical

    direction = _direction(tile.tensor)
    if direction == "flat":
        _combine_found(tile, found)
    elif direction == "rows":
        share = _share(tile.settings)
        row = tile.tensor.row
        _spherical.nuslerp_rows(tile.out, tile.models, row, share, tile.base, tile.threads)
    else:
        columns = _columns(tile.tensor)
        _spherical.mix_columns(tile.out, tile.models, found, columns, tile.base, tile.threads)


# multislerp


def _weights_multislerp(settings: Settings) -> list[float]:
    weights = settings.of_models("weight")
    if not settings.shared["normalize_weights"]:
        return weights
    total = added(weights)
    return [weight / total for weight in weights]


def _check_multislerp(settings: Settings) -> str | None:
    if not settings.shared["normalize_weights"]:
        return None
    return weights_problem(settings.of_models("weight"), "normalize_weights")


def multislerp_coefficients(gram: Gram, weights: Sequence[float], eps: float) -> list[float]:
    """Return what the weighted mean on the sphere multiplies each vector with.

    The mean direction of the vectors of length one, times the weighted mean of the lengths; the
    weighted sum of the vectors where the directions cancel.

    Parameters
    ----------
    gram : list of list of float
        Inner products of the n vectors.
    weights : sequence of n floats
        One for each.
    eps : float
        Added to each length, and the shortest mean direction that is one.

    Returns
    -------
    list of n floats
        The coefficients.

    Examples
    --------
    >>> multislerp_coefficients([[1.0, 1.0], [1.0, 1.0]], [0.5, 0.5], 0.0)
    [0.5, 0.5]
    """
    n = len(weights)
    lengths = [norm(gram[i][i]) for i in range(n)]
    shares = [
        weight / (length + eps) if length + eps != 0.0 else 0.0
        for weight, length in zip(weights, lengths, strict=True)
    ]
    length = norm(_quadratic(gram, shares))
    reach = added(abs(share) * long for share, long in zip(shares, lengths, strict=True))
    if length < eps or length <= _CANCELLED * reach:
        return list(weights)
    scale = added(weight * long for weight, long in zip(weights, lengths, strict=True))
    return [scale * share / length for share in shares]


def _quadratic(gram: Gram, a: Sequence[float]) -> float:
    n = len(a)
    return math.fsum(_finite(a[i] * a[j] * gram[i][j]) for i in range(n) for j in range(n))


def _finite(value: float) -> float:
    """Return the value, or NaN: sums of infinities are not defined."""
    return value if math.isfinite(value) else math.nan


def _survey_multislerp(tensor: Tensor) -> Survey:
    gram = yield from gram_of(_models, deltas=True)
    weights = _weights_multislerp(tensor.settings)
    return multislerp_coefficients(gram, weights, float(tensor.settings.shared["eps"]))


# karcher


def karcher_coefficients(gram: Gram, max_iter: int, tol: float) -> list[float]:
    """Return what the Karcher mean multiplies each vector with.

    All iterates lie in the span of the vectors, so their inner products are enough. A vector
    exactly opposite to the iterate pulls in no direction and is passed over.

    Parameters
    ----------
    gram : list of list of float
        Inner products of the n vectors.
    max_iter : int
        Most iterations.
    tol : float
        Shortest vector, step and angle that count.

    Returns
    -------
    list of n floats
        The coefficients: mean length times the mean direction.

    Examples
    --------
    >>> karcher_coefficients([[1.0, 0.0], [0.0, 1.0]], 10, 1e-5)
    [0.7071067811865475, 0.7071067811865475]
    """
    n = len(gram)
    lengths = [norm(gram[i][i]) for i in range(n)]
    alive = [i for i in range(n) if not lengths[i] <= tol]
    if not alive:
        return [0.0] * n
    cosines = [[gram[i][j] / (lengths[i] * lengths[j]) for j in alive] for i in alive]
    for place in range(len(alive)):
        if not math.isnan(cosines[place][place]):
            cosines[place][place] = 1.0
    mean = _karcher_direction(cosines, max_iter, tol)
    scale = added(lengths) / n
    coefficients = [0.0] * n
    for place, i in enumerate(alive):
        coefficients[i] = scale * mean[place] / lengths[i]
    return coefficients


def _karcher_direction(cosines: Gram, max_iter: int, tol: float) -> list[float]:
    """Return the mean direction as a combination of directions with these cosines."""
    from weightshare._core import elementary as _elementary

    n = len(cosines)
    start = norm(_quadratic(cosines, [1.0 / n] * n))
    mean = [1.0] + [0.0] * (n - 1) if start < tol or start == 0.0 else [1.0 / n / start] * n
    for _ in range(max_iter):
        step = _karcher_step(cosines, mean, tol)
        size = norm(_quadratic(cosines, step))
        if size < tol or size == 0.0:
            break
        along, across = _elementary.cos(size), _elementary.sin(size) / size
        moved = [along * a + across * b for a, b in zip(mean, step, strict=True)]
        length = norm(_quadratic(cosines, moved))
        mean = [a / length if length != 0.0 else math.nan for a in moved]
    return mean


def _karcher_step(cosines: Gram, mean: Sequence[float], tol: float) -> list[float]:
    from weightshare._core import elementary as _elementary

    n = len(cosines)
    step = [0.0] * n
    back = 0.0
    for i in range(n):
        cosine = clamped(math.fsum(_finite(cosines[i][j] * mean[j]) for j in range(n)))
        angle = _elementary.acos(cosine)
        sine = _elementary.sin(angle)
        if angle < tol or sine < _NO_DIRECTION:
            continue
        pull = angle / sine / n
        step[i] += pull
        back += pull * cosine
    return [a - back * b for a, b in zip(step, mean, strict=True)]


def _survey_karcher(tensor: Tensor) -> Survey:
    shared = tensor.settings.shared
    gram = yield from gram_of(_models, deltas=False)
    return karcher_coefficients(gram, int(shared["max_iter"]), float(shared["tol"]))


def _combine_karcher(tile: Tile, coefficients: list[float]) -> None:
    mix_tile(tile, coefficients, None)


# Model Stock


def _by_row(tensor: Tensor) -> bool:
    return bool(tensor.settings.shared["filter_wise"]) and len(tensor.shape) > 1


def _unit_model_stock(tensor: Tensor) -> int:
    return at_rows(tensor) if _by_row(tensor) else at_chunks(tensor)


def _survey_model_stock(tensor: Tensor) -> Survey | None:
    return None if _by_row(tensor) else _survey_model_stock_flat(tensor)


def _survey_model_stock_flat(tensor: Tensor) -> Survey:
    from weightshare._core import spherical as _spherical

    gram = yield from gram_of(_models, deltas=True)
    n = len(gram)
    return [_spherical.stock_ratio(np.array(gram), n) / n] * n


def _combine_model_stock(tile: Tile, found: Any) -> None:
    from weightshare._core import spherical as _spherical

    if not _by_row(tile.tensor):
        return _combine_found(tile, found)
    assert tile.base is not None
    _spherical.stock_rows(tile.out, tile.models, tile.tensor.row, tile.base, tile.threads)
    return None


SLERP = Method(
    name="slerp",
    summary=(
        "[sin((1-t) a) base + sin(t a) x] / sin(a), a the angle between the two as vectors;"
        " (1-t) base + t x where they are nearly parallel"
    ),
    source="Animating rotation with quaternion curves, Shoemake 1985",
    parameters=(Parameter("t", "0 is the base, 1 the model"),),
    combine=_combine_slerp,
    base="required",
    max_models=1,
    survey=_survey_slerp,
    unit=at_chunks,
)

NUSLERP = Method(
    name="nuslerp",
    summary=(
        "[sin((1-t) a) x_1 + sin(t a) x_2] / sin(a) with t = weight_2 / (weight_1 + weight_2), of"
        " whole tensors, rows or columns; of the deltas when there is a base"
    ),
    source="Animating rotation with quaternion curves, Shoemake 1985",
    parameters=(
        WEIGHT,
        Parameter("nuslerp_flatten", "whole tensors as one vector", default=True, kind="bool"),
        Parameter(
            "nuslerp_row_wise",
            "unless flattened, vectors along the first axis and not the last",
            default=False,
            kind="bool",
        ),
    ),
    combine=_combine_nuslerp,
    base="optional",
    min_models=2,
    max_models=2,
    survey=_survey_nuslerp,
    unit=_unit_nuslerp,
    differs=(
        "angles and norms are float64, so nearly equal bfloat16 models keep their angle; vectors"
        " that are opposite but for rounding are interpolated linearly, where mergekit divides by"
        " the rounding"
    ),
)

MULTISLERP = Method(
    name="multislerp",
    summary=(
        "sum of weight_i |x_i|, times the direction of the sum of weight_i x_i / |x_i|; of the"
        " deltas when there is a base"
    ),
    source="the closed form of a weighted mean on the sphere, taken at its own tangent point",
    parameters=(
        WEIGHT,
        Parameter("normalize_weights", "divide by the sum of weights", default=True, kind="bool"),
        Parameter("eps", "added to lengths; the shortest direction", default=1e-8, low=0.0),
    ),
    combine=_combine_found,
    check=_check_multislerp,
    base="optional",
    min_models=2,
    survey=_survey_multislerp,
    unit=at_chunks,
    differs=(
        "where directions cancel, as of models equal to the base, the weighted sum is taken for"
        " any number of models; mergekit stops at three or more"
    ),
)

KARCHER = Method(
    name="karcher",
    summary="mean of |x_i|, times the Karcher mean of the directions x_i / |x_i|",
    source="Riemannian center of mass, Karcher 1977",
    parameters=(
        Parameter("max_iter", "most iterations", default=10, kind="int", low=0),
        Parameter("tol", "shortest vector, step and angle", default=1e-5, low=0.0),
    ),
    combine=_combine_karcher,
    base="joins",
    min_models=1,
    survey=_survey_karcher,
    unit=at_chunks,
    differs="iterates in float64 on the inner products, so it does not stop at rounding of bfloat16",
)

MODEL_STOCK = Method(
    name="model_stock",
    summary=(
        "base + t * mean of (x_i - base), t = n c / (1 + (n-1) c), c the mean cosine between the"
        " deltas"
    ),
    source="Model Stock, Jang et al. 2024, arXiv:2403.19522",
    parameters=(Parameter("filter_wise", "a ratio for each row", default=False, kind="bool"),),
    combine=_combine_model_stock,
    base="required",
    min_models=2,
    survey=_survey_model_stock,
    unit=_unit_model_stock,
    differs="the base is returned where the ratio is not defined (n = 2, opposite deltas)",
)

METHODS = (SLERP, NUSLERP, MULTISLERP, KARCHER, MODEL_STOCK)

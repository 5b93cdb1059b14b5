"""How alike models are: similarities and distances of all pairs, each model read once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightshare._core import similarity as _core
from weightshare._core.arrays import Array, as_family, as_model_like
from weightshare._core.threads import resolve_threads
from weightshare.errors import ArgumentError
from weightshare.sharing.stretches import (
    CHUNK,
    HeldSums,
    StreamedSums,
    Sums,
    is_open_checkpoint,
)

Matrix = NDArray[np.float64]

_METRICS = ("cosine", "row_cosine", "sign", "procrustes", "cka")
_DISTANCES = ("l2", "relative")
_LEVELS = ("model", "tensor")
_NOISE = 8 * float(np.finfo(np.float64).eps)


def similarity(
    models: Any,
    metric: str = "cosine",
    *,
    base: Any = None,
    level: str = "model",
    center: bool = False,
    threads: int | None = None,
) -> Any:
    """Similarity of all pairs of n models.

    Sums are float64. The diagonal is 1, but for a model of zeros, which has 0 with every model.

    Parameters
    ----------
    models : array (n, ...), or sequence of n arrays or of n mappings name -> array
        Integer tensors of mappings are left out. Open checkpoints are read stretch by stretch,
        never whole, and may differ in their floating-point types; the numbers are those of the
        loaded models. (procrustes and cka need one tensor of each model at a time.)
    metric : {"cosine", "row_cosine", "sign", "procrustes", "cka"}, default "cosine"
        - cosine: ⟨w_i, w_j⟩ / (‖w_i‖ ‖w_j‖), in [-1, 1].
        - row_cosine: mean over rows of the cosine of equal rows (a 1-D tensor is one row; rows of
          zeros are left out).
        - sign: share of equal signs among the elements that are non-zero in both; 0.5 is chance, and
          NaN counts as zero.
        - procrustes: nuclear norm of W_i W_jᵀ over the norms, rows centred, in [0, 1]: it does not
          see a rotation or permutation of the rows (units).
        - cka: linear centred kernel alignment, ‖W_i W_jᵀ‖² / (‖W_i W_iᵀ‖ ‖W_j W_jᵀ‖), in [0, 1];
          likewise. For both, rows are units and columns are samples, and only 2-D tensors count.
    base : like one model, default None
        Subtracted from every model first: the similarity of task vectors.
    level : {"model", "tensor"}, default "model"
        "tensor" gives a matrix for each name. At "model", cosine, row_cosine and sign are those of
        all elements together; procrustes and cka are means over the 2-D tensors.
    center : bool, default False
        Subtract each tensor's mean first, which takes one more pass.
    threads : int, default None
        None means ``OMP_NUM_THREADS``, else the cores this process may use.

    Returns
    -------
    array (n, n) float64, symmetric; for level "tensor" a dict name -> (n, n) (name "" for arrays)

    Raises
    ------
    ArgumentError
        For another metric or level, a model with NaN or infinity, or no tensor that counts.
    ShapeError, NamesError, ElementError, ArgumentTypeError
        If the models do not fit each other.

    References
    ----------
    Kornblith et al. 2019, arXiv:1905.00414 (CKA); Ilharco et al. 2023, arXiv:2212.04089 (task vectors).

    Examples
    --------
    >>> import numpy as np, weightshare as ws
    >>> ws.similarity(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])).round(3)
    array([[1.   , 0.707, 0.   ],
           [0.707, 1.   , 0.   ],
           [0.   , 0.   , 0.   ]])
    """
    _check_word("metric", metric, _METRICS)
    _check_word("level", level, _LEVELS)
    pairs = _Pairs(_sums(models, base, resolve_threads(threads)), bool(center))
    combine = _COMBINE[metric]
    measured = {name: combine.measure(pairs, name) for name in pairs.sums.names}
    parts = {name: part for name, part in measured.items() if part is not None}
    if not parts:
        raise ArgumentError(
            f"models: metric {metric!r} needs float tensors (2-D for procrustes and cka); got none"
        )
    if level == "tensor":
        return {name: combine.finish(part) for name, part in parts.items()}
    if combine.mean:
        # tensors of zeros count neither for nor against: the diagonal has the number of the others
        return _cosines(np.sum([combine.finish(part) for part in parts.values()], axis=0))
    return combine.finish(np.sum(list(parts.values()), axis=0))


def distance(
    models: Any, metric: str = "l2", *, level: str = "model", threads: int | None = None
) -> Any:
    """Distance of all pairs of n models, from the differences themselves.

    Near-equal models do not cancel, as they would in ‖x‖² + ‖y‖² - 2⟨x, y⟩.

    Parameters
    ----------
    models : as in `similarity`
        Open checkpoints too are read stretch by stretch.
    metric : {"l2", "relative"}, default "l2"
        l2: ‖w_i - w_j‖. relative: ‖w_i - w_j‖ / ‖w_i‖ (row i is the reference; 0 where both are zero,
        infinity where only w_i is).
    level : {"model", "tensor"}, default "model"
        "tensor" gives a matrix for each name.
    threads : int, default None
        As in `similarity`.

    Returns
    -------
    array (n, n) float64; for level "tensor" a dict name -> (n, n) (name "" for arrays)

    Raises
    ------
    ArgumentError
        For another metric or level, or a model with NaN or infinity.

    Examples
    --------
    >>> import numpy as np, weightshare as ws
    >>> ws.distance(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0., 5.],
           [5., 0.]])
    """
    _check_word("metric", metric, _DISTANCES)
    _check_word("level", level, _LEVELS)
    sums = _sums(models, None, resolve_threads(threads))
    parts = {name: _squared_distances(sums, name) for name in sums.names}
    if not parts:
        raise ArgumentError("models: expected at least one float tensor, got none")
    if level == "tensor":
        return {name: _distance_of(part, metric) for name, part in parts.items()}
    return _distance_of(np.sum(list(parts.values()), axis=0), metric)


def norms(w: list[Array], threads: int | None = None) -> Matrix:
    """Euclidean norms of arrays of one shape, summed in float64."""
    count = resolve_threads(threads)
    squares = np.empty(len(w))
    for j, array in enumerate(w):
        _core.inner_products(squares[j : j + 1], [array], threads=count)
    return np.sqrt(squares)


def _check_word(argument: str, word: str, legal: tuple[str, ...]) -> None:
    if word not in legal:
        raise ArgumentError(f"{argument}: expected one of {', '.join(legal)}; got {word!r}")


def _sums(models: Any, base: Any, threads: int) -> Sums:
    if isinstance(models, (list, tuple)) and any(map(is_open_checkpoint, models)):
        return StreamedSums(models, base, threads)
    family = as_family(models)
    return HeldSums(family, {} if base is None else as_model_like(base, family, "base"), threads)


class _Pairs:
    """The sums over pairs of one call, tensor by tensor."""

    def __init__(self, sums: Sums, center: bool) -> None:
        self.sums = sums
        self.n = sums.n
        self.center = center
        self._shifts: dict[str, list[float]] = {}

    def _shift(self, name: str) -> list[float]:
        size = math.prod(self.sums.shape(name))
        if not self.center or size == 0:
            return []
        if name not in self._shifts:
            total = np.zeros(self.n)
            self.sums.total(total, name, _add_sums)
            self._finite(total, name)
            self._shifts[name] = [float(mean) for mean in total / size]
        return self._shifts[name]

    def inner_products(self, name: str) -> Matrix:
        products = np.zeros((self.n, self.n))
        shift = self._shift(name)
        self.sums.total(
            products,
            name,
            lambda out, w, base, threads: _core.inner_products(out, w, base, shift, threads),
        )
        return self._without_noise(self._finite(products, name), name)

    def row_cosines(self, name: str) -> Matrix:
        """(n, n): sums of the cosines of rows; on the diagonal the number of rows that are not zero."""
        shape = self.sums.shape(name)
        columns = max(1, shape[-1] if len(shape) > 1 else math.prod(shape))
        cosines = np.zeros((self.n, self.n))
        shift = self._shift(name)
        self.sums.total(
            cosines,
            name,
            lambda out, w, base, threads: _core.row_cosine_sums(
                out, w, columns, base, shift, threads
            ),
            max(1, CHUNK // columns) * columns,
        )
        return self._without_noise(self._finite(cosines, name), name)

    def _without_noise(self, products: Matrix, name: str) -> Matrix:
        """The sums, with 0 for a model of which centring has left rounding errors only."""
        given = self._shift(name)
        shift = np.array(given)
        if shift.size:
            left = np.zeros((self.n, self.n))
            self.sums.total(
                left,
                name,
                lambda out, w, base, threads: _core.inner_products(out, w, base, given, threads),
            )
            size = math.prod(self.sums.shape(name))
            noise = np.diagonal(left) <= (_NOISE * shift) ** 2 * size
            products[noise, :] = products[:, noise] = 0.0
        return products

    def signs(self, name: str) -> Matrix:
        """(2, n, n): equal signs, and elements that are non-zero in both."""
        counts = np.zeros((2, self.n, self.n), np.int64)
        shift = self._shift(name)

        def add(out: Array, w: list[Array], base: Array | None, threads: int) -> None:
            seen, origin = (_centred(w, base, shift), None) if self.center else (w, base)
            _core.count_signs(out[0], out[1], seen, origin, threads)

        self.sums.total(counts, name, add)
        return counts.astype(np.float64)

    def factors(self, name: str) -> list[Matrix] | None:
        """(units, samples) in float64, each unit centred over the samples; of tall ones only R.

        x yᵀ has the singular values of Rx Ryᵀ, so the units enter only through this small factor.
        """
        shape = self.sums.shape(name)
        if len(shape) != 2:
            return None
        self.inner_products(name)
        shift = self._shift(name)
        found: list[list[Matrix]] = [[] for _ in range(self.n)]
        for w, base in self.sums.row_blocks(name):
            for j, x in enumerate(_centred(w, base, shift)):
                found[j].append(_centred_rows(x) if x.size else x)
                if shape[0] > shape[1]:
                    rows = found[j][0] if len(found[j]) == 1 else np.concatenate(found[j])
                    found[j] = [np.asarray(np.linalg.qr(rows, mode="r"))]
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]

    def _finite(self, values: Matrix, name: str) -> Matrix:
        finite = np.isfinite(np.diagonal(values) if values.ndim == 2 else values)
        if not finite.all() and not self.sums.base_is_finite(name):
            raise ArgumentError("base: expected finite values, got NaN or infinity")
        _check_finite(values, self.sums, name)
        return values


def _add_sums(out: Array, w: list[Array], base: Array | None, threads: int) -> None:
    _core.sums(out, w, base, threads)


def _centred(w: list[Array], base: Array | None, shift: list[float]) -> list[Matrix]:
    wide = (x.astype(np.float64) for x in w)
    origin = 0.0 if base is None else base.astype(np.float64)
    return [np.asarray(x - (shift[j] if shift else 0.0) - origin) for j, x in enumerate(wide)]


def _centred_rows(w: Matrix) -> Matrix:
    """Each row less its mean; 0 where only the rounding of equal numbers would be left."""
    mean = w.mean(axis=1, keepdims=True)
    left: Matrix = w - mean
    left[np.abs(left).max(axis=1) <= _NOISE * np.abs(mean[:, 0])] = 0.0
    return left


def _check_finite(values: Matrix, sums: Sums, name: str) -> None:
    finite = np.isfinite(np.diagonal(values) if values.ndim == 2 else values)
    if not finite.all():
        label = sums.label(int(np.argmin(finite)), name)
        raise ArgumentError(
            f"{label}: expected finite values, got NaN, infinity, or squares that overflow float64"
        )


def _squared_distances(sums: Sums, name: str) -> Matrix:
    """(2, n, n): squared distances, and the squared norms along the rows."""
    parts = np.zeros((2, sums.n, sums.n))

    def add(out: Array, w: list[Array], _: Array | None, threads: int) -> None:
        _core.squared_distances(out[0], w, threads)
        for j, array in enumerate(w):
            _core.inner_products(out[1, j, :1], [array], threads=threads)

    sums.total(parts, name, add)
    squares = np.square(np.sqrt(parts[1, :, 0]))
    _check_finite(squares, sums, name)
    if not np.isfinite(parts[0]).all():
        raise ArgumentError(
            f"models: the squared distances of {name!r} overflow float64; scale the models"
        )
    parts[1] = squares[:, np.newaxis]
    return parts


def _distance_of(part: Matrix, metric: str) -> Matrix:
    gaps: Matrix = np.sqrt(part[0])
    if metric == "l2":
        return gaps
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gaps == 0.0, 0.0, gaps / np.sqrt(part[1]))


def _cosines(products: Matrix) -> Matrix:
    length = np.sqrt(np.diagonal(products))
    scale = np.outer(length, length)
    cosines: Matrix = np.zeros_like(products)
    np.divide(products, scale, out=cosines, where=scale > 0.0)
    np.clip(cosines, -1.0, 1.0, out=cosines)
    np.fill_diagonal(cosines, length > 0.0)
    return cosines


def _sign_share(counts: Matrix) -> Matrix:
    return np.asarray(counts[0] / np.maximum(counts[1], 1.0))


def _cross(pairs: _Pairs, name: str, measure: Callable[[Matrix, Matrix], float]) -> Matrix | None:
    matrices = pairs.factors(name)
    if matrices is None:
        return None
    products = np.zeros((len(matrices), len(matrices)))
    for i, x in enumerate(matrices):
        for j in range(i, len(matrices)):
            products[i, j] = products[j, i] = measure(x, matrices[j])
    return products


def _nuclear(x: Matrix, y: Matrix) -> float:
    """Nuclear norm of x yᵀ; for x = y it is the squared norm, so the cosine rule scales it."""
    return (
        float(np.square(x).sum())
        if x is y
        else float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    )


def _alignment(x: Matrix, y: Matrix) -> float:
    """‖x yᵀ‖², the square of its Frobenius norm."""
    return float(np.square(x @ y.T).sum())


class _Measure:
    """How one metric is measured on a tensor, and finished from its sums."""

    def __init__(
        self,
        measure: Callable[[_Pairs, str], Matrix | None],
        finish: Callable[[Matrix], Matrix],
        mean: bool = False,
    ) -> None:
        self.measure = measure
        self.finish = finish
        self.mean = mean


_COMBINE = {
    "cosine": _Measure(_Pairs.inner_products, _cosines),
    "row_cosine": _Measure(_Pairs.row_cosines, _cosines),
    "sign": _Measure(_Pairs.signs, _sign_share),
    "procrustes": _Measure(lambda pairs, name: _cross(pairs, name, _nuclear), _cosines, mean=True),
    "cka": _Measure(lambda pairs, name: _cross(pairs, name, _alignment), _cosines, mean=True),
}

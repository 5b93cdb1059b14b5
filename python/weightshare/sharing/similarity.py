"""How alike models are: similarities and distances of all pairs, each model read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightshare._core import similarity as _core
from weightshare._core.arrays import Array, Family, as_family, as_model_like
from weightshare._core.threads import resolve_threads
from weightshare.errors import ArgumentError

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
        Integer tensors of mappings are left out.
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
    family = as_family(models)
    origin = {} if base is None else as_model_like(base, family, "base")
    pairs = _Pairs(family, origin, bool(center), resolve_threads(threads))
    combine = _COMBINE[metric]
    measured = {name: combine.measure(pairs, name) for name in family.floats}
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
    family = as_family(models)
    count = resolve_threads(threads)
    parts = {name: _squared_distances(family, name, count) for name in family.floats}
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


class _Pairs:
    """The sums over pairs of one call, tensor by tensor."""

    def __init__(self, family: Family, base: dict[str, Array], center: bool, threads: int) -> None:
        self.family = family
        self.base = base
        self.center = center
        self.threads = threads
        self._shifts: dict[str, list[float]] = {}

    def _shift(self, name: str) -> list[float]:
        w = self.family.tensors[name]
        if not self.center or w[0].size == 0:
            return []
        if name not in self._shifts:
            total = np.empty(self.family.n)
            _core.sums(total, w, base=self.base.get(name), threads=self.threads)
            self._finite(total, name)
            self._shifts[name] = [float(mean) for mean in total / w[0].size]
        return self._shifts[name]

    def inner_products(self, name: str) -> Matrix:
        products = np.empty((self.family.n, self.family.n))
        _core.inner_products(
            products,
            self.family.tensors[name],
            base=self.base.get(name),
            shift=self._shift(name),
            threads=self.threads,
        )
        return self._without_noise(self._finite(products, name), name)

    def row_cosines(self, name: str) -> Matrix:
        """(n, n): sums of the cosines of rows; on the diagonal the number of rows that are not zero."""
        w = self.family.tensors[name]
        n_columns = max(1, w[0].shape[-1] if w[0].ndim > 1 else w[0].size)
        sums = np.zeros((self.family.n, self.family.n))
        _core.row_cosine_sums(
            sums,
            w,
            n_columns,
            base=self.base.get(name),
            shift=self._shift(name),
            threads=self.threads,
        )
        return self._without_noise(self._finite(sums, name), name)

    def _without_noise(self, sums: Matrix, name: str) -> Matrix:
        """The sums, with 0 for a model of which centring has left rounding errors only."""
        shift = np.array(self._shift(name))
        if shift.size:
            left = np.empty((self.family.n, self.family.n))
            w, base = self.family.tensors[name], self.base.get(name)
            _core.inner_products(left, w, base=base, shift=list(shift), threads=self.threads)
            noise = np.diagonal(left) <= (_NOISE * shift) ** 2 * w[0].size
            sums[noise, :] = sums[:, noise] = 0.0
        return sums

    def signs(self, name: str) -> Matrix:
        """(2, n, n): equal signs, and elements that are non-zero in both."""
        w = self.family.tensors[name]
        counts = np.zeros((2, self.family.n, self.family.n), np.int64)
        base = self.base.get(name)
        if self.center:
            w, base = self._centred(name), None
        _core.count_signs(counts[0], counts[1], w, base=base, threads=self.threads)
        return counts.astype(np.float64)

    def matrices(self, name: str) -> list[Matrix] | None:
        """The tensors as float64 (units, samples), each unit centred over the samples."""
        if self.family.tensors[name][0].ndim != 2:
            return None
        self.inner_products(name)
        return [_centred_rows(w) if w.size else w for w in self._centred(name)]

    def _centred(self, name: str) -> list[Matrix]:
        base = self.base.get(name)
        shift = self._shift(name) or [0.0] * self.family.n
        wide = (w.astype(np.float64) for w in self.family.tensors[name])
        return [
            w - shift[j] - (0.0 if base is None else base.astype(np.float64))
            for j, w in enumerate(wide)
        ]

    def _finite(self, values: Matrix, name: str) -> Matrix:
        if not np.isfinite(np.diagonal(values) if values.ndim == 2 else values).all():
            base = self.base.get(name)
            if base is not None and not np.isfinite(base.astype(np.float64)).all():
                raise ArgumentError("base: expected finite values, got NaN or infinity")
        _check_finite(values, self.family, name)
        return values


def _centred_rows(w: Matrix) -> Matrix:
    """Each row less its mean; 0 where only the rounding of equal numbers would be left."""
    mean = w.mean(axis=1, keepdims=True)
    left: Matrix = w - mean
    left[np.abs(left).max(axis=1) <= _NOISE * np.abs(mean[:, 0])] = 0.0
    return left


def _check_finite(values: Matrix, family: Family, name: str) -> None:
    finite = np.isfinite(np.diagonal(values) if values.ndim == 2 else values)
    if not finite.all():
        label = family.label(int(np.argmin(finite)), name, "models")
        raise ArgumentError(
            f"{label}: expected finite values, got NaN, infinity, or squares that overflow float64"
        )


def _squared_distances(family: Family, name: str, threads: int) -> Matrix:
    """(2, n, n): squared distances, and the squared norms along the rows."""
    w = family.tensors[name]
    parts = np.empty((2, family.n, family.n))
    _core.squared_distances(parts[0], w, threads=threads)
    squares = np.square(norms(w, threads))
    _check_finite(squares, family, name)
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
    matrices = pairs.matrices(name)
    if matrices is None:
        return None
    if matrices[0].shape[0] > matrices[0].shape[1]:
        # x yᵀ has the singular values of Rx Ryᵀ: units enter only through this small factor
        matrices = [np.asarray(np.linalg.qr(x, mode="r")) for x in matrices]
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

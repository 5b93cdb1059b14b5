"""Mixing matrices from coordinates: interpolation, regression, convolution round a ring."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import ArrayLike

from weightshare._core.numbers import number, real_array, whole
from weightshare.errors import ArgumentError, ShapeError
from weightshare.sharing.mixing.checks import Matrix, line

_MOST_MONOMIALS = 10_000


def interpolation(nodes: ArrayLike, targets: ArrayLike) -> Matrix:
    """Return the Lagrange basis of the nodes at the targets, in barycentric form.

    a_ij = l_j(target_i): models known at the nodes give the polynomial through them at the
    targets. Entries may be negative or above one; many evenly spaced nodes make them huge
    (use Chebyshev nodes, or `regression`).

    Parameters
    ----------
    nodes : array_like, shape (n,)
        Different coordinates of the n models, in any order and unit.
    targets : array_like, shape (m,)
        Where models are wanted, in the same unit; outside the nodes is extrapolation.

    Returns
    -------
    ndarray of float64, shape (m, n)
        Rows sum to one, to the rounding of their entries; a target that is a node has a unit
        row, exactly.

    Raises
    ------
    ShapeError
        If nodes or targets are empty or not one-dimensional.
    ElementError, ArgumentError
        If they are not real and finite, two nodes are equal, or the weights overflow.

    References
    ----------
    Berrut and Trefethen, "Barycentric Lagrange interpolation", 2004, equations 3.3 and 4.2.

    Examples
    --------
    >>> import weightshare as ws
    >>> ws.mixing.interpolation([0.0, 1.0, 2.0], [0.5, 2.0])
    array([[ 0.375,  0.75 , -0.125],
           [ 0.   ,  0.   ,  1.   ]])
    """
    x, t = line(nodes, "nodes"), line(targets, "targets")
    order = np.argsort(x, kind="stable")
    equal = np.flatnonzero(x[order][1:] == x[order][:-1])
    if equal.size:
        first, second = (int(k) for k in order[equal[0] : equal[0] + 2])
        raise ArgumentError(
            f"nodes: expected different coordinates, got {x[first]:g} at {first} and {second}; "
            "merge the models at that node first."
        )
    # an interval of length 4 has capacity 1, which keeps the products in range
    if max(np.abs(x).max(), np.abs(t).max()) > 1e307:
        x, t = x / 16.0, t / 16.0  # exact, and keeps the differences in range
    unit = float(np.ptp(x)) / 4.0 or 1.0
    between = (x[:, None] - x[None, :]) / unit
    np.fill_diagonal(between, 1.0)
    away = (t[:, None] - x[None, :]) / unit
    nearest = np.take_along_axis(away, np.abs(away).argmin(axis=1)[:, None], axis=1)
    hit = nearest[:, 0] == 0.0
    with np.errstate(all="ignore"):  # rows of hits are replaced; overflow is checked below
        weights = 1.0 / between.prod(axis=1)
        parts: Matrix = weights * (nearest / away)
        inside = 1.0 / parts.sum(axis=1)
        outside = away.prod(axis=1) / nearest[:, 0]
        # outside the nodes the sum cancels, and the node polynomial is the accurate factor
        A: Matrix = parts * np.where((t < x.min()) | (t > x.max()), outside, inside)[:, None]
    A[hit] = t[hit, None] == x[None, :]
    if not np.isfinite(A).all():
        raise ArgumentError(
            f"nodes: expected nodes whose weights fit float64, got {x.size} that are too many or "
            "too close; use fewer, or regression."
        )
    return A


def regression(coordinates: ArrayLike, degree: int, ridge: float = 0.0) -> Matrix:
    """Return the hat matrix of a polynomial least-squares fit over the models' coordinates.

    Mixing with it replaces each model by the fitted value at its own coordinates. The basis is
    all monomials up to the total degree in coordinates that are scaled to [-1, 1]; the fit is
    by QR, never by normal equations.

    Parameters
    ----------
    coordinates : array_like, shape (n,) or (n, d)
        Where each model stands, in any unit.
    degree : int
        Total degree, at least 0; 0 gives the mean.
    ridge : float, default 0
        Penalty on the squared coefficients, at least 0. The constant is not penalised, so rows
        keep summing to one.

    Returns
    -------
    ndarray of float64, shape (n, n)
        Symmetric with rows and columns that sum to one; a projection when ridge is 0.

    Raises
    ------
    ShapeError
        If coordinates are empty, or have more than two dimensions.
    ElementError, ArgumentError, ArgumentTypeError
        If coordinates are not real and finite, degree is not a whole number of at least 0,
        ridge is negative, or the coordinates cannot tell the monomials apart (ridge 0).

    References
    ----------
    Golub and Van Loan, "Matrix Computations", 4th edition, 2013, section 5.3.

    Examples
    --------
    >>> import weightshare as ws
    >>> ws.mixing.regression([0.0, 1.0, 2.0], degree=1).round(3)
    array([[ 0.833,  0.333, -0.167],
           [ 0.333,  0.333,  0.333],
           [-0.167,  0.333,  0.833]])
    """
    points = real_array(coordinates, "coordinates")
    if points.ndim not in (1, 2):
        raise ShapeError(
            f"coordinates: expected shape (n,) or (n, d), got {points.shape}; give one row for "
            "each model."
        )
    points = points.reshape(len(points), -1)
    degree = whole(degree, "degree", 0)
    ridge = number(ridge, "ridge", 0.0)
    n, d = points.shape
    count = math.comb(d + degree, d)
    most = _MOST_MONOMIALS if ridge > 0.0 else n
    if count > most:
        raise ArgumentError(
            f"degree: expected at most {most} monomials for {n} models, got {count} from degree "
            f"{degree} in {d} coordinates; lower the degree{'' if ridge else ', or use ridge'}."
        )
    basis = _monomials(points, degree)
    if ridge == 0.0 and np.linalg.matrix_rank(basis) < count:
        raise ArgumentError(
            f"coordinates: expected points that tell {count} monomials apart, got rank "
            f"{np.linalg.matrix_rank(basis)}; lower the degree, drop constant or repeated "
            "coordinates, or use ridge."
        )
    varying = basis[:, 1:] - basis[:, 1:].mean(axis=0)  # what is left when the constant is fitted
    if ridge > 0.0:
        varying = np.vstack([varying, math.sqrt(ridge) * np.eye(count - 1)])
    q = np.linalg.qr(varying)[0][:n]
    A: Matrix = q @ q.T + 1.0 / n
    return A


def _monomials(points: Matrix, degree: int) -> Matrix:
    """Return all monomials up to the total degree, the constant first."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = 0.5 * (high - low)
    scaled = (points - (low + half)) / np.where(half > 0.0, half, 1.0)
    columns = [
        scaled[:, list(factors)].prod(axis=1)
        for total in range(degree + 1)
        for factors in combinations_with_replacement(range(points.shape[1]), total)
    ]
    return np.column_stack(columns)


def circulant(kernel: ArrayLike, n: int) -> Matrix:
    """Return the convolution with a centred kernel round a ring of n models.

    a_{i, i+o} = kernel[o + len(kernel) // 2], with i + o taken modulo n; where a kernel longer
    than the ring meets a model twice, the entries add up.

    Parameters
    ----------
    kernel : array_like, shape (k,)
        Shares from the neighbours; one that sums to one keeps equal models equal.
    n : int
        Number of models, at least 1.

    Returns
    -------
    ndarray of float64, shape (n, n)
        Every row is the one before it, moved by one.

    Raises
    ------
    ShapeError
        If the kernel is empty or not one-dimensional.
    ElementError, ArgumentError, ArgumentTypeError
        If the kernel is not real and finite, or n is not a whole number of at least 1.

    References
    ----------
    Gray, "Toeplitz and circulant matrices: a review", 2006, chapter 3.

    Examples
    --------
    >>> import weightshare as ws
    >>> ws.mixing.circulant([0.25, 0.5, 0.25], 4)
    array([[0.5 , 0.25, 0.  , 0.25],
           [0.25, 0.5 , 0.25, 0.  ],
           [0.  , 0.25, 0.5 , 0.25],
           [0.25, 0.  , 0.25, 0.5 ]])
    """
    shares = line(kernel, "kernel")
    n = whole(n, "n", 1)
    A: Matrix = np.zeros((n, n))
    receivers = np.arange(n)
    for k, share in enumerate(shares):
        A[receivers, (receivers + k - shares.size // 2) % n] += share
    return A

"""Mixing matrices whose rows are shares: pair, softmax, Sinkhorn, Metropolis."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike

from weightshare._core.numbers import number, whole
from weightshare.errors import ArgumentError
from weightshare.sharing.mixing.checks import Matrix, MixingWarning, square, symmetric
from weightshare.sharing.mixing.diagnosis import connected, spectral_gap

_DEFAULT_GAP = 0.3
_ROW_ERROR = 1e-12


def pair(alpha: float) -> Matrix:
    """Return the symmetric mixing of two models, [[α, 1-α], [1-α, α]].

    Parameters
    ----------
    alpha : float
        The share that each model keeps of itself; 1 shares nothing, 0.5 is the mean.
        Values outside [0, 1] extrapolate.

    Returns
    -------
    ndarray of float64, shape (2, 2)
        Symmetric, with rows and columns that sum to one.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If alpha is not a finite real number.

    Examples
    --------
    >>> import weightshare as ws
    >>> ws.mixing.pair(0.75)
    array([[0.75, 0.25],
           [0.25, 0.75]])
    """
    alpha = number(alpha, "alpha")
    return np.array([[alpha, 1.0 - alpha], [1.0 - alpha, alpha]])


def softmax(S: ArrayLike, temperature: float) -> Matrix:
    """Return shares in proportion to exp(similarity / temperature), row by row.

    The rows sum to one; the columns do not, so models that are similar to many weigh more:
    for directed transfer. Use `sinkhorn` to keep the mean of the models.

    Parameters
    ----------
    S : array_like, shape (n, n)
        Similarities; S[i, j] is how much receiver i should listen to j. Need not be symmetric.
    temperature : float
        In units of S, above 0. Small: each listens to its nearest only; large: the mean.

    Returns
    -------
    ndarray of float64, shape (n, n)
        Row-stochastic.

    Raises
    ------
    ShapeError
        If S is not square, or is empty.
    ElementError, ArgumentError, ArgumentTypeError
        If S is not real and finite, or temperature is not above 0.

    Examples
    --------
    >>> import weightshare as ws
    >>> ws.mixing.softmax([[1.0, 0.0], [0.0, 1.0]], temperature=1.0).round(3)
    array([[0.731, 0.269],
           [0.269, 0.731]])
    """
    S = square(S, "S")
    temperature = number(temperature, "temperature", 0.0, above=True)
    with np.errstate(over="ignore", under="ignore"):  # a far model at a low temperature: share 0
        shares: Matrix = np.exp((S - S.max(axis=1, keepdims=True)) / temperature)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def sinkhorn(S: ArrayLike, *, temperature: float | None = None, gap: float | None = None) -> Matrix:
    """Return the symmetric, doubly stochastic scaling of exp((S - 1) / temperature).

    A = D K D with K = exp((S - 1) / temperature) and the positive diagonal D that makes every
    row and column sum to one within 1e-12. Without a temperature, the one is found by bisection
    at which one merge shrinks disagreement by the factor 1 - gap.

    If S is positive semi-definite (as cosines are), so is A (Schur), and a step of 1/L is safe.
    A clipped or other S may break that: the least eigenvalue of A is computed, and a
    `MixingWarning` gives it when it is negative. S itself is never clipped.

    Parameters
    ----------
    S : array_like, shape (n, n)
        Symmetric similarities, such as ``ws.similarity(models)``. Adding a constant to S
        changes nothing.
    temperature : float, optional
        In units of S, above 0.
    gap : float, optional
        Target spectral gap in (0, 1]; 0.3 when neither is given. 1 is the plain mean.
        One of temperature and gap may be given.

    Returns
    -------
    ndarray of float64, shape (n, n)
        Symmetric to the last bit. Equal models give the mean, at every temperature.

    Warns
    -----
    MixingWarning
        If no temperature reaches the gap (the nearest is returned), or the least eigenvalue
        is negative.

    Raises
    ------
    ShapeError
        If S is not square, or is empty.
    ElementError, ArgumentError, ArgumentTypeError
        If S is not real, finite and symmetric, temperature is not above 0, gap is not in
        (0, 1], both are given, or S cannot be scaled at that temperature.

    References
    ----------
    Sinkhorn and Knopp, "Concerning nonnegative matrices and doubly stochastic matrices", 1967.
    Xiao and Boyd, "Fast linear iterations for distributed averaging", 2004, for the gap.

    Examples
    --------
    >>> import weightshare as ws
    >>> S = [[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]
    >>> A = ws.mixing.sinkhorn(S)
    >>> round(ws.mixing.diagnose(A).spectral_gap, 6)
    0.3
    """
    S = symmetric(S, "S")
    if temperature is not None and gap is not None:
        raise ArgumentError(
            f"temperature, gap: expected one of the two, got temperature={temperature!r} and "
            f"gap={gap!r}; leave one out."
        )
    if temperature is not None:
        temperature = number(temperature, "temperature", 0.0, above=True)
    target = number(_DEFAULT_GAP if gap is None else gap, "gap", 0.0, 1.0, above=True)
    half = 0.5 * np.diag(S)
    kernel: Matrix = S - (half[:, None] + half[None, :])  # D absorbs it; the diagonal becomes 0
    noise = 1e-13 * max(1.0, float(np.abs(S).max()))
    if np.ptp(kernel) <= noise or (temperature is None and target == 1.0):
        return np.full(S.shape, 1.0 / len(S))
    A = (
        _scaled_for_gap(kernel, target)
        if temperature is None
        else _at_temperature(kernel, temperature)
    )
    least = float(np.linalg.eigvalsh(A)[0])
    if least < -1e-9:
        warnings.warn(
            f"sinkhorn: the least eigenvalue is {least:.3g}, because S is not positive "
            "semi-definite; keep steps below (1 + least eigenvalue) / L, or use (I + A) / 2.",
            MixingWarning,
            stacklevel=2,
        )
    return A


def _at_temperature(kernel: Matrix, temperature: float) -> Matrix:
    A = _scaled(kernel, temperature)
    if A is None:
        raise ArgumentError(
            f"temperature: expected one at which S can be scaled to doubly stochastic within "
            f"{_ROW_ERROR:g}, got {temperature!r}; raise it."
        )
    return A


def _scaled(kernel: Matrix, temperature: float) -> Matrix | None:
    """Scale exp(kernel / temperature) to doubly stochastic; None where it does not converge."""
    with np.errstate(all="ignore"):  # overflow ends as a row sum that is not one, checked below
        logs = np.clip(kernel / temperature, -1e6, 1e6)
        f = _log_scaling(logs)
        A: Matrix = np.exp(logs + (f[:, None] + f[None, :]))
        for _ in range(20):  # removes the rounding of large logarithms
            rows = A.sum(axis=1)
            if np.abs(rows - 1.0).max() <= 1e-15 * len(A):
                break
            d = 1.0 / np.sqrt(rows)
            A *= d[:, None] * d[None, :]
        good = bool(np.abs(A.sum(axis=1) - 1.0).max() <= _ROW_ERROR)
    return A if good else None


def _log_scaling(logs: Matrix) -> Matrix:
    """Solve Σ_j exp(f_i + logs_ij + f_j) = 1 for f: damped fixed point, then Newton."""
    tolerance = max(1e-13, 8 * np.finfo(float).eps * float(np.abs(logs).max()))
    f: Matrix = np.zeros(len(logs))
    for _ in range(300):
        terms = logs + (f[:, None] + f[None, :])
        top = terms.max(axis=1)
        log_rows = top + np.log(np.exp(terms - top[:, None]).sum(axis=1))
        if np.abs(log_rows).max() <= tolerance:
            return f
        f = f - 0.5 * log_rows
    for _ in range(50):  # the fixed point is slow only near the eigenvalue -1
        A = np.exp(logs + (f[:, None] + f[None, :]))
        rows = A.sum(axis=1)
        if not np.isfinite(rows).all() or np.abs(rows - 1.0).max() <= tolerance:
            break
        f = f + np.clip(np.linalg.lstsq(A + np.diag(rows), 1.0 - rows, rcond=None)[0], -2.0, 2.0)
    return f


def _scaled_for_gap(kernel: Matrix, target: float) -> Matrix:
    """Bisect the temperature, on a logarithmic scale, until the gap is reached."""
    spread = float(np.ptp(kernel))
    low = high = spread
    best = _at_temperature(kernel, spread)
    found = spectral_gap(best, same=True)
    factor = 0.25 if found > target else 4.0
    while (found - target) * (1.0 - factor) > 0.0:
        temperature = (low if factor < 1.0 else high) * factor
        A = _scaled(kernel, temperature) if 1e-12 < temperature / spread < 1e12 else None
        if A is None:
            return _nearest(best, target)
        at_next = spectral_gap(A, same=True)
        low, high = (temperature, low) if factor < 1.0 else (high, temperature)
        if abs(at_next - target) <= abs(found - target):
            best = A
        found = at_next
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        best = _at_temperature(kernel, middle)
        found = spectral_gap(best, same=True)
        if abs(found - target) <= 1e-12 or high <= low * (1.0 + 1e-15):
            break
        low, high = (low, middle) if found > target else (middle, high)
    return best


def _nearest(A: Matrix, target: float) -> Matrix:
    warnings.warn(
        f"gap: expected a gap that some temperature reaches, got {target:g}; the nearest, "
        f"{spectral_gap(A, same=True):.6g}, is returned. Some models are too similar to be told "
        "apart: merge them first, or ask for that gap.",
        MixingWarning,
        stacklevel=4,
    )
    return A


def metropolis(S: ArrayLike, neighbours: int) -> Matrix:
    """Return Metropolis-Hastings weights on the graph of mutual nearest neighbours.

    Models i and j are joined if each is among the `neighbours` most similar others of the
    other one; a_ij = 1 / (1 + max(d_i, d_j)) with the degrees d, and a_ii is what is left.
    Similarity chooses the edges only. Take ``(I + A) / 2`` where no negative eigenvalue is
    wanted.

    Parameters
    ----------
    S : array_like, shape (n, n)
        Similarities; the diagonal is not used. Of equal ones the first model wins.
    neighbours : int
        From 1 to n - 1 (1 for a single model).

    Returns
    -------
    ndarray of float64, shape (n, n)
        Symmetric, doubly stochastic, with at most `neighbours` entries off the diagonal a row.

    Warns
    -----
    MixingWarning
        If the graph is not connected: then its parts never agree.

    Raises
    ------
    ShapeError
        If S is not square, or is empty.
    ElementError, ArgumentError, ArgumentTypeError
        If S is not real and finite, or neighbours is not a whole number from 1 to n - 1.

    References
    ----------
    Xiao, Boyd and Lall, "A scheme for robust distributed sensor fusion", 2005, equation 10.

    Examples
    --------
    >>> import weightshare as ws
    >>> ws.mixing.metropolis([[1, 0.5, 0.1], [0.5, 1, 0.6], [0.1, 0.6, 1]], neighbours=2).round(3)
    array([[0.333, 0.333, 0.333],
           [0.333, 0.333, 0.333],
           [0.333, 0.333, 0.333]])
    """
    S = square(S, "S")
    n = len(S)
    neighbours = whole(neighbours, "neighbours", 1, max(1, n - 1))
    np.fill_diagonal(S, -np.inf)
    order = np.argsort(-S, axis=1, kind="stable")[:, : min(neighbours, n - 1)]
    near = np.zeros((n, n), dtype=bool)
    np.put_along_axis(near, order, True, axis=1)
    edges = near & near.T
    degrees = edges.sum(axis=1)
    A: Matrix = np.where(edges, 1.0 / (1.0 + np.maximum(degrees[:, None], degrees[None, :])), 0.0)
    np.fill_diagonal(A, 1.0 - A.sum(axis=1))
    if not connected(A):
        warnings.warn(
            f"metropolis: the graph of mutual neighbours is not connected with "
            f"neighbours={neighbours}, so its parts never agree; raise neighbours.",
            MixingWarning,
            stacklevel=2,
        )
    return A

"""Mixing matrices that couple models: graph Laplacian (soft) and projection (hard)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weightshare._core.numbers import number, whole
from weightshare.errors import ArgumentError, ElementError, ShapeError
from weightshare.sharing.mixing.checks import Matrix, square, symmetric


def laplacian(S: ArrayLike, strength: float, power: float = 1, implicit: bool = False) -> Matrix:
    """Return I - strength · Lap, or (I + strength · Lap)⁻¹, of the graph of similarities.

    Lap = diag(V 1) - V with the weights v_ij = max(s_ij, 0)^power between different models.
    With strength = step · λ, `dgd` with the explicit form and `atc` with the implicit one
    minimise Σ f_t + λ/2 tr(Wᵀ Lap W), whatever the step.

    Parameters
    ----------
    S : array_like, shape (n, n)
        Symmetric similarities; negative ones couple nothing, the diagonal is not used.
    strength : float
        Step times λ, at least 0. Explicit: strength · λ_max(Lap) may not exceed 1.
    power : float, default 1
        Above 0; larger powers couple the most similar models only.
    implicit : bool, default False
        Legal for every strength: from no sharing at 0 to full pooling at infinity.

    Returns
    -------
    ndarray of float64, shape (n, n)
        Symmetric, positive semi-definite, with rows and columns that sum to one.

    Raises
    ------
    ShapeError
        If S is not square, or is empty.
    ElementError, ArgumentError, ArgumentTypeError
        If S is not real, finite and symmetric, strength is negative or too large (the message
        says the largest), or power is not above 0.

    References
    ----------
    Evgeniou, Micchelli and Pontil, "Learning multiple tasks with kernel methods", 2005,
    section 3.1.2; Yuan, Ling and Yin, "On the convergence of decentralized gradient descent",
    2016, for the penalty that `dgd` minimises.

    Examples
    --------
    >>> import weightshare as ws
    >>> ws.mixing.laplacian([[1.0, 0.5], [0.5, 1.0]], strength=0.5)
    array([[0.75, 0.25],
           [0.25, 0.75]])
    """
    S = symmetric(S, "S")
    strength = number(strength, "strength", 0.0)
    power = number(power, "power", 0.0, above=True)
    with np.errstate(over="ignore"):  # checked on the next line
        weights: Matrix = np.maximum(S, 0.0) ** power
    if not np.isfinite(weights).all():
        raise ArgumentError(
            f"power: expected max(S, 0)^power within float64, got power={power:g} with S up to "
            f"{S.max():.3g}; lower power, or scale S."
        )
    np.fill_diagonal(weights, 0.0)
    lap = np.diag(weights.sum(axis=1)) - weights
    values, vectors = np.linalg.eigh(lap)
    top = float(values[-1])
    if implicit:
        # rounding of the zero eigenvalues must not meet a large strength
        values = np.where(values > 1e-14 * len(S) * top, values, 0.0)
        half: Matrix = vectors / np.sqrt(1.0 + strength * values)
        inverse: Matrix = half @ half.T
        # the mean is kept at every strength: rounding of a near-zero eigenvalue must not move it
        lost = (1.0 - inverse.sum(axis=1)) / len(S)
        inverse += (lost[:, None] + lost[None, :]) - lost.mean()
        return inverse
    if strength * top > 1.0 + 1e-12:
        raise ArgumentError(
            f"strength: expected at most 1 / λ_max(Lap) = {1.0 / top!r}, got {strength!r}; "
            "lower it, or use implicit=True, which takes every strength."
        )
    A: Matrix = np.eye(len(S)) - strength * lap
    return A


def projection(S: ArrayLike, clusters: int | ArrayLike) -> Matrix:
    """Return the matrix that replaces each model by the mean of its cluster.

    Parameters
    ----------
    S : array_like, shape (n, n)
        Similarities. With labels, only n is taken from it.
    clusters : int or array_like of int or str, shape (n,)
        A label for each model, or the number of clusters, from 1 to n: these are found by
        average linkage (the two clusters with the largest mean similarity are joined first;
        of equal ones those with the first models).

    Returns
    -------
    ndarray of float64, shape (n, n)
        A symmetric projection (A A = A), doubly stochastic: exact tying inside clusters.

    Raises
    ------
    ShapeError
        If S is not square, is empty, or has another size than the labels.
    ElementError, ArgumentError, ArgumentTypeError
        If S is not real, finite (and symmetric, for a number), labels are not whole numbers of
        at least 0 or strings, or the number is not from 1 to n.

    References
    ----------
    Sokal and Michener, "A statistical method for evaluating systematic relationships", 1958.

    Examples
    --------
    >>> import weightshare as ws
    >>> S = [[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]
    >>> ws.mixing.projection(S, 2)
    array([[0.5, 0.5, 0. ],
           [0.5, 0.5, 0. ],
           [0. , 0. , 1. ]])
    """
    if np.isscalar(clusters) and not isinstance(clusters, str):
        S = symmetric(S, "S")
        labels = _average_linkage(S, whole(clusters, "clusters", 1, len(S)))
    else:
        labels = _labels(clusters, len(square(S, "S")))
    member = labels[:, None] == labels[None, :]
    return np.where(member, 1.0 / member.sum(axis=1, keepdims=True), 0.0)


def _labels(clusters: object, n: int) -> NDArray[np.generic]:
    try:
        labels: NDArray[np.generic] = np.asarray(clusters)
    except ValueError as error:
        raise ShapeError(
            f"clusters: expected {n} labels, one for each model of S, got a ragged sequence; "
            "give a label for each model, or the number of clusters."
        ) from error
    if labels.shape != (n,):
        raise ShapeError(
            f"clusters: expected {n} labels, one for each model of S, got shape {labels.shape}; "
            "give a label for each model, or the number of clusters."
        )
    if labels.dtype.kind not in "biuU":
        raise ElementError(
            f"clusters: expected whole numbers or strings, got elements of type {labels.dtype}; "
            "convert the labels."
        )
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise ArgumentError(
            f"clusters: expected labels of at least 0, got {int(labels.min())}; a negative label "
            "often means noise, so give each such model a label of its own."
        )
    return labels


def _average_linkage(S: Matrix, count: int) -> NDArray[np.generic]:
    """Join the two most similar clusters until `count` are left (Lance-Williams update)."""
    labels = np.arange(len(S))
    sizes = np.ones(len(S))
    links = S
    np.fill_diagonal(links, -np.inf)
    for _ in range(len(S) - count):
        i, j = (int(k) for k in np.unravel_index(int(links.argmax()), links.shape))
        joined = (sizes[i] * links[i] + sizes[j] * links[j]) / (sizes[i] + sizes[j])
        links[i], links[:, i] = joined, joined
        links[j], links[:, j], links[i, i] = -np.inf, -np.inf, -np.inf
        sizes[i] += sizes[j]
        labels[labels == j] = i
    return labels

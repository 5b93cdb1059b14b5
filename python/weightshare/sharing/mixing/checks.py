"""Checks of arguments that the mixing matrices have in common."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weightshare.errors import ArgumentError, ArgumentTypeError, ElementError, ShapeError

Matrix: TypeAlias = NDArray[np.float64]

_SYMMETRY = 1e-6  # float32 similarities are symmetric to about 1e-7


class MixingWarning(UserWarning):
    """A mixing matrix that is legal, but not what its caller may expect."""


def real_array(value: ArrayLike, name: str) -> Matrix:
    """Return a float64 copy of `value`: real, finite and not empty."""
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise ShapeError(
            f"{name}: expected rows of equal length, got a ragged sequence; make them equal."
        ) from error
    if found.dtype.kind not in "iuf" and found.dtype.name != "bfloat16":
        raise ElementError(
            f"{name}: expected real numbers, got elements of type {found.dtype}; "
            "convert it to float64."
        )
    if found.size == 0:
        raise ShapeError(
            f"{name}: expected at least one number, got shape {found.shape}; give some."
        )
    result: Matrix = np.array(found, dtype=np.float64, order="C")
    if not np.isfinite(result).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(result))[0])
        raise ArgumentError(
            f"{name}: expected finite numbers, got {result[first]} at {list(first)}; "
            "remove NaN and infinity first."
        )
    return result


def square(value: ArrayLike, name: str) -> Matrix:
    """Return a float64 copy of a finite square matrix."""
    result = real_array(value, name)
    if result.ndim != 2 or result.shape[0] != result.shape[1]:
        raise ShapeError(
            f"{name}: expected a square matrix (n, n), got shape {result.shape}; "
            "give one row and one column for each model."
        )
    return result


def symmetric(value: ArrayLike, name: str) -> Matrix:
    """Return a float64 copy of a finite symmetric matrix, symmetric to the last bit."""
    result = square(value, name)
    difference = np.abs(result - result.T)
    if difference.max() > _SYMMETRY * max(1.0, float(np.abs(result).max())):
        i, j = (int(k) for k in np.unravel_index(int(difference.argmax()), result.shape))
        raise ArgumentError(
            f"{name}: expected a symmetric matrix, got {name}[{i}, {j}] = {result[i, j]:.6g} and "
            f"{name}[{j}, {i}] = {result[j, i]:.6g}; use ({name} + {name}.T) / 2 if that is meant."
        )
    half: Matrix = 0.5 * result
    return half + half.T


def line(value: ArrayLike, name: str) -> Matrix:
    """Return a float64 copy of a finite one-dimensional array."""
    result = real_array(value, name)
    if result.ndim != 1:
        raise ShapeError(
            f"{name}: expected a one-dimensional array, got shape {result.shape}; flatten it."
        )
    return result


def number(
    value: object,
    name: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    advice: str = "give a number in that range.",
) -> float:
    """Return `value` as a float in [low, high], or in (low, high] with `above`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise ArgumentTypeError(
            f"{name}: expected a real number, got {value!r} of type {type(value).__name__}; "
            "give a float."
        )
    result = float(value)
    if not math.isfinite(result) or result < low or result > high or (above and result == low):
        least = "" if low == -math.inf else f" {'above' if above else 'of at least'} {low:g}"
        most = "" if high == math.inf else f" and at most {high:g}"
        raise ArgumentError(
            f"{name}: expected a finite number{least}{most}, got {result!r}; {advice}"
        )
    return result


def whole(value: object, name: str, low: int, high: int | None = None) -> int:
    """Return `value` as an int in [low, high]."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise ArgumentTypeError(
            f"{name}: expected a whole number, got {value!r} of type {type(value).__name__}; "
            "give an int."
        )
    result = int(value)
    if result < low or (high is not None and result > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ArgumentError(
            f"{name}: expected a whole number {bounds}, got {result}; choose one in that range."
        )
    return result

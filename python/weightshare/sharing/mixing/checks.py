"""Checks of arguments that the mixing matrices have in common."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weightshare._core.numbers import real_array
from weightshare.errors import ArgumentError, ShapeError

Matrix: TypeAlias = NDArray[np.float64]

_SYMMETRY = 1e-6  # float32 similarities are symmetric to about 1e-7


class MixingWarning(UserWarning):
    """A mixing matrix that is legal, but not what its caller may expect."""


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

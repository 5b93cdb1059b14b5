"""Numbers that users pass: real, finite, in range, or refused with a sentence that says why."""

from __future__ import annotations

import math
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weightshare._core.tensors import array_of_tensor, is_tensor
from weightshare.errors import ArgumentError, ArgumentTypeError, ElementError, ShapeError


def real_array(value: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return a float64 copy of `value`: real, finite and not empty."""
    if isinstance(value, np.ma.MaskedArray):
        raise ArgumentTypeError(f"{name}: masked arrays are not supported; fill the mask first.")
    try:
        found = array_of_tensor(value, name) if is_tensor(value) else np.asarray(value)
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
    result: NDArray[np.float64] = np.array(found, dtype=np.float64, order="C")
    if not np.isfinite(result).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(result))[0])
        raise ArgumentError(
            f"{name}: expected finite numbers, got {result[first]} at {list(first)}; "
            "remove NaN and infinity first."
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

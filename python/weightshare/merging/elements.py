"""The floating-point elements that merging can read and write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from weightshare.errors import ElementError

Array = np.ndarray[Any, np.dtype[Any]]

DTYPE_OF_CODE: dict[str, np.dtype[Any]] = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
CODE_OF_DTYPE = {dtype: code for code, dtype in DTYPE_OF_CODE.items()}
CODE_OF_NAME = {str(dtype): code for code, dtype in DTYPE_OF_CODE.items()}
NAME_OF_CODE = {code: name for name, code in CODE_OF_NAME.items()}


def promoted(codes: Iterable[str]) -> str:
    """Return the element that holds every value of the given ones.

    Parameters
    ----------
    codes : iterable of str
        Of ``"F16"``, ``"BF16"``, ``"F32"``, ``"F64"``; at least one.

    Returns
    -------
    str
        One code; float16 with bfloat16 gives ``"F32"``.

    Raises
    ------
    ElementError
        There is no code, or one is not a floating-point element that can be merged.

    Examples
    --------
    >>> promoted(["BF16", "BF16"]), promoted(["F16", "BF16"]), promoted(["F32", "F64"])
    ('BF16', 'F32', 'F64')
    """
    different = set(codes)
    unknown = sorted(different - DTYPE_OF_CODE.keys())
    if unknown or not different:
        raise ElementError(
            f"dtypes: expected some of {', '.join(DTYPE_OF_CODE)},"
            f" got {', '.join(unknown) or 'none'}"
        )
    if len(different) == 1:
        return different.pop()
    return "F64" if "F64" in different else "F32"


def added(values: Iterable[float]) -> float:
    """Return the sum from left to right, each step rounded: the same on every version of Python.

    The built-in ``sum`` compensates rounding errors since Python 3.12.

    Examples
    --------
    >>> added([1.0, 1e100, 1.0, -1e100])
    0.0
    """
    total = 0.0
    for value in values:
        total += value
    return total

"""Finding NaN and infinity in the output of a merge."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from weightshare.errors import ArgumentError
from weightshare.merging.elements import Array

NanPolicy = Literal["error", "warn", "allow"]

# Bits of +inf, by element: every NaN and infinity is at or above it when the sign is left out.
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}
_INFINITY |= {"float64": 0x7FF0000000000000}
_MOST_WARNINGS = 10


class NonFiniteError(ArgumentError):
    """Finite weights gave NaN or infinity, and the policy is to stop.

    Attributes
    ----------
    tensor : str
        The output tensor.
    count : int
        How many of its elements are not finite.
    first : int
        Flat index of the first of them.
    """

    def __init__(self, message: str, *, tensor: str, count: int, first: int) -> None:
        super().__init__(message)
        self.tensor = tensor
        self.count = count
        self.first = first


def check_policy(nan: str) -> NanPolicy:
    """Return the policy if it is one.

    Raises
    ------
    ArgumentError
        It is none of ``"error"``, ``"warn"``, ``"allow"``.
    """
    for policy in get_args(NanPolicy):
        if nan == policy:
            return policy  # type: ignore[no-any-return]
    raise ArgumentError(f"nan: expected 'error', 'warn' or 'allow', got {nan!r}")


def all_finite(values: Array) -> bool:
    """Return whether there is no NaN and no infinity.

    Two integer maxima, which need no memory: read as signed integers the positive ones that are
    not finite are the largest, read as unsigned ones the negative ones are.

    Parameters
    ----------
    values : ndarray of float16, bfloat16, float32 or float64
        Contiguous.

    Returns
    -------
    bool
        True for an empty array.

    Examples
    --------
    >>> all_finite(np.ones(3)), all_finite(np.array([0.0, -np.inf]))
    (True, False)
    """
    if values.size == 0:
        return True
    infinity = _INFINITY[str(values.dtype)]
    width = values.dtype.itemsize
    sign = 1 << (8 * width - 1)
    signed = values.view(f"i{width}").max()
    unsigned = values.view(f"u{width}").max()
    return int(signed) < infinity and int(unsigned) < infinity + sign


class Findings:
    """What is not finite in the output, tensor by tensor.

    Parameters
    ----------
    policy : {"error", "warn", "allow"}
        What to do about NaN and infinity that come from finite inputs.
    """

    def __init__(self, policy: NanPolicy) -> None:
        self.policy = policy
        self._warnings: list[str] = []
        self._untold = 0
        self._made = 0
        self._first = -1
        self._inherited = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each of the first tensors that were noted, and how many more there are."""
        if not self._untold:
            return tuple(self._warnings)
        return (*self._warnings, f"NaN or infinity: {self._untold} more lines like these")

    def _warn(self, text: str) -> None:
        if len(self._warnings) < _MOST_WARNINGS:
            self._warnings.append(text)
        else:
            self._untold += 1

    def look(self, out: Array, inputs: list[Array], start: int) -> None:
        """Count what is not finite in one tile that starts at that flat index."""
        if self.policy == "allow" or all_finite(out):
            return
        with np.errstate(invalid="ignore"):
            sound = np.ones(out.shape, dtype=bool)
            for values in inputs:
                sound &= np.isfinite(values)
            bad = ~np.isfinite(out)
        made = np.flatnonzero(bad & sound)
        self._inherited += int(np.count_nonzero(bad)) - made.size
        if made.size and self._first < 0:
            self._first = start + int(made[0])
        self._made += made.size

    def close(self, tensor: str, size: int) -> None:
        """End one tensor: raise or note what was counted in it.

        Raises
        ------
        NonFiniteError
            Finite inputs gave something that is not finite and the policy is ``"error"``.
        """
        made, first, inherited = self._made, self._first, self._inherited
        self._made, self._first, self._inherited = 0, -1, 0
        if inherited:
            self._warn(
                f"{tensor}: {inherited} of {size} elements are NaN or infinite in the inputs"
            )
        if not made:
            return
        message = (
            f"{tensor}: {made} of {size} elements became NaN or infinite from finite inputs, the"
            f" first at flat index {first}"
        )
        if self.policy == "error":
            raise NonFiniteError(
                f"{message}; use a wider out_dtype or other weights, or allow it with nan='allow'",
                tensor=tensor,
                count=made,
                first=first,
            )
        self._warn(message)

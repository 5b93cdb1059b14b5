"""Finding NaN and infinity in the output of a merge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from weightshare.errors import ArgumentError
from weightshare.merging.elements import Array

NanPolicy = Literal["error", "warn", "ignore"]

_POLICIES: dict[str, NanPolicy] = {"error": "error", "warn": "warn", "ignore": "ignore"}
# A second word for the third.
_POLICIES["allow"] = "ignore"
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


@dataclass(frozen=True, slots=True)
class Flaws:
    """What is not finite in a stretch of an output tensor.

    Attributes
    ----------
    made : int
        Elements that became NaN or infinite from finite inputs.
    first : int
        Flat index in the tensor of the first of them; -1 without any.
    inherited : int
        Elements that are so in an input already.
    unsound : int
        Elements of which an input is not finite, whatever became of them; those of stretches
        without any flaw are not counted.
    """

    made: int = 0
    first: int = -1
    inherited: int = 0
    unsound: int = 0

    @property
    def found(self) -> int:
        """All elements that are not finite."""
        return self.made + self.inherited

    def joined(self, other: Flaws) -> Flaws:
        """Return the flaws of two stretches together."""
        if not other.found:
            return self
        starts = [first for first in (self.first, other.first) if first >= 0]
        return Flaws(
            self.made + other.made,
            min(starts, default=-1),
            self.inherited + other.inherited,
            self.unsound + other.unsound,
        )


SOUND = Flaws()


def check_policy(nan: str) -> NanPolicy:
    """Return the policy that a word means.

    Raises
    ------
    ArgumentError
        It is none of ``"error"``, ``"warn"``, ``"ignore"`` (or ``"allow"``, which is the same).
    """
    if not isinstance(nan, str) or nan not in _POLICIES:
        raise ArgumentError(f"nan: expected 'error', 'warn' or 'ignore', got {nan!r}")
    return _POLICIES[nan]


def find_flaws(out: Array, inputs: Iterable[Array], start: int) -> Flaws:
    """Return what is not finite in one tile that starts at that flat index.

    Parameters
    ----------
    out : ndarray of float16, bfloat16, float32 or float64
        The tile of the output.
    inputs : iterable of ndarray
        What it was made from.
    start : int
        Flat index in the tensor of its first element.

    Examples
    --------
    >>> out = np.array([1.0, np.inf, np.nan])
    >>> find_flaws(out, [np.array([1.0, 2.0, np.nan])], 100)
    Flaws(made=1, first=101, inherited=1, unsound=1)
    """
    # Imported when used, so that planning does not load the core.
    from weightshare._core import integrity as _integrity

    if not any(_integrity.count_nonfinite(out)):
        return SOUND
    with np.errstate(invalid="ignore"):
        sound = np.ones(out.shape, dtype=bool)
        for values in inputs:
            sound &= np.isfinite(values)
        bad = ~np.isfinite(out)
    made = np.flatnonzero(bad & sound)
    first = start + int(made[0]) if made.size else -1
    inherited = int(np.count_nonzero(bad)) - made.size
    return Flaws(made.size, first, inherited, sound.size - int(np.count_nonzero(sound)))


class Findings:
    """What is said about the flaws of the tensors of one merge.

    Parameters
    ----------
    policy : {"error", "warn", "ignore"}
        What to do about NaN and infinity that come from finite inputs.
    """

    def __init__(self, policy: NanPolicy) -> None:
        self._policy = policy
        self._warnings: list[str] = []
        self._untold = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each of the first tensors that were noted, and how many more there are."""
        if not self._untold:
            return tuple(self._warnings)
        return (*self._warnings, f"NaN or infinity: {self._untold} more lines like these")

    def check(self, tensor: str, size: int, flaws: Flaws) -> None:
        """Refuse what the policy does not allow.

        Raises
        ------
        NonFiniteError
            Finite inputs gave something that is not finite and the policy is ``"error"``.
        """
        if flaws.made and self._policy == "error":
            raise NonFiniteError(
                f"{_made(tensor, size, flaws)}; {'mend the inputs, ' if flaws.unsound else ''}use a"
                " wider out_dtype or other weights, or allow it with nan='ignore'",
                tensor=tensor,
                count=flaws.made,
                first=flaws.first,
            )

    def tell(self, tensor: str, size: int, flaws: Flaws) -> None:
        """Note the flaws of one tensor, unless they are to be ignored."""
        if self._policy == "ignore":
            return
        if flaws.inherited:
            self._warn(
                f"{tensor}: {flaws.inherited} of {size} elements are NaN or infinite in the inputs"
            )
        if flaws.made:
            self._warn(_made(tensor, size, flaws))

    def _warn(self, text: str) -> None:
        if len(self._warnings) < _MOST_WARNINGS:
            self._warnings.append(text)
        else:
            self._untold += 1


def _made(tensor: str, size: int, flaws: Flaws) -> str:
    count = f"{tensor}: {flaws.made} of {size} elements became NaN or infinite"
    if not flaws.unsound:
        return f"{count} from finite inputs, the first at flat index {flaws.first}"
    # A norm, threshold or mean over the tensor takes one bad element to all the others.
    return (
        f"{count} where the inputs are finite, the first at flat index {flaws.first};"
        f" {flaws.unsound} of its elements are not finite in the inputs, which spoils what is"
        " measured over the whole tensor"
    )

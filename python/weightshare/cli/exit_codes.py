"""What each error means to the shell."""

from __future__ import annotations

from weightshare.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    OutputError,
    OutputExistsError,
    OutputLockedError,
    RecipeError,
    WeightshareError,
)
from weightshare.merging.files import NO_SPACE
from weightshare.merging.finite import NonFiniteError

USAGE = 2
BAD_INPUT = 3
NO_ROOM = 4
LOCKED = 5
NOT_FINITE = 6


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error.

    Parameters
    ----------
    error : BaseException
        What ended the command.

    Returns
    -------
    int
        1 for everything that was not foreseen.

    Examples
    --------
    >>> exit_code(OutputLockedError()), exit_code(MemoryError()), exit_code(KeyError())
    (5, 4, 1)
    """
    # A recipe whose files are damaged is told as one report, and counts as a bad input file; one
    # that names a model which is not there is a wrong recipe.
    cause = error.__cause__ if isinstance(error, RecipeError) else None
    if isinstance(cause, CheckpointError) and not isinstance(cause, CheckpointNotFoundError):
        error = cause
    codes: tuple[tuple[type[BaseException], int], ...] = (
        (NonFiniteError, NOT_FINITE),
        (OutputLockedError, LOCKED),
        (OutputExistsError, USAGE),
        (OutputError, NO_ROOM),
        (MemoryError, NO_ROOM),
        (CheckpointError, BAD_INPUT),
        (WeightshareError, USAGE),
    )
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return NO_ROOM
    return next((code for kind, code in codes if isinstance(error, kind)), 1)

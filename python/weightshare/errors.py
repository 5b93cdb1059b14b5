"""Everything that weightshare raises on purpose.

Each class is a `WeightshareError` and also the built-in error that a NumPy user would expect
(`ValueError`, `TypeError` or an `OSError`), so existing ``except`` clauses keep working.
Messages say which argument, what was expected, what came, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class WeightshareError(Exception):
    """Base of every error that weightshare raises on purpose."""


class ArgumentError(WeightshareError, ValueError):
    """An argument has a value that cannot be used."""


class ShapeError(ArgumentError):
    """Arrays whose sizes or shapes do not fit each other."""


class NamesError(ArgumentError):
    """Mappings that should hold the same names and do not."""


class ArgumentTypeError(WeightshareError, TypeError):
    """An argument is of a type that cannot be used."""


class ElementError(ArgumentTypeError):
    """An array whose element type (dtype) is not supported, or differs where it must not."""


class DivergedError(ArgumentError):
    """An iteration left the finite numbers, or its loss grew without bound.

    Attributes
    ----------
    safe_step : float
        The largest step that is expected to converge, estimated along the run; NaN if unknown.
    """

    def __init__(self, message: str, safe_step: float = float("nan")) -> None:
        super().__init__(message)
        self.safe_step = safe_step


class CheckpointError(WeightshareError, ValueError):
    """A checkpoint file that breaks the format, or that disagrees with its index.

    Attributes
    ----------
    code : str
        A stable short code such as ``"E203"``.
    path : str
        The file concerned.
    tensor : str or None
        The tensor concerned, when there is one.
    """

    def __init__(
        self, message: str, *, code: str = "", path: object = "", tensor: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.path = str(path)
        self.tensor = tensor


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at that path."""


class CheckpointChangedError(CheckpointError, OSError):
    """A checkpoint file changed, or became shorter, while it was read."""


class OutputError(WeightshareError, OSError):
    """An output could not be written; what was there before is unchanged."""


class OutputExistsError(OutputError, FileExistsError):
    """The output exists already and ``overwrite=True`` was not given."""


class OutputSpaceError(OutputError):
    """The disk or the memory does not hold what has to be written."""


class OutputLockedError(OutputError):
    """Another run is writing the same output."""


class RecipeError(WeightshareError, ValueError):
    """A recipe, or the files that it names, cannot be merged; every problem is in one report.

    Attributes
    ----------
    problems : tuple of str
        One sentence for each problem found.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        found = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(found))
        self.problems = found

"""Numbers of bytes, read from and written as text."""

from __future__ import annotations

import re

from weightshare.errors import ArgumentError

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)}
_UNITS |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(size: int | str, argument: str) -> int:
    """Return a number of bytes given as a number or as text.

    Parameters
    ----------
    size : int or str
        ``"512MB"`` is decimal, ``"512MiB"`` binary, a number is bytes.
    argument : str
        What the value is called in the error.

    Returns
    -------
    int
        Bytes, at least 1.

    Raises
    ------
    ArgumentError
        The text is no size, or it is not positive.

    Examples
    --------
    >>> parse_bytes("512MB", "memory"), parse_bytes("1GiB", "memory"), parse_bytes(7, "memory")
    (512000000, 1073741824, 7)
    """
    found = _SIZE.fullmatch(str(size))
    factor = _UNITS.get(found[2].lower()) if found else None
    count = int(float(found[1]) * factor) if found and factor else 0
    if isinstance(size, bool) or count < 1:
        raise ArgumentError(
            f"{argument}: expected a number of bytes or text such as '512MB' or '2GiB',"
            f" got {size!r}"
        )
    return count


def format_bytes(count: float) -> str:
    """Return a number of bytes as a person writes it.

    Parameters
    ----------
    count : float
        Bytes.

    Returns
    -------
    str
        Three digits and a decimal unit.

    Examples
    --------
    >>> format_bytes(512_000_000), format_bytes(999), format_bytes(1_230_000)
    ('512 MB', '999 B', '1.23 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"

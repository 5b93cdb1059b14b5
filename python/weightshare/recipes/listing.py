"""Names and files, told in messages and kept in plans."""

from __future__ import annotations

import os
from collections.abc import Sequence

from weightshare.checkpoint import Checkpoint
from weightshare.checkpoint.codes import shown

_SHOWN = 5


def listed(names: Sequence[str]) -> str:
    """Return the first few names as printable text, and how many more there are.

    Examples
    --------
    >>> listed(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    told = ", ".join(shown(name) for name in names[:_SHOWN])
    rest = len(names) - _SHOWN
    return f"{told} and {rest} more" if rest > 0 else told


def planned_files(checkpoint: Checkpoint) -> tuple[tuple[str, int], ...]:
    """Return the files of a checkpoint and their bytes, as a plan keeps them."""
    return tuple((file, os.stat(file).st_size) for file in checkpoint.files)

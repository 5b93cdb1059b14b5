"""The standard streams, whatever the shell has left of them."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def make_usable() -> None:
    """Let no closed stream, no letter without a code and no broken stderr end a command."""
    # A closed descriptor would be given to the next file, which would then get what we print.
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # A caller's own stderr, such as that of a test or a notebook, stays.
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _Stderr()


class _Stderr(io.TextIOWrapper):
    """The process's stderr; what cannot be written there is lost, and the work goes on."""

    def __init__(self) -> None:
        encoding = getattr(sys.__stderr__, "encoding", "utf-8")
        file = io.BufferedWriter(io.FileIO(2, "w", closefd=False))
        super().__init__(file, encoding, errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()

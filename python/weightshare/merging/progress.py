"""Showing progress: a bar on a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from weightshare.merging.sizes import format_bytes

_SECONDS_BETWEEN_LINES = 30.0


@contextlib.contextmanager
def progress_callback(
    progress: Callable[[int, int], object] | bool | None, done: str = "written"
) -> Iterator[Callable[[int, int], object] | None]:
    """Yield the callable that a merge tells its progress.

    Parameters
    ----------
    progress : callable, bool or None
        A callable is taken as it is, True is a display on stderr, False and None are silence.
    done : str
        What the bytes told are, such as ``"written"``.

    Examples
    --------
    >>> with progress_callback(None) as callback:
    ...     print(callback)
    None
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield None
    elif sys.stderr.isatty() or "ipykernel" in sys.modules:
        with _bar() as callback:
            yield callback
    else:
        yield _Lines(done)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], object]]:
    # Imported here, because a silent merge needs no progress bar.
    from tqdm import tqdm

    with tqdm(total=None, unit="B", unit_scale=True, file=sys.stderr, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


class _Lines:
    def __init__(self, done: str) -> None:
        self._done = done
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() < self._next:
            return
        self._next += _SECONDS_BETWEEN_LINES
        part = f"{format_bytes(done)} of {format_bytes(total)}"
        print(f"weightshare: {part} {self._done}", file=sys.stderr, flush=True)

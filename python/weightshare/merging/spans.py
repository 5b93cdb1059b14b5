"""Flat stretches of a tensor, told as parts of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """The columns `left` to `right - 1` of the rows `top` to `bottom - 1`.

    Either one row in part, or whole rows.
    """

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.bottom - self.top

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.rows * (self.right - self.left)


def row_spans(start: int, count: int, width: int, most_rows: int) -> Iterator[Span]:
    """Cut a flat stretch of a matrix into the end of a row, whole rows, the beginning of a row.

    Parameters
    ----------
    start, count : int
        The stretch: its first flat index and its number of elements.
    width : int
        Elements of a row.
    most_rows : int
        Whole rows come in groups of at most so many.

    Yields
    ------
    Span
        In the order of the stretch, each contiguous.

    Examples
    --------
    >>> [tuple(span) for span in row_spans(3, 11, 4, 2)]
    [(0, 1, 3, 4), (1, 3, 0, 4), (3, 4, 0, 2)]
    """
    place, end = start, start + count
    while place < end:
        row, column = divmod(place, width)
        whole = 0 if column else (end - place) // width
        if whole:
            span = Span(row, row + min(whole, most_rows), 0, width)
        else:
            span = Span(row, row + 1, column, min(width, column + end - place))
        yield span
        place += span.size

"""
Exact order statistics, from histograms of digits of bit patterns.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['HISTOGRAM', 'count_digits', 'gather_digits', 'mark_key']
def count_digits(counts: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray | None, level: typing.SupportsInt | typing.SupportsIndex, prefixes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], quantity: str = 'magnitude', wide: bool = False, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    Add to one histogram for each tensor the digits at a level of the elements with its prefix.
    """
def gather_digits(w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray | None, level: typing.SupportsInt | typing.SupportsIndex, which: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], prefixes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], quantity: str = 'magnitude', wide: bool = False, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> list:
    """
    (keys, places) of the elements of a ranking with a prefix, digits down to the level, for each pair.
    """
def mark_key(w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray | None, key: typing.SupportsInt | typing.SupportsIndex, quantity: str = 'magnitude', wide: bool = False, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> numpy.typing.NDArray[numpy.uint8]:
    """
    One bit for each element, lowest first: whether its key is that one.
    """
HISTOGRAM: int = 65537

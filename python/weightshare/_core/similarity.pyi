"""
Sums over all pairs of n tensors, each read once.
"""
from __future__ import annotations
import collections.abc
import numpy
import typing
__all__: list[str] = ['count_signs', 'inner_products', 'row_cosine_sums', 'squared_distances', 'sums']
def count_signs(same: numpy.ndarray, both: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray | None = None, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    Elements non-zero in both of a pair, and of those the ones of equal sign.
    """
def inner_products(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray | None = None, shift: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [], threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    out[i, j] = inner product of w[i] - base - shift[i] and w[j] - base - shift[j].
    """
def row_cosine_sums(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], n_columns: typing.SupportsInt | typing.SupportsIndex, base: numpy.ndarray | None = None, shift: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [], threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    out[i, j] = sum over rows of the cosine of that row in w[i] and w[j].
    """
def squared_distances(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    out[i, j] = squared norm of w[i] - w[j].
    """
def sums(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray | None = None, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    out[j] = sum of the elements of w[j] - base.
    """

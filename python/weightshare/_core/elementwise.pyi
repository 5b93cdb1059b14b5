"""
Merge rules that look at each element alone.
"""
from __future__ import annotations
import collections.abc
import numpy
import typing
__all__: list[str] = ['agreed_sum', 'count_active', 'largest_delta', 'mean_of_active', 'nearswap', 'weighted_mean']
def agreed_sum(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray, threshold: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], k: typing.SupportsFloat | typing.SupportsIndex, strength: typing.SupportsFloat | typing.SupportsIndex = 1.0, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    base + strength times the sum of the deltas where k masks hold.
    """
def count_active(counts: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray, epsilon: typing.SupportsFloat | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    counts (2, n): where each delta is active beside another, and where alone.
    """
def largest_delta(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray, strength: typing.SupportsFloat | typing.SupportsIndex = 1.0, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    base + strength times the delta of largest magnitude.
    """
def mean_of_active(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray, epsilon: typing.SupportsFloat | typing.SupportsIndex, alone: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    base + mean of the active deltas, alone[j] times one that is alone.
    """
def nearswap(out: numpy.ndarray, w: numpy.ndarray, base: numpy.ndarray, t: typing.SupportsFloat | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    base moved towards w by at most t.
    """
def weighted_mean(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], fisher: collections.abc.Sequence[numpy.ndarray], a: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], epsilon: typing.SupportsFloat | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    Mean of w weighted by a (fisher + epsilon).
    """

"""
Masked task vectors, their norms, and their sum by an election of signs.
"""
from __future__ import annotations
import collections.abc
import numpy
import typing
__all__: list[str] = ['chunk_norms', 'sum_task_vectors']
def chunk_norms(all: numpy.ndarray, kept: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray, masks: numpy.ndarray, spans: numpy.ndarray, start: typing.SupportsInt | typing.SupportsIndex, row: typing.SupportsInt | typing.SupportsIndex, chunk: typing.SupportsInt | typing.SupportsIndex, power: typing.SupportsInt | typing.SupportsIndex = 1, bits: numpy.ndarray | None = None, wide: bool = False, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    Sums of |w_j - base|^power of each chunk, and of the elements that the masks keep.
    """
def sum_task_vectors(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], base: numpy.ndarray, masks: numpy.ndarray, spans: numpy.ndarray, start: typing.SupportsInt | typing.SupportsIndex, row: typing.SupportsInt | typing.SupportsIndex, chunk: typing.SupportsInt | typing.SupportsIndex, coefficients: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], votes: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [], weights: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [], tiny: typing.SupportsFloat | typing.SupportsIndex = 0.0, instead: typing.SupportsFloat | typing.SupportsIndex = 1.0, strength: typing.SupportsFloat | typing.SupportsIndex = 1.0, held: collections.abc.Sequence[numpy.ndarray | None] = [], wide: bool = False, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    out = base + the sum of the masked task vectors; see weightshare/sparsity.hpp.
    """

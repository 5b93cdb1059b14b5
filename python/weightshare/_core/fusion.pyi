"""
Which elements of a model matter beside its base.
"""
from __future__ import annotations
import numpy
import typing
__all__: list[str] = ['importance', 'keep_important', 'row_divergences']
def importance(out: numpy.ndarray, w: numpy.ndarray, base: numpy.ndarray, of_rows: numpy.ndarray, n_columns: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    out = |w - base| times the number of the row, float32.
    """
def keep_important(out: numpy.ndarray, w: numpy.ndarray, base: numpy.ndarray, of_rows: numpy.ndarray, n_columns: typing.SupportsInt | typing.SupportsIndex, threshold: typing.SupportsFloat | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    w where its importance reaches the threshold, else the base.
    """
def row_divergences(out: numpy.ndarray, w: numpy.ndarray, base: numpy.ndarray, n_columns: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    out[r] = Kullback-Leibler divergence of the softmax of row r of w from that of the base.
    """

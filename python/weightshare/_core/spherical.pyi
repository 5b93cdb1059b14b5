"""
Angles and norms of tensors, whole, by row and by column.
"""
from __future__ import annotations
import collections.abc
import numpy
import typing
__all__: list[str] = ['chunk_products', 'column_products', 'mix_columns', 'nuslerp_rows', 'spherical_coefficients', 'spherical_coefficients_of_columns', 'stock_ratio', 'stock_rows']
def chunk_products(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], chunk: typing.SupportsInt | typing.SupportsIndex, base: numpy.ndarray | None = None, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    out[c, i, j] = inner product of w[i] - base and w[j] - base over chunk c.
    """
def column_products(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], n_columns: typing.SupportsInt | typing.SupportsIndex, n_rows_at_once: typing.SupportsInt | typing.SupportsIndex, base: numpy.ndarray | None = None, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    out[run, pair, x] = inner product of column x over a run of rows, for all pairs i <= j.
    """
def mix_columns(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], a: numpy.ndarray, n_columns: typing.SupportsInt | typing.SupportsIndex, base: numpy.ndarray | None = None, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    Mix with coefficients a (n, n_columns) of each column's own.
    """
def nuslerp_rows(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], n_columns: typing.SupportsInt | typing.SupportsIndex, t: typing.SupportsFloat | typing.SupportsIndex, base: numpy.ndarray | None = None, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    Spherical interpolation of two tensors, row by row.
    """
def spherical_coefficients(first_squared: typing.SupportsFloat | typing.SupportsIndex, product: typing.SupportsFloat | typing.SupportsIndex, second_squared: typing.SupportsFloat | typing.SupportsIndex, t: typing.SupportsFloat | typing.SupportsIndex) -> tuple[float, float]:
    """
    What spherical interpolation multiplies two vectors with.
    """
def spherical_coefficients_of_columns(out: numpy.ndarray, products: numpy.ndarray, t: typing.SupportsFloat | typing.SupportsIndex) -> None:
    """
    The same for every column of products (3, k), into out (2, k).
    """
def stock_ratio(products: numpy.ndarray, n: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    How far Model Stock goes from the base to the mean of n models.
    """
def stock_rows(out: numpy.ndarray, w: collections.abc.Sequence[numpy.ndarray], n_columns: typing.SupportsInt | typing.SupportsIndex, base: numpy.ndarray, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    Model Stock, row by row.
    """

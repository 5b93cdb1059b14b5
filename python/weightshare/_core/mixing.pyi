"""
Mixing of tensors: out_i = sum_j a_ij w_j.
"""
from __future__ import annotations
import collections.abc
import numpy
import typing
__all__: list[str] = ['mix']
def mix(out: collections.abc.Sequence[numpy.ndarray], w: collections.abc.Sequence[numpy.ndarray], a: numpy.ndarray, base: numpy.ndarray | None = None, threads: typing.SupportsInt | typing.SupportsIndex = 1, start: numpy.ndarray | None = None) -> None:
    """
    Mix n arrays into m, in place in `out`; see weightshare/mixing.hpp.
    """

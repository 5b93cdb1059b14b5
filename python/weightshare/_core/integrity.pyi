"""
Checksums of tensors, and numbers that are not finite.
"""
from __future__ import annotations
import numpy
import typing
__all__: list[str] = ['count_nonfinite', 'digest']
def count_nonfinite(values: numpy.ndarray) -> tuple[int, int]:
    """
    How many elements are NaN, and infinite.
    """
def digest(data: numpy.ndarray, start: typing.SupportsInt | typing.SupportsIndex = 0) -> tuple[int, int]:
    """
    Low and high 64 bits of the checksum of bytes that begin at that byte of their tensor.
    """

"""
Optimizer steps in place.
"""
from __future__ import annotations
import numpy
import typing
__all__: list[str] = ['sgd_step']
def sgd_step(w: numpy.ndarray, g: numpy.ndarray, v: numpy.ndarray | None, rate: typing.SupportsFloat | typing.SupportsIndex, momentum: typing.SupportsFloat | typing.SupportsIndex = 0.0, nesterov: bool = False, weight_decay: typing.SupportsFloat | typing.SupportsIndex = 0.0, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> None:
    """
    One step of SGD in place; see weightshare/step.hpp.
    """

"""
Elementary functions, the same bits on every machine.
"""
from __future__ import annotations
import numpy
import typing
__all__: list[str] = ['acos', 'cos', 'exp', 'exp_in_place', 'log', 'log_in_place', 'sin']
def acos(x: typing.SupportsFloat | typing.SupportsIndex) -> float:
    """
    Arccosine in [0, pi].
    """
def cos(x: typing.SupportsFloat | typing.SupportsIndex) -> float:
    """
    Cosine.
    """
def exp(x: typing.SupportsFloat | typing.SupportsIndex) -> float:
    """
    e to the power x.
    """
def exp_in_place(x: numpy.ndarray) -> None:
    """
    exp of every number of a float64 array.
    """
def log(x: typing.SupportsFloat | typing.SupportsIndex) -> float:
    """
    Natural logarithm.
    """
def log_in_place(x: numpy.ndarray) -> None:
    """
    Natural logarithm of every number of a float64 array.
    """
def sin(x: typing.SupportsFloat | typing.SupportsIndex) -> float:
    """
    Sine.
    """

"""
Multi-layer perceptrons, float32 or float64.
"""
from __future__ import annotations
import collections.abc
import numpy
__all__: list[str] = ['forward', 'loss_and_gradient']
def forward(out: numpy.ndarray, weights: collections.abc.Sequence[numpy.ndarray], biases: collections.abc.Sequence[numpy.ndarray], activation: str, x: numpy.ndarray) -> None:
    """
    Logits of a perceptron, into `out`.
    """
def loss_and_gradient(weight_gradients: collections.abc.Sequence[numpy.ndarray], bias_gradients: collections.abc.Sequence[numpy.ndarray], weights: collections.abc.Sequence[numpy.ndarray], biases: collections.abc.Sequence[numpy.ndarray], activation: str, x: numpy.ndarray, labels: numpy.ndarray) -> float:
    """
    Mean cross-entropy; writes its gradient.
    """

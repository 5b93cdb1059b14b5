"""Training with shared weights: optimizer steps, merge-and-update, small networks."""

from __future__ import annotations

from weightshare.training.merge_and_update import SharedFit, merge_and_update
from weightshare.training.network import accuracy, initial_weights, logits, loss_and_gradient
from weightshare.training.step import GD, SGD, SGDR

__all__ = [
    "GD",
    "SGD",
    "SGDR",
    "SharedFit",
    "accuracy",
    "initial_weights",
    "logits",
    "loss_and_gradient",
    "merge_and_update",
]

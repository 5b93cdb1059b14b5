"""Merging models by method, in memory or from checkpoint to checkpoint."""

from __future__ import annotations

from weightshare.merging.difference import Comparison, TensorDifference, compare_checkpoints
from weightshare.merging.finite import NonFiniteError
from weightshare.merging.integrity import VerifyReport, verify_checkpoint
from weightshare.merging.merge import merge
from weightshare.merging.method import Method, Parameter, Pass, Tensor, Tile
from weightshare.merging.plan import MergePlan
from weightshare.merging.register import register_method
from weightshare.merging.registry import forget_method, methods
from weightshare.merging.report import MergeReport
from weightshare.merging.soup import GreedySoup, greedy_soup

__all__ = [
    "Comparison",
    "GreedySoup",
    "MergePlan",
    "MergeReport",
    "Method",
    "NonFiniteError",
    "Parameter",
    "Pass",
    "Tensor",
    "TensorDifference",
    "Tile",
    "VerifyReport",
    "compare_checkpoints",
    "forget_method",
    "greedy_soup",
    "merge",
    "methods",
    "register_method",
    "verify_checkpoint",
]

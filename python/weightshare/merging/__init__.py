"""Merging models by method, in memory or from checkpoint to checkpoint."""

from __future__ import annotations

from weightshare.merging.difference import Comparison, TensorDifference, compare_checkpoints
from weightshare.merging.finite import NonFiniteError
from weightshare.merging.merge import merge
from weightshare.merging.method import Method, Parameter
from weightshare.merging.plan import MergePlan
from weightshare.merging.registry import methods
from weightshare.merging.report import MergeReport

__all__ = [
    "Comparison",
    "MergePlan",
    "MergeReport",
    "Method",
    "NonFiniteError",
    "Parameter",
    "TensorDifference",
    "compare_checkpoints",
    "merge",
    "methods",
]

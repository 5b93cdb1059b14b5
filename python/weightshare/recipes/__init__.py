"""Recipes in mergekit's schema: read, checked, planned and carried out."""

from __future__ import annotations

from weightshare.recipes.planning import merge_checkpoints, plan_merge

__all__ = ["merge_checkpoints", "plan_merge"]

"""Merge methods on angles and norms: slerp, nuslerp, multislerp, karcher, model_stock."""

from __future__ import annotations

from weightshare.merging.method import Method

METHODS: tuple[Method, ...] = ()

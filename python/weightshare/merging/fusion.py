"""Arcee fusion: the elements that changed most, weighed by the divergence of their row."""

from __future__ import annotations

from weightshare.merging.method import Method

METHODS: tuple[Method, ...] = ()

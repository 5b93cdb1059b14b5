"""Merge methods of sparse task vectors and an election of signs: TIES, DARE, DELLA, breadcrumbs, SCE."""

from __future__ import annotations

from weightshare.merging.method import Method

METHODS: tuple[Method, ...] = ()

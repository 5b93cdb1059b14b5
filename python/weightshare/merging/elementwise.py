"""Merge methods that look at each element alone: nearswap, RAM, magmax, consensus TA, Fisher."""

from __future__ import annotations

from weightshare.merging.method import Method

METHODS: tuple[Method, ...] = ()

"""Small real data sets that come with the package, each with its licence."""

from __future__ import annotations

from weightshare.datasets.digits import load_digits

__all__ = ["load_digits"]

"""Sharing between models held in memory: mix, share, fuse, transfer, similarity, mixing matrices."""

from __future__ import annotations

from weightshare.sharing import mixing
from weightshare.sharing.mix import fuse, mix, share, transfer
from weightshare.sharing.similarity import distance, similarity

__all__ = ["distance", "fuse", "mix", "mixing", "share", "similarity", "transfer"]

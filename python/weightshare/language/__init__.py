"""Vocabularies: what their tokens share, and the files that hold them."""

from __future__ import annotations

from weightshare.language.vocabulary import VocabularyUnion, union

__all__ = ["VocabularyUnion", "union"]

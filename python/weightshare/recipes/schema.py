"""The recipe as data: every key of mergekit's schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from weightshare.merging.method import Method
from weightshare.recipes.reference import Reference
from weightshare.recipes.settings import Level


@dataclass(frozen=True)
class SourceEntry:
    """One model of a slice: how it is named, which of its layers, and its own parameters.

    `layers` is None for all of the model; `where` is the place in the recipe.
    """

    model: Reference
    layers: range | None
    parameters: Level
    where: str


@dataclass(frozen=True)
class SliceEntry:
    """A run of layers of the output, or all of it, and the models that it is merged from."""

    sources: tuple[SourceEntry, ...]
    base_model: Reference | None
    parameters: Level
    where: str

    @property
    def whole(self) -> bool:
        """Whether it is about whole models, as ``models`` writes it."""
        return all(source.layers is None for source in self.sources)

    @property
    def depth(self) -> int:
        """Number of layers; 0 when it is whole."""
        ranges = [source.layers for source in self.sources if source.layers is not None]
        return len(ranges[0]) if ranges else 0


@dataclass(frozen=True)
class ModuleEntry:
    """A part of the output: the tensors whose names begin with `name`; None is all of them."""

    name: str | None
    slices: tuple[SliceEntry, ...]
    parameters: Level
    where: str


@dataclass(frozen=True)
class MergeRecipe:
    """A recipe.

    Attributes
    ----------
    method : Method or None
        None when the recipe names none that there is.
    modules : tuple of ModuleEntry
        What is merged; ``models`` and ``slices`` are one module without a name.
    base_model : Reference or None
        That of the whole recipe.
    parameters : Level
        Those for the whole recipe.
    dtype, out_dtype : str or None
        safetensors codes.
    tokenizer_source, tokenizer, chat_template : object
        As they are written.
    name : str or None
        By which other documents refer to it.
    """

    method: Method | None
    modules: tuple[ModuleEntry, ...]
    base_model: Reference | None
    parameters: Level
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Any = None
    tokenizer: Any = None
    chat_template: Any = None
    name: str | None = None

    def references(self) -> Iterator[tuple[Reference, str]]:
        """Yield every model that is named, with its place in the recipe, in its order."""
        for module in self.modules:
            for piece in module.slices:
                for source in piece.sources:
                    yield source.model, f"{source.where}.model"
                if piece.base_model is not None:
                    yield piece.base_model, f"{piece.where}.base_model"
        if self.base_model is not None:
            yield self.base_model, "base_model"

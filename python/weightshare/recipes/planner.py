"""From one document to its plan, or to everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from weightshare.merging.method import Method
from weightshare.merging.plan import MergePlan, PlannedTensor
from weightshare.recipes.chat import plan_chat_template, read_chat_template
from weightshare.recipes.companions import Companions, output_config
from weightshare.recipes.depth import rebuilt_config
from weightshare.recipes.heads import says_tied, untied
from weightshare.recipes.load import Document
from weightshare.recipes.members import Cast, Group, Opener, open_named
from weightshare.recipes.places import Placement
from weightshare.recipes.reader import RecipeReader
from weightshare.recipes.reference import Reference
from weightshare.recipes.resolve import TensorResolver, heads_in
from weightshare.recipes.schema import MergeRecipe, ModuleEntry
from weightshare.recipes.sources import place_models
from weightshare.recipes.vocabulary import (
    TokenizerAsked,
    Vocabulary,
    plan_vocabulary,
    read_tokenizer,
)


@dataclass(frozen=True)
class Options:
    """What the caller chooses about a plan, beside the recipe."""

    max_shard_bytes: int = 5_000_000_000
    copy_tokenizer: bool = True
    card: bool = True
    seed: int = 0
    lenient: bool = False


class Planner:
    """Plans one document, collecting everything that is wrong with it.

    Parameters
    ----------
    document : Document
        What was read.
    options : Options
        The caller's choices.

    Attributes
    ----------
    options : Options
        The caller's choices.
    recipe : MergeRecipe
        The document, read.
    problems, warnings : list of str
        What cannot be merged, and what is allowed and probably not meant; of the files too once
        `plan` was called.
    """

    def __init__(self, document: Document, options: Options) -> None:
        reader = RecipeReader(document, lenient=options.lenient)
        self.recipe: MergeRecipe = reader.read()
        self.problems: list[str] = reader.problems
        self.warnings: list[str] = reader.warnings
        self._document = document
        self.options = options
        self._tokenizer = read_tokenizer(
            document.data,
            self.problems,
            folder=document.folder,
            unknown=self.warnings if options.lenient else self.problems,
        )
        self._template = read_chat_template(self.recipe.chat_template, self.problems)

    def references(self) -> Iterator[tuple[Reference, str]]:
        """Yield every model that is named, those of tokens too, with its place in the recipe."""
        yield from self.recipe.references()
        if self._tokenizer is not None:
            yield from ((named, where) for where, named in self._tokenizer.references.items())

    def plan(self, opener: Opener) -> MergePlan | None:
        """Return the plan; None when there are problems, here or of the opener.

        Parameters
        ----------
        opener : Opener
            Finds and opens the models.
        """
        method = self.recipe.method
        cast = Cast(self.recipe, opener, self.problems, self.warnings)
        if method is None or not cast.models:
            return None
        modules = [(module, cast.groups(module, method)) for module in self.recipe.modules]
        groups = [group for _, found in modules for group in found]
        asked = self._tokenizer
        found = {} if asked is None else open_named(cast, asked.references)
        planned = place_models(cast.models)
        vocabulary = self._vocabulary(asked, cast, groups, found)
        tensors, config = self._tensors(method, cast, modules, vocabulary)
        companions = self._companions(cast, vocabulary, opener)
        if self.problems or not cast.complete or not groups:
            return None
        return MergePlan(
            method=method.name,
            models=planned,
            tensors=tensors,
            max_shard_bytes=self.options.max_shard_bytes,
            config=output_config(config, tensors),
            copies=companions.copies,
            recipe=self._document.text,
            card=self.options.card,
            seed=self.options.seed,
            warnings=tuple(self.warnings),
            texts=companions.texts,
        )

    def _vocabulary(
        self,
        asked: TokenizerAsked | None,
        cast: Cast,
        groups: Sequence[Group],
        found: dict[str, int],
    ) -> Vocabulary | None:
        if asked is None or not cast.complete:
            return None
        members = {reader.model for group in groups for reader in group.readers}
        members |= set() if cast.base is None else {cast.base}
        return plan_vocabulary(
            *(asked, cast.models, cast.base, self.problems, self.warnings),
            members=sorted(members),
            found=found,
        )

    def _tensors(
        self,
        method: Method,
        cast: Cast,
        modules: Sequence[tuple[ModuleEntry, list[Group]]],
        vocabulary: Vocabulary | None,
    ) -> tuple[tuple[PlannedTensor, ...], dict[str, Any] | None]:
        """Return the output's tensors and its configuration."""
        placement = Placement(cast, self.problems, self.warnings)
        places = placement.places(modules)
        resolver = TensorResolver(
            *(self.recipe, method, cast, vocabulary),
            lenient=self.options.lenient,
            undecided=self._asks_for_vocabulary and vocabulary is None,
        )
        tensors = resolver.tensors(places)
        self.problems += resolver.problems
        self.warnings += resolver.warnings
        config = cast.models[cast.donor].config
        if config is not None:
            config = rebuilt_config(config, cast, placement.rebuilt, self.warnings)
            config = config if vocabulary is None else vocabulary.changed(config)
            readers = {reader.model for _, found in modules for g in found for reader in g.readers}
            said = {says_tied(cast.models[model].config) for model in readers}
            if heads_in(tensors) and (resolver.twins or said >= {True, False}):
                config = untied(config)
        return tensors, config

    @property
    def _asks_for_vocabulary(self) -> bool:
        recipe = self.recipe
        return recipe.tokenizer is not None or recipe.tokenizer_source is not None

    def _companions(self, cast: Cast, vocabulary: Vocabulary | None, opener: Opener) -> Companions:
        tokenizer = self.options.copy_tokenizer and vocabulary is None
        found = Companions.of(cast.models[cast.donor].path, tokenizer=tokenizer, told=opener)
        self.warnings += found.warnings
        texts: dict[str, bytes] = {}
        donor = cast.donor
        if vocabulary is not None:
            donor = vocabulary.donor
            texts |= vocabulary.files
            found = found.joined(vocabulary.copies)
        texts |= plan_chat_template(
            *(self._template, cast.models, donor, texts, self.problems, self.warnings)
        )
        return found.with_texts(texts)

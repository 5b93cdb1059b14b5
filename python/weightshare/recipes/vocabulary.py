"""One vocabulary for models that have several: planned from their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat

import numpy as np

from weightshare.errors import ArgumentError, ArgumentTypeError
from weightshare.language.tokenizer_files import (
    FAST_NAME,
    AddedToken,
    TokenizerFiles,
    fingerprint,
    has_tokenizer,
    read_json,
    read_tokenizer_files,
)
from weightshare.language.tokenizer_output import as_json, changed_files
from weightshare.language.vocabulary import marks, padded, united_tokens
from weightshare.merging.rows_view import Ints
from weightshare.recipes.vocabulary_planned import Model, Vocabulary
from weightshare.recipes.vocabulary_rows import RowRules, Told
from weightshare.recipes.vocabulary_schema import TokenAsked, TokenizerAsked, read_tokenizer
from weightshare.recipes.vocabulary_tables import configured_rows, table_rows

__all__ = ["TokenizerAsked", "Vocabulary", "plan_vocabulary", "read_tokenizer"]

_SHOWN = 5
_GENERATION_NAME = "generation_config.json"
# Other forms of the vocabulary, which would still hold tokens that were taken out.
_OTHER_FORMS = ("vocab", "merges", "tokenizer.model", "spiece", "sentencepiece")


def plan_vocabulary(
    asked: TokenizerAsked | None,
    models: Sequence[Model],
    base_index: int | None,
    problems: list[str],
    warnings: list[str],
    *,
    members: Sequence[int] | None = None,
    found: Mapping[str, int] | None = None,
) -> Vocabulary | None:
    """Plan the vocabulary of the output from the models' tokenizers; no weight is read.

    Parameters
    ----------
    asked : TokenizerAsked or None
        From `read_tokenizer`.
    models : sequence of SourceModel
        The plan's models, in their order.
    base_index : int or None
        The place of ``base_model`` in `models`; None when the recipe has none, and then the first
        model stands for it wherever a recipe says ``base``.
    problems, warnings : list of str
        Take what cannot be merged, and what is allowed and probably not meant.
    members : sequence of int, optional
        The models whose tokens make a union; None is all of them. One that is there only because
        a token's row is taken from it is no member.
    found : mapping of str to int, optional
        The place in `models` of each of ``asked.references``, by its place in the recipe; one
        that could not be opened, and was told, is left out. None looks for the same label.

    Returns
    -------
    Vocabulary or None
        None when nothing is asked, or a problem was found.
    """
    if asked is None:
        return None
    planner = _Planner(asked, models, base_index, members, problems, warnings)
    return planner.plan(found)


class _Planner:
    """Collects the tokenizers and what is wrong with them, then plans the rows."""

    def __init__(
        self,
        asked: TokenizerAsked,
        models: Sequence[Model],
        base: int | None,
        members: Sequence[int] | None,
        problems: list[str],
        warnings: list[str],
    ) -> None:
        self._asked = asked
        self._models = models
        self._base = base
        self._members = list(range(len(models)) if members is None else members)
        self._problems = problems
        self._warnings = warnings
        self._references: dict[str, int] = {}
        self._files: dict[int, TokenizerFiles] = {}
        self._rows: list[int | None] = []
        self._read: dict[str, TokenizerFiles] = {}

    def plan(self, found: Mapping[str, int] | None) -> Vocabulary | None:
        """Return the vocabulary, or None and problems."""
        before = len(self._problems)
        self._find_references(found)
        source = self._asked.source
        donor = self._home if source in ("union", "base") else self._references.get(source)
        if donor is None or len(self._problems) > before:
            return None
        self._rows = [
            table_rows(((name, model.info(name).shape) for name in model), model.config)
            for model in self._models
        ]
        self._read_all(donor)
        if len(self._problems) > before:
            return None
        whole, kept = self._files[donor], self._with_rows(donor)
        tokens = self._tokens(donor)
        told = self._told({token: row for row, token in enumerate(tokens) if token is not None})
        files = self._changed(whole, kept, tokens)
        if files is None or len(self._problems) > before:
            return None
        rules = self._rules(donor, tokens, told)
        self._warn(rules, donor, tokens)
        return self._vocabulary(rules, donor, tokens, files, stripped=kept is not whole)

    @property
    def _home(self) -> int:
        """The model that ``base`` means."""
        return 0 if self._base is None else self._base

    def _find_references(self, found: Mapping[str, int] | None) -> None:
        labels = {model.label: index for index, model in enumerate(self._models)}
        for where, reference in self._asked.references.items():
            place = labels.get(reference.label) if found is None else found.get(where)
            if place is not None:
                self._references[where] = place
            elif found is None:
                self._problems.append(
                    f"{where}: {reference.label!r} is none of the models:"
                    f" {', '.join(list(labels)[:_SHOWN])}"
                )

    def _read_all(self, donor: int) -> None:
        """Read the tokenizers that are needed; equal files are read once."""
        wanted = {*self._members, donor, self._home}
        for entry in self._asked.tokens.values():
            if entry.kind == "model" or entry.token is not None:
                wanted.add(self._place(entry))
        absent = []
        for index in sorted(wanted - {-1}):
            folder = self._models[index].path
            try:
                if not has_tokenizer(folder):
                    absent.append(index)
                    continue
                key = fingerprint(folder)
                if key not in self._read:
                    self._read[key] = read_tokenizer_files(folder)
                self._files[index] = self._read[key]
            except (ArgumentError, ArgumentTypeError) as error:
                self._problems.append(f"tokenizer: {error}")
        for index in absent:
            self._assume(index, donor)
        for files in self._read.values():
            self._warnings += [f"tokenizer: {remark}" for remark in files.remarks]

    def _assume(self, index: int, donor: int) -> None:
        """Take the donor's tokenizer for a model that has none, where the rows agree."""
        model, other = self._models[index], self._models[donor]
        rows = self._rows[index]
        if donor in self._files and rows is not None and rows == self._rows[donor]:
            self._files[index] = self._files[donor]
            self._warnings.append(
                f"tokenizer: {model.label} has none; it is taken to be that of {other.label},"
                f" as both have {rows} rows"
            )
        elif donor in self._files or index == donor:
            self._problems.append(
                f"tokenizer: {model.label} has none (looked in {model.path}); copy its tokenizer's"
                " files there, or leave tokenizer and tokenizer_source out of the recipe"
            )

    def _with_rows(self, index: int) -> TokenizerFiles:
        """Return a model's tokenizer without the tokens that its tables have no row for."""
        files, rows = self._files[index], self._rows[index]
        return files if rows is None else files.without_rows(rows)

    def _tokens(self, donor: int) -> list[str | None]:
        """Return the new vocabulary: the donor's ids, then those that come to it."""
        vocabularies = [self._with_rows(donor).ids]
        if self._asked.source == "union":
            for index in self._members:
                own = self._with_rows(index).ids
                # A token without text cannot be added to another tokenizer.
                own = own if "" not in own else {t: place for t, place in own.items() if t}
                vocabularies += [own] if all(own is not known for known in vocabularies) else []
        tokens = united_tokens(vocabularies)
        if self._asked.tokens:
            known = set(tokens)
            tokens += [token for token in self._asked.tokens if token not in known]
        return tokens

    def _place(self, entry: TokenAsked) -> int:
        """Return the model that a token's entry names; -1 when it names none."""
        if entry.model == "base":
            return self._home
        return self._references.get(entry.model or "", -1)

    def _told(self, rows: Mapping[str, int]) -> dict[int, Told]:
        """Return what the recipe tells, by row."""
        told = {}
        for token, entry in self._asked.tokens.items():
            if entry.kind == "zero":
                told[rows[token]] = Told(None, -1, entry.force)
            elif entry.kind != "rule":
                model = self._place(entry)
                place = self._row(token, entry, model)
                if place is not None:
                    told[rows[token]] = Told(model, place, entry.force)
        return told

    def _row(self, token: str, entry: TokenAsked, model: int) -> int | None:
        label, rows = self._models[model].label, self._rows[model]
        if entry.token_id is not None:
            if rows is not None and entry.token_id < rows:
                return entry.token_id
            self._problems.append(
                f"{entry.where}.token_id: {label} has {rows} rows, none of number {entry.token_id}"
            )
            return None
        wanted = token if entry.token is None else entry.token
        place = self._with_rows(model).ids.get(wanted)
        if place is None:
            remedy = (
                "; tell a model that has it, kind: zero, or another token's row with kind:"
                " model_token"
                if entry.token is None
                else "; give a token that it has, or a token_id"
            )
            self._problems.append(f"{entry.where}: {label} has no token {wanted!r}{remedy}")
        return place

    def _changed(
        self, whole: TokenizerFiles, kept: TokenizerFiles, tokens: Sequence[str | None]
    ) -> dict[str, bytes] | None:
        """Return the tokenizer's files that differ from the donor's."""
        first = max(kept.ids.values(), default=-1) + 1
        new = [self._added(token) for token in tokens[first:] if token is not None]
        try:
            return changed_files(whole, new, whole.ids.keys() - kept.ids.keys())
        except ArgumentError as error:
            self._problems.append(f"tokenizer: {error}")
            return None

    def _added(self, token: str) -> AddedToken:
        for index in self._members:
            known = self._files[index].added.get(token)
            if known is not None:
                return known
        return AddedToken(token, normalized=False)

    def _rules(
        self, donor: int, tokens: Sequence[str | None], told: Mapping[int, Told]
    ) -> RowRules:
        maps: list[Ints] = []
        for index in range(len(self._models)):
            ids = self._with_rows(index).ids if index in self._files else {}
            # None, which stands for no token, is in no vocabulary.
            found = map(ids.get, tokens, repeat(-1))  # type: ignore[arg-type]
            maps.append(np.fromiter(found, dtype=np.int32, count=len(tokens)))
        unnamed = np.array([token is None for token in tokens], dtype=bool)
        rows = self._rows[donor]
        keeper_rows = len(tokens) if rows is None else rows
        return RowRules(maps, self._members, self._base, told, unnamed, donor, keeper_rows)

    def _warn(self, rules: RowRules, donor: int, tokens: Sequence[str | None]) -> None:
        if len(rules.nobody):
            names = [str(tokens[row]) for row in rules.nobody.tolist()]
            self._warnings.append(
                f"tokenizer: {_counted(names)} no row in any model, and zeros instead:"
                f" {_listed(names)}"
            )
        for index in self._members:
            rows = self._rows[index]
            kept = self._with_rows(index)
            if rows is not None and kept is not self._files[index]:
                gone = [token for token in self._files[index].ids if token not in kept.ids]
                self._warnings.append(
                    f"tokenizer: {_counted(gone)} no row among the {rows} of"
                    f" {self._models[index].label}; left out of it: {_listed(gone)}"
                )
        rows = self._rows[donor]
        count = padded(len(tokens), self._asked.pad_to_multiple_of)
        if rows is not None and rows > count:
            self._warnings.append(
                f"tokenizer: {self._models[donor].label} has {rows} rows, the vocabulary has"
                f" {len(tokens)} tokens; the rows after them are left out"
                " (tokenizer.pad_to_multiple_of rounds the number up)"
            )
        self._warn_of_marks(donor, tokens)

    def _warn_of_marks(self, donor: int, tokens: Sequence[str | None]) -> None:
        own = self._files[donor].ids
        new = [token for token in tokens if token is not None and token not in own]
        marked = marks(new)
        if marked:
            signs = ", ".join(f"{count} with {mark!r}" for mark, count in marked.items())
            self._warnings.append(
                f"tokenizer: of the {len(new)} tokens that are added, some carry the mark of a"
                f" word's begin or continuation ({signs}); added tokens are matched as they are"
                " written, so those are never found in a text"
            )

    def _vocabulary(
        self,
        rules: RowRules,
        donor: int,
        tokens: Sequence[str | None],
        files: dict[str, bytes],
        *,
        stripped: bool,
    ) -> Vocabulary:
        home = self._models[self._home]
        configured = configured_rows(home.config)
        ids: dict[int, int] = {}
        if donor != self._home:
            row_of = {token: row for row, token in enumerate(tokens) if token is not None}
            own = self._files[self._home].ids
            ids = {place: row_of[token] for token, place in own.items() if token in row_of}
        vocabulary = Vocabulary(
            self._models,
            donor,
            rules,
            self._rows,
            members=self._members,
            count=len(tokens),
            size=padded(len(tokens), self._asked.pad_to_multiple_of),
            files=files,
            ids=ids,
            old_rows=self._rows[self._home] if configured is None else configured,
            # Where there is no tokenizer.json, they are the vocabulary, and keep all their tokens.
            left_out=_OTHER_FORMS if stripped and FAST_NAME in files else (),
            problems=self._problems,
        )
        try:
            generation = read_json(home.path / _GENERATION_NAME) if ids else None
        except ArgumentError as error:
            self._problems.append(f"tokenizer: {error}")
            return vocabulary
        if generation is not None:
            vocabulary.files[_GENERATION_NAME] = as_json(vocabulary.changed(generation))
        return vocabulary


def _counted(names: Sequence[str]) -> str:
    return "1 token has" if len(names) == 1 else f"{len(names)} tokens have"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:_SHOWN])
    rest = len(names) - _SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown

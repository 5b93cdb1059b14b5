"""The vocabulary of the output: its files, and how every model's tables are read in it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from weightshare.checkpoint import TensorInfo
from weightshare.merging.elements import DTYPE_OF_CODE
from weightshare.merging.leftovers import TOKENIZER_NAMES
from weightshare.merging.plan import FileCopy, Source
from weightshare.merging.rows_view import MEAN, ZERO, RowsView
from weightshare.recipes.vocabulary_rows import RowRules
from weightshare.recipes.vocabulary_tables import (
    Shape,
    is_input_table,
    is_table,
    rows_of,
    with_rows,
)

_LARGEST_COPY = 200_000_000


class Model(Protocol):
    """What is asked of a model here; `weightshare.recipes.sources.SourceModel` is one."""

    label: str
    path: Path
    config: dict[str, Any] | None

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def info(self, name: str) -> TensorInfo:
        """Return what a tensor is."""

    def source(self, index: int, name: str) -> Source:
        """Return how the plan's model of that place reads a tensor."""


class Vocabulary:
    """The vocabulary of the output, and how every model's tables are read in it.

    `weightshare.recipes.vocabulary.plan_vocabulary` makes it.

    Attributes
    ----------
    size : int
        Rows of every table of the output, padding included.
    count : int
        Rows without padding.
    donor : int
        The model whose tokenizer files go along with the output.
    files : dict of str to bytes
        Files that are written; they stand above those of the same names that are copied.
    copies : tuple of FileCopy
        The donor's tokenizer files that are copied as they are.
    """

    def __init__(
        self,
        models: Sequence[Model],
        donor: int,
        rules: RowRules,
        rows: Sequence[int | None],
        *,
        members: Sequence[int],
        count: int,
        size: int,
        files: Mapping[str, bytes],
        ids: Mapping[int, int],
        old_rows: int | None,
        left_out: tuple[str, ...],
        problems: list[str],
    ) -> None:
        self.count, self.size = count, size
        self.donor = donor
        self.files = dict(files)
        self.copies = _copies(models[donor].path, self.files, left_out)
        self._models = models
        self._rules = rules
        self._rows = rows
        self._needed = rules.needed(members, len(models))
        self._ids = ids
        self._old_rows = old_rows
        self._problems = problems

    def is_table(self, name: str, shapes: Sequence[Shape | None]) -> bool:
        """Say whether a tensor has a row for each token of its model's vocabulary.

        Parameters
        ----------
        name : str
            The tensor's name.
        shapes : sequence of tuple of int or None
            Its shape in each of the plan's models, as the files have it; None where it is not.

        Returns
        -------
        bool
            Whether it is to be read through `source`, and its shape is that of `shape`.
        """
        return is_table(name, shapes, self._rows, self._needed)

    def shape(self, index: int, shape: Shape) -> Shape:
        """Return the output's shape of a table.

        Parameters
        ----------
        index : int
            The model's place in the plan.
        shape : tuple of int
            The table's shape there.

        Returns
        -------
        tuple of int
            The shape itself when the table is too short for the model's tokens.
        """
        fits = rows_of(tuple(shape)) >= self._needed[index]
        return with_rows(tuple(shape), self.size) if fits else tuple(shape)

    def source(
        self, index: int, source: Source, peers: Mapping[int, Source] | None = None
    ) -> Source:
        """Return how a table of one model is read, with the output's rows.

        Parameters
        ----------
        index : int
            The model's place in the plan.
        source : Source
            How the model's own table is read; it may have a view.
        peers : mapping of int to Source, optional
            How the same table of the other models is read, for the rows that come from there. For
            those that are not in it, the model's tensor of the same name, else its tied twin.

        Returns
        -------
        Source
            The same one when nothing changes, else one with a `RowsView`.
        """
        donor, place = self._rules.of_model(index)
        info = self._models[index].info(source.name)
        rows = rows_of(info.shape)
        padding = self.size - self.count
        as_it_is = bool((donor == index).all()) and np.array_equal(place, np.arange(self.count))
        if as_it_is and rows == self.count and not padding:
            return source
        width = math.prod(info.shape) // max(1, rows)
        averages = bool((donor == MEAN).any())
        others = {int(model) for model in np.unique(donor) if model >= 0}
        if averages:
            others |= {int(model) for model in np.unique(self._rules.mean_donor)}
        tables = [source]
        number = np.full(len(self._models) + 2, -1, dtype=np.int32)
        number[[ZERO, MEAN]] = ZERO, MEAN
        number[index] = 0
        for other in sorted(others - {index}):
            number[other] = len(tables)
            table = self._peer(index, other, source, width, peers or {})
            if table is None:
                return source
            tables.append(table)
        dtype = self._made(source, tables, exact=not (averages or padding))
        if dtype is None:
            return source
        none = np.zeros(0, dtype=np.int32)
        view = RowsView(
            tables=tuple(tables),
            width=width,
            dtype=dtype,
            donor=number[donor],
            place=place,
            starts=self._rules.starts if averages else none,
            mean_donor=number[self._rules.mean_donor] if averages else none,
            mean_place=self._rules.mean_place if averages else none,
            padding=padding,
        )
        return Source(source.model, source.name, dtype, view)

    def _peer(
        self, index: int, other: int, source: Source, width: int, peers: Mapping[int, Source]
    ) -> Source | None:
        """Return how another model's table is read; None and a problem where it has none."""
        model, label = self._models[other], self._models[index].label
        table = peers.get(other)
        if table is None:
            name = source.name if source.name in model else self._twin(model)
            table = None if name is None else model.source(other, name)
        if table is None:
            self._tell(
                f"{source.name}: {label} needs rows of {model.label}, which has no such table;"
                " tell another source for these tokens under tokenizer.tokens"
            )
            return None
        shape = model.info(table.name).shape
        rows = rows_of(shape)
        if rows < self._needed[other] or math.prod(shape) // max(1, rows) != width:
            self._tell(
                f"{source.name}: {label} needs rows of {model.label}, whose table"
                f" {table.name} of shape {tuple(shape)} does not fit rows of {width} elements"
            )
            return None
        return table

    def _twin(self, model: Model) -> str | None:
        """Return the name of a model's embeddings, which stand for an output layer tied to them."""
        return next((n for n in model if is_input_table(n) and len(model.info(n).shape) == 2), None)

    def _made(self, source: Source, tables: Sequence[Source], *, exact: bool) -> str | None:
        """Return the dtype of a view; rows that are only moved keep theirs."""
        codes = {table.dtype for table in tables}
        if exact and len(codes) == 1:
            return source.dtype
        if codes <= DTYPE_OF_CODE.keys():
            return "F64" if source.dtype == "F64" else "F32"
        self._tell(
            f"{source.name}: rows of dtype {', '.join(sorted(codes))} can be moved, and not"
            " averaged or converted; leave out padding and give every model every token"
        )
        return None

    def _tell(self, problem: str) -> None:
        if problem not in self._problems:
            self._problems.append(problem)

    def changed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration with the output's number of rows and ids of special tokens.

        Parameters
        ----------
        config : mapping
            The ``config.json`` of the base, else of the first model; parts of it may be objects.
            A ``generation_config.json`` of it does as well.

        Returns
        -------
        dict
            A copy.
        """
        found = self._changed(config)
        if "vocab_size" in config:
            found["vocab_size"] = self.size
        return found

    def _changed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in config.items():
            if isinstance(value, Mapping) and key.endswith("_config"):
                # Another part's vocabulary, such as that of sounds, has another size.
                found[key] = self._changed(value)
                if value.get("vocab_size") == self._old_rows is not None:
                    found[key]["vocab_size"] = self.size
            elif key.endswith("_token_id"):
                found[key] = self._changed_id(value)
            else:
                found[key] = value
        return found

    def _changed_id(self, value: object) -> object:
        if isinstance(value, list):
            return [self._changed_id(each) for each in value]
        if isinstance(value, int) and not isinstance(value, bool):
            return self._ids.get(value, value)
        return value


def _copies(
    folder: Path, files: Mapping[str, bytes], left_out: tuple[str, ...]
) -> tuple[FileCopy, ...]:
    """Return the tokenizer files of a folder that are copied as they are."""
    found = []
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        name = entry.name.lower()
        if not name.startswith(TOKENIZER_NAMES) or name.startswith(left_out):
            continue
        if entry.name in files or not entry.is_file():
            continue
        size = entry.stat().st_size
        if size <= _LARGEST_COPY:
            found.append(FileCopy(entry.path, entry.name, size))
    return tuple(found)

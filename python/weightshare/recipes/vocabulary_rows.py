"""Where each row of the new vocabulary comes from, in every model, by the rules of recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weightshare.merging.rows_view import MEAN, ZERO, Ints


@dataclass(frozen=True)
class Told:
    """What a recipe tells of one row: a model and its row, or zeros when the model is None."""

    model: int | None
    place: int
    force: bool


class RowRules:
    """Rows of the new vocabulary, by model.

    A row that a model lacks is what the recipe tells of it; else the only holder's; zeros when
    nobody has it; the base's when it has it; else the mean over the holders.

    Parameters
    ----------
    maps : sequence of ndarray of int32
        For each model, its id of each token of the new vocabulary; -1 where it lacks it.
    holders : sequence of int
        The models that count as holders.
    base : int or None
        The base model.
    told : mapping of int to Told
        What the recipe tells, by row.
    unnamed : ndarray of bool
        Rows without a token: those of the model `keeper`, in every model.
    keeper : int
        The model whose ids the new vocabulary keeps.
    keeper_rows : int
        How many rows it has.

    Attributes
    ----------
    nobody : ndarray of int
        Rows that are zeros because no model has them and the recipe tells nothing.
    """

    def __init__(
        self,
        maps: Sequence[Ints],
        holders: Sequence[int],
        base: int | None,
        told: Mapping[int, Told],
        unnamed: np.ndarray[tuple[int], np.dtype[np.bool_]],
        keeper: int,
        keeper_rows: int,
    ) -> None:
        self._maps = [np.asarray(own, dtype=np.int32) for own in maps]
        self._told = told
        self._views: dict[int, tuple[Ints, Ints]] = {}
        size = len(unnamed)
        held = np.stack([self._maps[model] for model in holders])
        count = (held >= 0).sum(axis=0)
        first = np.asarray(holders, dtype=np.int32)[(held >= 0).argmax(axis=0)]
        donor = np.where(count == 0, ZERO, first).astype(np.int32)
        if base is not None:
            donor = np.where((self._maps[base] >= 0) & (count > 1), base, donor).astype(np.int32)
            several = (count > 1) & (self._maps[base] < 0)
        else:
            several = count > 1
        place = np.full(size, -1, dtype=np.int32)
        for model, own in enumerate(self._maps):
            mine = donor == model
            place[mine] = own[mine]
        kept = np.flatnonzero(unnamed)
        donor[kept] = np.where(kept < keeper_rows, keeper, ZERO)
        place[kept] = kept
        for row, entry in told.items():
            donor[row] = ZERO if entry.model is None else entry.model
            place[row] = entry.place
            several[row] = False
        self._average(held, holders, np.flatnonzero(several).astype(np.int32), donor, place)
        self._donor, self._place = donor, place
        given = np.zeros(size, dtype=bool)
        given[list(told)] = True
        self.nobody = np.flatnonzero((count == 0) & ~unnamed & ~given)

    def _average(
        self, held: Ints, holders: Sequence[int], rows: Ints, donor: Ints, place: Ints
    ) -> None:
        """Note the means over holders: which rows of which models each is over."""
        donor[rows] = MEAN
        place[rows] = np.arange(len(rows), dtype=np.int32)
        ids = held[:, rows].T
        number, holder = np.nonzero(ids >= 0)
        self.starts = np.searchsorted(number, np.arange(len(rows) + 1)).astype(np.int32)
        self.mean_donor = np.asarray(holders, dtype=np.int32)[holder]
        self.mean_place = ids[number, holder].astype(np.int32)

    def of_model(self, model: int) -> tuple[Ints, Ints]:
        """Return, for each row of a model's table, the model it is from and its row there."""
        if model not in self._views:
            own = self._maps[model]
            donor = np.where(own >= 0, model, self._donor).astype(np.int32)
            place = np.where(own >= 0, own, self._place).astype(np.int32)
            for row, entry in self._told.items():
                if entry.force:
                    donor[row] = ZERO if entry.model is None else entry.model
                    place[row] = entry.place
            self._views[model] = (donor, place)
        return self._views[model]

    def needed(self, members: Sequence[int], models: int) -> list[int]:
        """Return how many rows of each model's tables are read for these members."""
        needed = [0] * models
        for model in members:
            donor, place = self.of_model(model)
            for other in range(models):
                used = place[donor == other]
                needed[other] = max(needed[other], int(used.max(initial=-1)) + 1)
        for other in range(models):
            used = self.mean_place[self.mean_donor == other]
            needed[other] = max(needed[other], int(used.max(initial=-1)) + 1)
        return needed

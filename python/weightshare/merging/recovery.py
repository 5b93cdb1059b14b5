"""Going on with an interrupted merge: its temporary files are found, or removed with a reason."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from weightshare.checkpoint.index import INDEX_NAME
from weightshare.checkpoint.locate import SHARD_PATTERN, SINGLE_NAME, SUFFIX
from weightshare.checkpoint.output_file import (
    remove_quietly,
    resumable_name,
    resumable_names,
    sync_folder,
)
from weightshare.merging.identity import FileState
from weightshare.merging.journal import Heading, Journal, read_journal
from weightshare.merging.plan import MergePlan

JOURNAL_NAME = ".weightshare.journal"
_LARGEST_INDEX = 200_000_000


@dataclass(frozen=True)
class Workplace:
    """Where a merge writes.

    Attributes
    ----------
    folder : Path
        The output folder.
    single : str or None
        The name of the output when it is one file.
    """

    folder: Path
    single: str | None

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.folder / (
            JOURNAL_NAME if self.single is None else f".{self.single[:100]}{JOURNAL_NAME}"
        )

    def temporary(self, name: str, token: str) -> Path:
        """Return the temporary file of an output file."""
        return self.folder / resumable_name(name, token)

    def take_back(self) -> None:
        """Undo what a killed run had half published: its files get their temporary names again.

        Where the output had become the new one already, only the journal goes.
        """
        found = read_journal(self.journal, records=False)
        if found is None:
            return
        named = self._named(found.heading)
        if not named:
            return
        if self._is_published(named):
            self.remove_leftovers()
            return
        given = {name for names in named.values() for name in names}
        if given & self._listed():
            remove_quietly(str(self.folder / INDEX_NAME))
        for plain, names in named.items():
            with contextlib.suppress(OSError):
                os.rename(self.folder / names[0], self.temporary(plain, found.heading.token))
            for name in names[1:]:
                remove_quietly(str(self.folder / name))
        sync_folder(str(self.folder))

    def _named(self, heading: Heading) -> dict[str, list[str]]:
        """Return the files that have names for good: their planned names, and those."""
        missing = {
            inode: name
            for name, inode in heading.files.items()
            if not os.path.lexists(self.temporary(name, heading.token))
        }
        named: dict[str, list[str]] = {}
        if missing:
            for entry in os.scandir(self.folder):
                is_weights = entry.name.endswith(SUFFIX) and not entry.name.startswith(".")
                if is_weights and entry.is_file(follow_symlinks=False) and entry.inode() in missing:
                    named.setdefault(missing[entry.inode()], []).append(entry.name)
        return named

    def _is_published(self, named: dict[str, list[str]]) -> bool:
        """Say whether these files are what the folder means."""
        if self.single is not None:
            return any(self.single in names for names in named.values())
        if (self.folder / SINGLE_NAME).exists():
            return any(SINGLE_NAME in names for names in named.values())
        listed = self._listed()
        return all(listed.intersection(names) for names in named.values())

    def _listed(self) -> set[str]:
        index = self.folder / INDEX_NAME
        try:
            if index.stat().st_size > _LARGEST_INDEX:
                return set()
            return set(map(str, dict(json.loads(index.read_bytes())["weight_map"]).values()))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return set()

    def remove_leftovers(self) -> None:
        """Remove the journal, and every temporary file that a journal could tell of."""
        for name in self.hidden():
            remove_quietly(str(self.folder / name))

    def hidden(self) -> list[str]:
        """Return the names of the journal and of the temporary files that are there."""
        journal = self.journal.name
        found = [n for n in (journal, f"{journal}.new") if os.path.lexists(self.folder / n)]
        if self.single is not None:
            return [*resumable_names(str(self.folder), self.single), *found]
        return [*(n for n in os.listdir(self.folder) if _is_resumable(n)), *found]


def is_hidden_work(name: str) -> bool:
    """Say whether a file of that name belongs to a merge into its folder that can be gone on."""
    return name in (JOURNAL_NAME, f"{JOURNAL_NAME}.new") or _is_resumable(name)


def _is_resumable(name: str) -> bool:
    """Say whether a name is that of a temporary file of a merge into a folder."""
    if not name.startswith(".") or not name.endswith(".resumable"):
        return False
    plain, _, token = name[1:].removesuffix(".resumable").rpartition(".")
    known = plain == SINGLE_NAME or SHARD_PATTERN.fullmatch(plain) is not None
    return known and len(token) == 16 and set(token) <= set("0123456789abcdef")


@dataclass(frozen=True)
class Start:
    """How a merge begins.

    Attributes
    ----------
    token : str
        What its temporary files are named by.
    going_on : Journal or None
        What an earlier run left, when it is gone on with.
    warning : str
        Why it is not, when there was something.
    """

    token: str
    going_on: Journal | None = None
    warning: str = ""


def begin(
    place: Workplace,
    plan: MergePlan,
    identity: str,
    states: list[list[FileState]],
    *,
    resume: bool,
) -> Start:
    """Find what can be gone on with, and remove what cannot.

    Parameters
    ----------
    place : Workplace
        The output, locked by the caller.
    plan : MergePlan
        What is to be done.
    identity : str
        The plan's id.
    states : list of list of (size, time, header hash)
        The input files now, of each model.
    resume : bool
        Whether anything is gone on with.
    """
    found = read_journal(place.journal)
    reason = None
    if found is not None and resume:
        reason = _difference(found, identity, states, plan) or _damage(place, found, plan)
        if reason is None:
            return Start(found.heading.token, found)
    place.remove_leftovers()
    anew = "" if reason is None else f"an interrupted merge is begun anew: {reason}"
    return Start(secrets.token_hex(8), None, anew)


def _difference(
    found: Journal, identity: str, states: list[list[FileState]], plan: MergePlan
) -> str | None:
    if found.heading.plan != identity:
        return "the recipe, the options, the models' tensors or the version of weightshare differ"
    if found.heading.inputs != states:
        pairs = zip(plan.models, found.heading.inputs, states, strict=False)
        changed = [model.label for model, old, new in pairs if old != new]
        return f"input files changed since then ({', '.join(changed[:5]) or 'other models'})"
    return None


def _damage(place: Workplace, found: Journal, plan: MergePlan) -> str | None:
    heading = found.heading
    if not _fits(found, plan):
        return "its journal is damaged"
    sizes = dict(plan.shards)
    if place.single is not None:
        sizes = {place.single: sum(sizes.values())}
    if set(sizes) != set(heading.files):
        return "its temporary files are those of another output"
    for name, inode in heading.files.items():
        try:
            state = os.lstat(place.temporary(name, heading.token))
        except OSError:
            return f"its temporary file of {name} is gone"
        # The header stands before the data, and is small beside them.
        if state.st_ino != inode or state.st_size < sizes[name]:
            return f"its temporary file of {name} is not as it was left"
    return None


def _fits(found: Journal, plan: MergePlan) -> bool:
    """Say whether the records are about elements that the plan has, each once at most."""
    left = [tensor.size for tensor in plan.tensors]
    for done in found.done:
        if done.tensor >= len(left) or done.start < 0 or done.count < 1:
            return False
        left[done.tensor] -= done.count
        if left[done.tensor] < 0 or done.start + done.count > plan.tensors[done.tensor].size:
            return False
    return True

"""The opened models of a recipe, and which of them each slice merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from weightshare.merging.method import Method
from weightshare.recipes.reference import Reference
from weightshare.recipes.schema import MergeRecipe, ModuleEntry, SliceEntry, SourceEntry
from weightshare.recipes.settings import Level
from weightshare.recipes.sources import SourceModel


class Opener(Protocol):
    """Finds and opens models, collecting what is wrong with them."""

    def open(self, reference: Reference, where: str) -> SourceModel | None:
        """Return the model of that name; None when it cannot be opened."""

    def tell_unreadable(self, where: str, path: str, error: OSError) -> None:
        """Note a file that is there and cannot be read."""


@dataclass(frozen=True)
class Member:
    """A model of a slice.

    Attributes
    ----------
    model : int
        Its place in the plan.
    layers : range or None
        Its layers; None for all of it.
    entry : SourceEntry or None
        None for a base that the slice does not list.
    statistics : tuple of int
        The places in the plan of its checkpoint parameters, in the method's order.
    """

    model: int
    layers: range | None
    entry: SourceEntry | None
    statistics: tuple[int, ...] = ()


@dataclass(frozen=True)
class Group:
    """A slice with its models open.

    Attributes
    ----------
    piece : SliceEntry
        As the recipe has it.
    members : tuple of Member
        What is merged, in the order of the recipe.
    base : Member or None
        What the method takes as the base.
    levels : tuple of Level
        The parameters of slice, module and recipe.
    """

    piece: SliceEntry
    members: tuple[Member, ...]
    base: Member | None
    levels: tuple[Level, ...]

    @property
    def readers(self) -> tuple[Member, ...]:
        """The members, then the base."""
        return self.members if self.base is None else (*self.members, self.base)


class Cast:
    """Opens every model that a recipe names, once.

    Parameters
    ----------
    recipe : MergeRecipe
        The recipe.
    opener : Opener
        Opens models, and collects what is wrong with them.
    problems, warnings : list of str
        Take what is wrong with how they are used.

    Attributes
    ----------
    models : list of SourceModel
        In the order in which they are named, the base last unless it was named before.
    base : int or None
        The place of ``base_model``.
    """

    def __init__(
        self, recipe: MergeRecipe, opener: Opener, problems: list[str], warnings: list[str]
    ) -> None:
        self._recipe = recipe
        self._opener = opener
        self._places: dict[Reference, int | None] = {}
        self._problems = problems
        self._warnings = warnings
        self.models: list[SourceModel] = []
        for reference, where in recipe.references():
            self.place(reference, where)
        self.base = None if recipe.base_model is None else self._places[recipe.base_model]

    @property
    def donor(self) -> int:
        """Whose configuration and small files go along: the base, else the first model."""
        return 0 if self.base is None else self.base

    @property
    def complete(self) -> bool:
        """Whether every model could be opened."""
        return None not in self._places.values()

    def place(self, reference: Reference, where: str) -> int | None:
        """Return a model's place, opening it the first time; None when it cannot be opened."""
        if reference not in self._places:
            model = self._opener.open(reference, where)
            if model is not None and not any(known is model for known in self.models):
                self.models.append(model)
            places = [i for i, known in enumerate(self.models) if known is model]
            self._places[reference] = places[0] if model is not None else None
        return self._places[reference]

    def groups(self, module: ModuleEntry, method: Method) -> list[Group]:
        """Return the slices of a module, those left out in which nothing can be merged."""
        found = [self._group(piece, module, method) for piece in module.slices]
        return [group for group in found if group is not None]

    def _group(self, piece: SliceEntry, module: ModuleEntry, method: Method) -> Group | None:
        listed = self._listed(piece, method)
        reference = piece.base_model or self._recipe.base_model
        place = None if reference is None else self._places[reference]
        if method.base == "required" and place is None:
            self._tell_missing_base(reference, method)
            return None
        base: Member | None = None
        if place is not None and method.base != "none":
            base = next((member for member in listed if member.model == place), None)
            if base is None:
                base = self._unlisted(place, piece, reference, method)
                if base is None and method.base == "required":
                    return None
        members, joined = [member for member in listed if member is not base], None
        if method.base == "joins":
            joined = base if base is not None and base.entry is None else None
            members, base = listed + ([] if joined is None else [joined]), None
        self._remark(piece, members, base, method)
        if self.complete:
            self._check_count(piece, len(members) - (joined is not None), base, method)
        if not members:
            return None
        levels = (piece.parameters, module.parameters, self._recipe.parameters)
        opened = [self._with_statistics(member, levels, method) for member in members]
        if self.complete and len({len(member.statistics) for member in opened}) > 1:
            self._problems.append(
                f"{piece.where}: a parameter that is a file is given for some models and not for"
                " others; give it for all, or for none"
            )
        return Group(piece, tuple(opened), base, levels)

    def _listed(self, piece: SliceEntry, method: Method) -> list[Member]:
        found: dict[int, Member] = {}
        for entry in piece.sources:
            place = self._places[entry.model]
            if place is None:
                continue
            if place in found:
                first = found[place].entry
                assert first is not None
                self._problems.append(
                    f"{entry.where}.model: {entry.model.label!r} is {first.where} again;"
                    " list each model once"
                )
                continue
            found[place] = Member(place, entry.layers, entry)
        return list(found.values())

    def _tell_missing_base(self, reference: Reference | None, method: Method) -> None:
        problem = f"base_model: is missing, and {method.name} needs it"
        if reference is None and problem not in self._problems:
            self._problems.append(problem)

    def _unlisted(
        self, place: int, piece: SliceEntry, reference: Reference | None, method: Method
    ) -> Member | None:
        """Return the base of whole models; a slice has to list it, with its layers."""
        if piece.whole:
            return Member(place, None, None)
        label = "" if reference is None else f" {reference.label}"
        problem = f"{piece.where}.sources: the base model{label} is not among them"
        if method.base == "required":
            self._problems.append(
                f"{problem}, and {method.name} needs it; list it with its layer_range"
            )
        elif method.base == "optional":
            self._warnings.append(f"{problem}; {method.name} goes without a base there")
        return None

    def _remark(
        self, piece: SliceEntry, members: Sequence[Member], base: Member | None, method: Method
    ) -> None:
        given = self.base is not None and piece.whole and base is None
        if given and all(member.model != self.base for member in members):
            self._warn(
                f"base_model: {method.name} does not merge {self.models[self.donor].label} in; its"
                " configuration, tokenizer and integer tensors are copied"
            )
        own = base.entry.parameters if base is not None and base.entry is not None else None
        if own is not None and (own.settings or own.checkpoints):
            label = self.models[base.model].label if base is not None else ""
            self._warn(f"{own.where}: not used, {label} is the base of {method.name}")

    def _warn(self, warning: str) -> None:
        if warning not in self._warnings:
            self._warnings.append(warning)

    def _check_count(
        self, piece: SliceEntry, count: int, base: Member | None, method: Method
    ) -> None:
        most = method.max_models
        if count < method.min_models or (most is not None and count > most):
            beside = " beside the base" if base is not None else ""
            where = piece.where if piece.whole else f"{piece.where}.sources"
            self._problems.append(
                f"{where}: {method.name} merges {method.allowed_models}{beside}, got {count}"
            )

    def _with_statistics(self, member: Member, levels: Sequence[Level], method: Method) -> Member:
        """Open the checkpoints that are parameters of one model."""
        places: list[int] = []
        for parameter in method.statistics:
            own = [] if member.entry is None else [member.entry.parameters]
            level = next((at for at in (*own, *levels) if parameter.name in at.checkpoints), None)
            if level is None:
                if parameter.required:
                    label = self.models[member.model].label
                    self._problems.append(
                        f"{parameter.name} of {label}: is missing, and {method.name} needs it"
                    )
                continue
            where = f"{level.where}.{parameter.name}"
            place = self.place(level.checkpoints[parameter.name], where)
            places += [] if place is None else [place]
        return replace(member, statistics=tuple(places))


def open_named(cast: Cast, references: Mapping[str, Reference]) -> dict[str, int]:
    """Open more models, such as the donors of tokens; return their places by where they stand."""
    found = {where: cast.place(reference, where) for where, reference in references.items()}
    return {where: place for where, place in found.items() if place is not None}

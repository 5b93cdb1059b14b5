"""The values of a method's parameters for each tensor, through all places that may set them."""

from __future__ import annotations

from collections.abc import Sequence

from weightshare.merging.method import Method, Parameter, Settings
from weightshare.recipes.members import Cast, Group, Member
from weightshare.recipes.places import Place
from weightshare.recipes.settings import Level, Rule

# Filters that held for no tensor are looked for only among so many.
_MOST_IDLE = 200


class Values:
    """Resolves parameters: a model's own, its slice's, its module's, the recipe's, the default.

    A filter is matched against the tensor's name in the model for parameters that each model has,
    and against the output's name for the others.

    Parameters
    ----------
    method : Method
        The method.
    cast : Cast
        The models.
    problems, warnings : list of str
        Take what is wrong, and what is probably not meant.
    """

    def __init__(
        self, method: Method, cast: Cast, problems: list[str], warnings: list[str]
    ) -> None:
        self._method = method
        self._parameters = [p for p in method.parameters if p.kind != "checkpoint"]
        self._cast = cast
        self._known: dict[tuple[float | None, ...], tuple[Settings, str | None]] = {}
        self._refused: dict[str, list[str]] = {}
        self._told: set[str] = set()
        self._problems = problems
        self._warnings = warnings

    @property
    def refused(self) -> dict[str, list[str]]:
        """What is wrong with values, and for which tensors."""
        return self._refused

    def settings(self, place: Place) -> Settings | None:
        """Return the values for one tensor; None, and a problem, when they cannot be used."""
        group = place.group
        assert group is not None
        values: list[float | None] = []
        for parameter in self._parameters:
            if not parameter.per_model:
                values.append(self._value(parameter, None, group, place.name, place.depth))
                continue
            for member, name in zip(group.members, place.inputs, strict=False):
                values.append(self._value(parameter, member, group, name, place.depth))
        key = (len(group.members), *values)
        if key not in self._known:
            self._known[key] = self._checked(values, group)
        settings, problem = self._known[key]
        if problem is not None:
            self._refused.setdefault(problem, []).append(place.name)
        return settings if problem is None and not self._lacks(values, group, place) else None

    def _value(
        self, parameter: Parameter, member: Member | None, group: Group, name: str, depth: float
    ) -> float | None:
        levels = group.levels
        if member is not None and member.entry is not None:
            levels = (member.entry.parameters, *levels)
        for level in levels:
            setting = level.settings.get(parameter.name)
            value = None if setting is None else setting.value(name, depth)
            if value is not None:
                return value
        return parameter.default

    def _columns(self, group: Group) -> list[tuple[Parameter, Member | None]]:
        """Return what each of the values is of, in their order."""
        columns: list[tuple[Parameter, Member | None]] = []
        for parameter in self._parameters:
            each: Sequence[Member | None] = group.members if parameter.per_model else [None]
            columns += [(parameter, member) for member in each]
        return columns

    def _lacks(self, values: Sequence[float | None], group: Group, place: Place) -> bool:
        if None not in values:
            return False
        lacking = False
        for (parameter, member), value in zip(self._columns(group), values, strict=True):
            if value is None and parameter.required:
                lacking = True
                self._tell_missing(parameter, member, group, place.name)
        return lacking

    def _tell_missing(
        self, parameter: Parameter, member: Member | None, group: Group, name: str
    ) -> None:
        label = "" if member is None else f" of {self._cast.models[member.model].label}"
        problem = f"{parameter.name}{label}: is missing, and {self._method.name} needs it"
        if self._is_given(parameter, member, group):
            self._refused.setdefault(f"{problem} for every tensor", []).append(name)
        elif problem not in self._told:
            self._told.add(problem)
            own = member is not None and member.entry is not None
            place = " or under the model" if own else " of the recipe"
            self._problems.append(f"{problem}; set it under parameters{place}")

    def _checked(self, values: Sequence[float | None], group: Group) -> tuple[Settings, str | None]:
        shared: dict[str, float] = {}
        per_model: list[dict[str, float]] = [{} for _ in group.members]
        rows = iter(values)
        wrong: str | None = None
        for parameter in self._parameters:
            for row in per_model if parameter.per_model else [shared]:
                value = next(rows)
                if value is None:
                    continue
                # Between two whole numbers of a gradient lie others.
                found = parameter.problem(value) if parameter.kind != "bool" else None
                wrong = wrong or (found and f"{parameter.name}: {found}")
                row[parameter.name] = _as(parameter, value)
        settings = Settings(shared, tuple(per_model))
        required = [
            value is None and parameter.required
            for (parameter, _), value in zip(self._columns(group), values, strict=True)
        ]
        if wrong is None and not any(required):
            wrong = self._method.check(settings)
        return settings, None if wrong is None else f"parameters: {wrong}"

    def check_required(self, places: Sequence[Place]) -> None:
        """Tell of values that are given nowhere, whatever else is wrong with the tensors."""
        groups = {id(place.group): (place.group, place.name) for place in places}
        for group, name in groups.values():
            for parameter, member in [] if group is None else self._columns(group):
                assert group is not None
                if parameter.required and not self._is_given(parameter, member, group):
                    self._tell_missing(parameter, member, group, name)

    def _is_given(self, parameter: Parameter, member: Member | None, group: Group) -> bool:
        own = [member.entry.parameters] if member is not None and member.entry else []
        return any(parameter.name in level for level in (*own, *group.levels))

    def warn_of_idle_filters(self, places: Sequence[Place]) -> None:
        """Tell of filters that match no tensor: they are probably misspelt."""
        shared = {parameter.name for parameter in self._parameters if not parameter.per_model}
        names: dict[int, tuple[Level, set[str], set[str]]] = {}
        for place in places:
            if place.group is None:
                continue
            for level in place.group.levels:
                entry = names.setdefault(id(level), (level, set(), set()))
                entry[1].add(place.name)
                entry[2].update(place.inputs)
            for member, name in zip(place.group.members, place.inputs, strict=False):
                if member.entry is not None:
                    level = member.entry.parameters
                    names.setdefault(id(level), (level, set(), set()))[2].add(name)
        looked = 0
        for level, outputs, inputs in names.values():
            for name, setting in level.settings.items():
                known = outputs if name in shared else inputs
                for rule in setting.rules:
                    looked += rule.text is not None
                    if looked <= _MOST_IDLE and _idle(rule, known):
                        self._warnings.append(
                            f"{level.where}.{name}: the filter {rule.text!r} matches no tensor"
                        )


def _idle(rule: Rule, names: set[str]) -> bool:
    return rule.text is not None and not any(rule.text in name for name in names)


def _as(parameter: Parameter, value: float) -> float:
    if parameter.kind == "bool":
        return bool(value)
    return int(value) if parameter.kind == "int" and value == int(value) else value

"""Values of parameters in a recipe: numbers, gradients over the layers, and filters by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from weightshare.merging.method import Parameter
from weightshare.recipes.reference import Reference

_WORDS = {"true": 1.0, "yes": 1.0, "on": 1.0, "false": 0.0, "no": 0.0, "off": 0.0}


@dataclass(frozen=True)
class Rule:
    """A value for the tensors whose names hold `text`; None is every tensor.

    `values` is one number, or several that are spread over the layers.
    """

    text: str | None
    values: tuple[float, ...]

    def matches(self, name: str) -> bool:
        """Return whether the rule is for this tensor."""
        return self.text is None or self.text in name


@dataclass(frozen=True)
class Setting:
    """What a recipe says about one parameter: rules, of which the first that matches holds."""

    rules: tuple[Rule, ...]

    def value(self, name: str, depth: float) -> float | None:
        """Return the value for one tensor.

        Parameters
        ----------
        name : str
            The tensor's name.
        depth : float
            Where its layer lies, from 0 (first) to 1 (last).

        Returns
        -------
        float or None
            None when no rule matches.

        Examples
        --------
        >>> setting = Setting((Rule("mlp", (1.0,)), Rule(None, (0.0, 0.5))))
        >>> setting.value("a.0.mlp", 0.5), setting.value("a.0.norm", 0.5)
        (1.0, 0.25)
        """
        for rule in self.rules:
            if rule.matches(name):
                return interpolated(rule.values, depth)
        return None


def interpolated(values: tuple[float, ...], depth: float) -> float:
    """Return the value of a gradient at a depth between 0 and 1, by straight lines.

    Examples
    --------
    >>> interpolated((0.0, 1.0, 0.0), 0.75)
    0.5
    """
    place = depth * (len(values) - 1)
    below = min(int(place), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    share = place - below
    return (1 - share) * values[below] + share * values[above] if share else values[below]


@dataclass(frozen=True)
class Level:
    """What one place of a recipe says about the parameters of its method.

    Attributes
    ----------
    settings : mapping of str to Setting
        The numbers, by the parameter's name.
    checkpoints : mapping of str to Reference
        The files or folders of the parameters of kind ``"checkpoint"``.
    where : str
        The place in the recipe.
    """

    settings: Mapping[str, Setting] = field(default_factory=dict)
    checkpoints: Mapping[str, Reference] = field(default_factory=dict)
    where: str = "parameters"

    def __contains__(self, name: str) -> bool:
        return name in self.settings or name in self.checkpoints


def parse_setting(value: object, where: str, parameter: Parameter, problems: list[str]) -> Setting:
    """Read what a recipe says about one parameter.

    Parameters
    ----------
    value : object
        A number, a list of numbers, a mapping of ``filter`` and ``value``, or a list of those.
    where : str
        The place in the recipe, for messages.
    parameter : Parameter
        What it must be.
    problems : list of str
        Takes what is wrong.

    Returns
    -------
    Setting
        Without rules where the value is empty. A wrong value is told once: 1 stands for it, so
        that the rest of the recipe can be checked.

    Examples
    --------
    >>> parse_setting("5e-1", "t", Parameter("t", "how far"), []).value("w", 0.0)
    0.5
    """
    before = len(problems)
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict) for item in items):
        rules = [
            _rule(item, f"{where}[{i}]" if isinstance(value, list) else where, parameter, problems)
            for i, item in enumerate(items)
        ]
    else:
        rules = [Rule(None, _numbers(items, where, parameter, problems))]
    if len(problems) > before:
        return Setting((Rule(None, (1.0,)),))
    return Setting(tuple(rule for rule in rules if rule.values))


def _rule(item: object, where: str, parameter: Parameter, problems: list[str]) -> Rule:
    if not isinstance(item, dict):
        return Rule(None, _numbers([item], where, parameter, problems))
    problems.extend(
        f"{where}: unknown key {key!r}; expected filter and value"
        for key in item
        if key not in ("filter", "value")
    )
    text = item.get("filter")
    if text is not None and not isinstance(text, str):
        problems.append(f"{where}.filter: expected a part of a tensor's name, got {text!r}")
        text = None
    if "value" not in item:
        problems.append(f"{where}: has no value")
        return Rule(None, ())
    value = item["value"]
    values = _numbers(value if isinstance(value, list) else [value], where, parameter, problems)
    return Rule(None if text == "*" else text, values)


def _numbers(
    items: list[object], where: str, parameter: Parameter, problems: list[str]
) -> tuple[float, ...]:
    boolean = parameter.kind == "bool"
    if boolean and len(items) > 1:
        problems.append(f"{where}: expected true or false, got the gradient {items!r}")
        return ()
    numbers = []
    for item in items:
        number = _boolean(item) if boolean else _number(item)
        if number is None:
            expected = "true or false" if boolean else "a number"
            problems.append(f"{where}: expected {expected}, got {item!r}")
        elif not math.isfinite(number):
            problems.append(f"{where}: expected a finite number, got {item!r}")
        else:
            illegal = None if boolean else parameter.problem(number)
            problems.extend([] if illegal is None else [f"{where}: {illegal}"])
            numbers.append(number)
    return tuple(numbers)


def _number(item: object) -> float | None:
    try:
        return float(item) if isinstance(item, bool | int | float | str) else None
    except (ValueError, OverflowError):
        return None


def _boolean(item: object) -> float | None:
    if isinstance(item, str):
        return _WORDS.get(item.strip().lower())
    return float(item) if isinstance(item, bool) or item in (0, 1) else None

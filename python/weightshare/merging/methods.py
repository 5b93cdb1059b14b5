"""What a merge method is: its name, its parameters, and what it does to one tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from weightshare.merging.elements import Array

# A sum of weights this small beside the weights themselves is a cancelled sum, not a divisor.
_CANCELLED = 1e-8


@dataclass(frozen=True)
class Parameter:
    """One parameter of a merge method.

    Attributes
    ----------
    name : str
        The name in recipes and, as a keyword, in `weightshare.merge`.
    summary : str
        What it does, in a few words.
    default : float, bool or None
        None when a value must be given.
    per_model : bool
        One value for each model, or one for the whole merge.
    kind : {"float", "bool"}
        What a value is.
    """

    name: str
    summary: str
    default: float | bool | None = None
    per_model: bool = False
    kind: Literal["float", "bool"] = "float"

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is None


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of a method's parameters for one tensor.

    Attributes
    ----------
    shared : mapping of str to float or bool
        The parameters that the whole merge has once.
    per_model : tuple of mappings
        The parameters of each model, in the order of the models, the base left out.
    """

    shared: Mapping[str, float]
    per_model: tuple[Mapping[str, float], ...]

    def of_models(self, name: str) -> list[float]:
        """Return one per-model parameter for all models, in their order."""
        return [float(values[name]) for values in self.per_model]


@dataclass(frozen=True, slots=True)
class Tile:
    """The same stretch of one tensor in every model, and the place of the result.

    Attributes
    ----------
    out : ndarray, shape (k,)
        Where the result goes; its dtype is that of the output.
    models : list of ndarray, shape (k,)
        The models' elements, in the order of the recipe, each of its own dtype.
    base : ndarray of shape (k,), or None
        The base model's elements.
    settings : Settings
        The parameters for this tensor.
    threads : int
        How many threads the core may use; the result does not depend on it.
    tensor : str
        The name of the output tensor.
    start : int
        Flat index in the tensor of the tile's first element.
    seed : int
        Key of the random numbers, for methods that draw some.
    """

    out: Array
    models: list[Array]
    base: Array | None
    settings: Settings
    threads: int
    tensor: str = ""
    start: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes
    ----------
    name : str
        The value of ``merge_method`` in a recipe.
    summary : str
        The formula.
    source : str
        The paper it is from.
    parameters : tuple of Parameter
        Everything that it takes.
    combine : callable
        ``combine(tile)`` writes ``tile.out``.
    check : callable
        ``check(settings)`` returns what is wrong with the values together, or None.
    needs_base : bool
        Whether there must be a base model.
    min_models, max_models : int, int or None
        How many models it merges, the base left out; None is no limit.
    reads : {"tiles", "statistics", "tensor"}
        What it must see at once: any stretch of a tensor, a first pass over the tensor, or the
        whole tensor. ``"tiles"`` methods are elementwise, so a tensor may be cut anywhere.
    """

    name: str
    summary: str
    source: str
    parameters: tuple[Parameter, ...]
    combine: Callable[[Tile], None]
    check: Callable[[Settings], str | None]
    needs_base: bool = False
    min_models: int = 1
    max_models: int | None = None
    reads: Literal["tiles", "statistics", "tensor"] = "tiles"

    def parameter(self, name: str) -> Parameter | None:
        """Return the parameter of that name, or None."""
        return next((known for known in self.parameters if known.name == name), None)

    @property
    def allowed_models(self) -> str:
        """How many models it merges, in words such as ``"2"``, ``"1 or more"``."""
        if self.max_models is None:
            return f"{self.min_models} or more"
        if self.max_models == self.min_models:
            return str(self.min_models)
        return f"{self.min_models} to {self.max_models}"


def _normalized(settings: Settings) -> list[float]:
    weights = settings.of_models("weight")
    if not settings.shared["normalize"]:
        return weights
    total = sum(weights)
    return [weight / total for weight in weights]


def _check_weights(settings: Settings) -> str | None:
    weights = settings.of_models("weight")
    if not settings.shared["normalize"]:
        return None
    if not np.isfinite(sum(weights)):
        return (
            f"the sum of the weights {', '.join(f'{weight:g}' for weight in weights)} overflows, so"
            " they cannot be normalised; give smaller weights"
        )
    if abs(sum(weights)) > _CANCELLED * sum(abs(weight) for weight in weights):
        return None
    return (
        f"the weights {', '.join(f'{weight:g}' for weight in weights)} sum to zero, so they cannot"
        " be normalised; change a weight or set normalize: false"
    )


def _mix(tile: Tile, coefficients: list[float], base: Array | None) -> None:
    # Imported when used, so that listing methods does not load the core.
    from weightshare._core import mixing as _mixing

    row = np.array([coefficients], dtype=np.float64)
    _mixing.mix([tile.out], tile.models, row, base, tile.threads)


def _combine_linear(tile: Tile) -> None:
    _mix(tile, _normalized(tile.settings), None)


def _combine_task_arithmetic(tile: Tile) -> None:
    strength = float(tile.settings.shared["lambda"])
    _mix(tile, [strength * weight for weight in _normalized(tile.settings)], tile.base)


_WEIGHT = Parameter("weight", "share of this model", per_model=True)

LINEAR = Method(
    name="linear",
    summary="sum of weight_i x_i, divided by the sum of the weights when normalize is true",
    source="Model soups, Wortsman et al. 2022, arXiv:2203.05482",
    parameters=(
        _WEIGHT,
        Parameter("normalize", "divide by the sum of the weights", default=True, kind="bool"),
    ),
    combine=_combine_linear,
    check=_check_weights,
)

TASK_ARITHMETIC = Method(
    name="task_arithmetic",
    summary="base + lambda * sum of weight_i (x_i - base)",
    source="Editing models with task arithmetic, Ilharco et al. 2022, arXiv:2212.04089",
    parameters=(
        _WEIGHT,
        Parameter("normalize", "divide by the sum of the weights", default=False, kind="bool"),
        Parameter("lambda", "strength of the summed task vectors", default=1.0),
    ),
    combine=_combine_task_arithmetic,
    check=_check_weights,
    needs_base=True,
)

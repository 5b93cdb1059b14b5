"""What a merge method is: its name, its parameters, what it surveys and what it does to a tile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from weightshare.merging.elements import Array

# Elements of a tensor whose sums are taken apart, so that results do not depend on the tiles.
CHUNK = 1 << 16


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
        None when a value must be given, unless it is `optional`.
    per_model : bool
        One value for each model, or one for the whole merge.
    kind : {"float", "bool", "int", "checkpoint"}
        What a value is. A checkpoint is the path of a file or folder that holds a tensor of the
        same name and shape for each tensor of the model, such as Fisher information.
    low, high : float
        The smallest and largest legal value of a number.
    optional : bool
        Whether the value may be left out though it has no default.
    """

    name: str
    summary: str
    default: float | bool | None = None
    per_model: bool = False
    kind: Literal["float", "bool", "int", "checkpoint"] = "float"
    low: float = -float("inf")
    high: float = float("inf")
    optional: bool = False

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is None and not self.optional

    def problem(self, value: float) -> str | None:
        """Return what is wrong with a number, such as ``"expected 0 to 1, got 2"``, or None."""
        if self.kind == "int" and value != int(value):
            return f"expected a whole number, got {value:g}"
        if self.low <= value <= self.high:
            return None
        if self.high == float("inf"):
            return f"expected at least {self.low:g}, got {value:g}"
        return f"expected {self.low:g} to {self.high:g}, got {value:g}"


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
class Tensor:
    """What a method knows of one tensor before it sees a tile.

    Attributes
    ----------
    name : str
        Of the output tensor.
    shape : tuple of int
        Of the whole tensor.
    settings : Settings
        The parameters for it.
    seed : int
        Key of the random numbers, for methods that draw some.
    dtypes : tuple of dtype
        Of each model's tensor, the base's last if there is one.
    has_base : bool
        Whether there is a base.
    """

    name: str
    shape: tuple[int, ...]
    settings: Settings
    seed: int
    dtypes: tuple[Any, ...]
    has_base: bool

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def row(self) -> int:
        """Elements of one row, that is of the last axis; a tensor of one axis is one row."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True, slots=True)
class Tile:
    """The same stretch of one tensor in every model, and the place of the result.

    Attributes
    ----------
    out : ndarray, shape (k,)
        Where the result goes; its dtype is that of the output. Empty while a tensor is surveyed.
    models : list of ndarray, shape (k,)
        The models' elements, in the order of the recipe, each of its own dtype.
    base : ndarray of shape (k,), or None
        The base model's elements.
    tensor : Tensor
        The tensor that it is a stretch of.
    start : int
        Flat index in the tensor of the tile's first element.
    threads : int
        How many threads the core may use; the result does not depend on it.
    statistics : list of ndarray, shape (k,)
        One for each model and parameter of kind ``"checkpoint"``, model by model.
    """

    out: Array
    models: list[Array]
    base: Array | None
    tensor: Tensor
    start: int = 0
    threads: int = 1
    statistics: tuple[Array, ...] = ()

    @property
    def settings(self) -> Settings:
        """The parameters for this tensor."""
        return self.tensor.settings

    @property
    def inputs(self) -> list[Array]:
        """Everything that was read, the base last, statistics left out."""
        return self.models if self.base is None else [*self.models, self.base]


@dataclass(frozen=True, slots=True)
class Pass:
    """One look at every tile of a tensor.

    Attributes
    ----------
    look : callable
        ``look(tile)`` returns what one tile tells. Called in any thread, in any order.
    fold : callable
        ``fold(total, told)`` returns the total with one tile's part. Called in one thread, in the
        order of the tiles; the total must not depend on where the tensor was cut.
    start : object
        The total before the first tile.
    """

    look: Callable[[Tile], Any]
    fold: Callable[[Any, Any], Any]
    start: Any = None


# Yields the passes that it needs, is sent the total of each, and returns what `combine` is given.
Survey = Generator[Pass, Any, Any]


def no_survey(_: Tensor) -> None:
    """Say that a tensor needs no look before its tiles are combined."""
    return


def anywhere(_: Tensor) -> int:
    """Say that a tensor may be cut between any two elements."""
    return 1


def at_chunks(_: Tensor) -> int:
    """Say that a tensor may be cut at multiples of `CHUNK` elements."""
    return CHUNK


def at_rows(tensor: Tensor) -> int:
    """Say that a tensor may be cut between rows."""
    return max(1, tensor.row)


def nowhere(tensor: Tensor) -> int:
    """Say that a tensor must be seen whole."""
    return max(1, tensor.size)


def no_scratch(_: Tensor) -> int:
    """Say that a method holds next to nothing beside its tile."""
    return 0


def nothing_wrong(_: Settings) -> None:
    """Say that values that are legal one by one are legal together."""
    return


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
        ``combine(tile, survey)`` writes ``tile.out``; `survey` is what the survey of the tensor
        returned, or None.
    check : callable
        ``check(settings)`` returns what is wrong with the values together, or None.
    base : {"none", "required", "optional", "joins"}
        Whether it takes a base model. One that joins is merged as one more model, the last.
    min_models, max_models : int, int or None
        How many models it merges, the base left out; None is no limit.
    survey : callable
        ``survey(tensor)`` returns None, or a generator that yields each `Pass` it needs over the
        tensor, is sent its total, and returns what `combine` is given.
    unit : callable
        ``unit(tensor)``: tiles begin and end at multiples of so many elements, or at the
        tensor's end.
    scratch : callable
        ``scratch(tensor)``: bytes that a worker may hold beside its tile, while it looks or
        combines; the budget of memory counts them.
    differs : str
        Where it is right and mergekit is not, in a sentence; empty when they agree.
    """

    name: str
    summary: str
    source: str
    parameters: tuple[Parameter, ...]
    combine: Callable[[Tile, Any], None]
    check: Callable[[Settings], str | None] = nothing_wrong
    base: Literal["none", "required", "optional", "joins"] = "none"
    min_models: int = 1
    max_models: int | None = None
    survey: Callable[[Tensor], Survey | None] = no_survey
    unit: Callable[[Tensor], int] = anywhere
    scratch: Callable[[Tensor], int] = no_scratch
    differs: str = ""

    @property
    def needs_base(self) -> bool:
        """Whether there must be a base model."""
        return self.base == "required"

    @property
    def statistics(self) -> tuple[Parameter, ...]:
        """The parameters whose values are checkpoints."""
        return tuple(known for known in self.parameters if known.kind == "checkpoint")

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


def combine_whole(method: Method, tile: Tile) -> None:
    """Survey and combine a tensor that is one tile.

    Parameters
    ----------
    method : Method
        The method.
    tile : Tile
        All of a tensor.
    """
    survey = method.survey(tile.tensor)
    found = None
    if survey is not None:
        try:
            wanted = next(survey)
            while True:
                wanted = survey.send(wanted.fold(wanted.start, wanted.look(tile)))
        except StopIteration as end:
            found = end.value
    method.combine(tile, found)

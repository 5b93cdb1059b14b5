"""Adding a merge method in Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from weightshare.errors import ArgumentError, ArgumentTypeError, ElementError, ShapeError
from weightshare.merging.elements import CODE_OF_DTYPE, Array
from weightshare.merging.method import (
    Method,
    Parameter,
    Tensor,
    Tile,
    anywhere,
    at_rows,
    no_scratch,
    nowhere,
)
from weightshare.merging.registry import add_method

Sees = Literal["elements", "rows", "tensor"]
BaseUse = Literal["none", "required", "optional", "joins"]
Function = Callable[..., Any]

_UNITS: dict[str, Callable[[Tensor], int]] = {
    "elements": anywhere,
    "rows": at_rows,
    "tensor": nowhere,
}
_FIRST = 2  # arguments before the parameters: models, base
# What `weightshare.merge` takes itself, so that no parameter of that name would arrive.
_TAKEN = ("models", "weights", "method", "base", "seed", "threads")


def register_method(
    method: str | Method,
    function: Function | None = None,
    *,
    sees: Sees = "elements",
    base: BaseUse = "none",
    min_models: int = 1,
    max_models: int | None = None,
    parameters: Sequence[Parameter] | None = None,
    summary: str = "",
    source: str = "",
    replace: bool = False,
) -> Method:
    """Add a merge method, for `weightshare.merge` and for recipes, in this process.

    The function is called with one stretch of a tensor after the other, several at a time from
    several threads, so it must not keep anything between calls.

    Parameters
    ----------
    method : str or Method
        The name of the new method; or a whole `Method`, and then nothing but `replace` is given.
    function : callable
        ``function(models, base, **parameters)`` returns the merged array. `models` is a list of
        float32 arrays (float64 where a tensor is float64) of equal shape, `base` such an array or
        None; a per-model parameter is a list of numbers. What it returns is rounded once to the
        element of the result.
    sees : {"elements", "rows", "tensor"}
        What it must see together: arrays are (k,) stretches of elements, (k, n) whole rows along
        the last axis, or the whole tensor in its shape.
    base : {"none", "required", "optional", "joins"}
        Whether there is a base model; one that joins is the last of `models`.
    min_models, max_models : int, int or None
        How many models it merges, the base left out; None is no limit.
    parameters : sequence of Parameter, optional
        None takes the function's own arguments after the first two: numbers, or switches where
        the default is True or False; those without a default must be given. One named ``weight``
        is a list with the weight of each model; ``lambda_`` is ``lambda`` in recipes.
    summary, source : str
        The formula and where it is from; None given, the first line of the function's docstring.
    replace : bool
        Whether a method of that name may be replaced.

    Returns
    -------
    Method
        What was added.

    Raises
    ------
    ArgumentError
        The name is taken or cannot be written in a recipe, or another argument is not legal.
    ArgumentTypeError
        `method` or `function` is not what it should be.

    Notes
    -----
    While merging, a function that returns another shape raises ``ShapeError``, and one that
    returns no real numbers ``ElementError``.

    Examples
    --------
    >>> import weightshare as ws
    >>> def median(models, base, lean=0.0):
    ...     '''Median of the models, element by element.'''
    ...     return np.median(models, axis=0) + lean
    >>> register_method("median", median, min_models=3).summary
    'Median of the models, element by element.'
    >>> ws.merge([np.float32([1, 9]), np.float32([2, 2]), np.float32([7, 3])], method="median")
    array([2., 3.], dtype=float32)
    >>> ws.forget_method("median")
    """
    made = (
        method
        if isinstance(method, Method)
        else _made(method, function, sees, base, min_models, max_models, parameters)
    )
    if isinstance(method, Method):
        given = (function, sees, base, min_models, max_models, parameters, summary, source)
        if given != (None, "elements", "none", 1, None, None, "", ""):
            raise ArgumentError("method: a whole Method is given alone, or with replace")
    else:
        made = _described(made, function, summary, source)
    _check_parameters(made.parameters)
    add_method(made, replace=replace)
    return made


def _made(
    name: str,
    function: Function | None,
    sees: str,
    base: str,
    min_models: int,
    max_models: int | None,
    parameters: Sequence[Parameter] | None,
) -> Method:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"method: expected a name or a Method, got {type(name).__name__}")
    if not callable(function):
        raise ArgumentTypeError(
            f"function: expected a callable of (models, base, ...), got {type(function).__name__}"
        )
    _check_word("sees", sees, get_args(Sees))
    _check_word("base", base, get_args(BaseUse))
    if min_models < 1 or (max_models is not None and max_models < min_models):
        raise ArgumentError(
            "min_models, max_models: expected 1 <= min_models <= max_models, got"
            f" {min_models} and {max_models}"
        )
    known = _parameters_of(function) if parameters is None else tuple(parameters)
    if any(parameter.kind == "checkpoint" for parameter in known):
        raise ArgumentError(
            "parameters: a function is not given checkpoints; pass a whole Method, whose tiles"
            " hold them"
        )
    return Method(
        name=name,
        summary="",
        source="",
        parameters=known,
        combine=_Combine(name, function, sees, known),
        base=base,  # type: ignore[arg-type]
        min_models=min_models,
        max_models=max_models,
        unit=_UNITS[sees],
        scratch=no_scratch if sees == "elements" else partial(_scratch, _UNITS[sees]),
    )


def _scratch(unit: Callable[[Tensor], int], tensor: Tensor) -> int:
    """Return the bytes of what a function sees together, as it gets it: float32 or float64.

    Its result counts too, and one more array that it works with.
    """
    work = 8 if np.dtype(np.float64) in tensor.dtypes else 4
    return unit(tensor) * work * (len(tensor.dtypes) + 2)


def _check_parameters(parameters: Sequence[Parameter]) -> None:
    names = [parameter.name for parameter in parameters]
    for parameter in parameters:
        name = parameter.name
        if name in _TAKEN:
            instead = "; name it weight, a list of numbers" if name == "weights" else ""
            raise ArgumentError(
                f"parameters: {name!r} is an argument of weightshare.merge itself, choose another"
                f" name{instead}"
            )
        if names.count(name) > 1:
            raise ArgumentError(f"parameters: {name!r} is there {names.count(name)} times")
        if name == "weight" and not parameter.per_model:
            raise ArgumentError("parameters: 'weight' must be per_model, one number for each model")


def _check_word(argument: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ArgumentError(f"{argument}: expected one of {', '.join(known)}, got {word!r}")


def _described(made: Method, function: Function | None, summary: str, source: str) -> Method:
    lines = (inspect.getdoc(function) or "").splitlines()
    told = summary or (lines[0] if lines else f"the function {_name_of(function)}")
    where = source or f"registered in this process: {_name_of(function)}"
    return Method(**{**vars(made), "summary": told, "source": where})


def _name_of(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _parameters_of(function: Function) -> tuple[Parameter, ...]:
    """Return the function's arguments after the models and the base."""
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except ValueError:
        raise ArgumentError(
            f"function: the arguments of {_name_of(function)} are not known; wrap it in a Python"
            " function of (models, base)"
        ) from None
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if len(arguments) < _FIRST or arguments[1].kind is inspect.Parameter.KEYWORD_ONLY:
        raise ArgumentError(
            f"function: expected {_name_of(function)}(models, base, ...), got"
            f" {_name_of(function)}{inspect.signature(function)}"
        )
    return tuple(
        _parameter_of(argument, _name_of(function))
        for argument in arguments[_FIRST:]
        if argument.kind not in variable
    )


def _parameter_of(argument: inspect.Parameter, function: str) -> Parameter:
    name = "lambda" if argument.name == "lambda_" else argument.name
    summary = f"argument of {function}"
    each = name == "weight"
    default = argument.default
    if default is inspect.Parameter.empty:
        return Parameter(name, summary, per_model=each)
    if isinstance(default, bool):
        return Parameter(name, summary, default=default, per_model=each, kind="bool")
    if isinstance(default, int) and argument.annotation in (int, "int"):
        return Parameter(name, summary, default=default, per_model=each, kind="int")
    if isinstance(default, int | float):
        return Parameter(name, summary, default=float(default), per_model=each)
    raise ArgumentError(
        f"function: argument {argument.name!r} has the default {default!r}; parameters of a method"
        " are numbers or switches"
    )


@dataclass(frozen=True)
class _Combine:
    """Calls the function on a tile, and checks and rounds what it returns."""

    name: str
    function: Function
    sees: str
    parameters: tuple[Parameter, ...]

    def __call__(self, tile: Tile, _: object) -> None:
        from weightshare._core import mixing as _mixing

        shape = self._shape(tile)
        wide = any(array.dtype == np.float64 for array in (*tile.inputs, tile.out))
        work = np.dtype(np.float64 if wide else np.float32)
        models = [model.reshape(shape).astype(work) for model in tile.models]
        base = None if tile.base is None else tile.base.reshape(shape).astype(work)
        result = self._checked(self.function(models, base, **self._values(tile)), shape, work)
        _mixing.mix([tile.out], [result.reshape(-1)], np.ones((1, 1)), None, tile.threads)

    def _shape(self, tile: Tile) -> tuple[int, ...]:
        if self.sees == "tensor":
            return tile.tensor.shape
        size, row = tile.out.size, max(1, tile.tensor.row)
        return (size // row, row) if self.sees == "rows" else (size,)

    def _values(self, tile: Tile) -> dict[str, Any]:
        settings = tile.settings
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            cast = {"bool": bool, "int": int}.get(parameter.kind, float)
            keyword = "lambda_" if parameter.name == "lambda" else parameter.name
            if parameter.per_model:
                each = [held.get(parameter.name) for held in settings.per_model]
                values[keyword] = [None if one is None else cast(one) for one in each]
            elif parameter.name in settings.shared:
                values[keyword] = cast(settings.shared[parameter.name])
        return values

    def _checked(self, returned: Any, shape: tuple[int, ...], work: np.dtype[Any]) -> Array:
        result = np.asarray(returned)
        if result.dtype not in CODE_OF_DTYPE:
            if result.dtype.kind not in "biu":
                raise ElementError(
                    f"{self.name}: its function returned {result.dtype}, expected real numbers"
                )
            result = result.astype(work)
        if result.shape != shape:
            raise ShapeError(
                f"{self.name}: its function returned shape {result.shape}, expected {shape}"
            )
        return np.ascontiguousarray(result)

"""Merging models that are held in memory."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from weightshare._core.arrays import as_array, contiguous
from weightshare._core.threads import resolve_threads
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)
from weightshare.merging.elements import CODE_OF_DTYPE, DTYPE_OF_CODE, Array, promoted
from weightshare.merging.method import (
    Method,
    Parameter,
    Settings,
    Tensor,
    Tile,
    combine_whole,
)
from weightshare.merging.registry import get_method, nearest

Model = Mapping[str, ArrayLike] | ArrayLike


def merge(
    models: Sequence[Model] | Array,
    weights: Sequence[float] | None = None,
    *,
    method: str = "linear",
    base: Model | None = None,
    seed: int = 0,
    threads: int | None = None,
    **parameters: Any,
) -> Array | dict[str, Array]:
    """Merge models in memory by a method of `weightshare.methods`.

    The same numbers as `weightshare.merge_checkpoints` writes: arithmetic in float32, or in
    float64 where an input is float64, rounded once to the dtype of the result.

    Parameters
    ----------
    models : sequence of arrays or of mappings, or array of shape (n, ...)
        The models. Entries of mappings that are integer or boolean are copied when all models
        agree on them.
    weights : sequence of n numbers, optional
        The ``weight`` of each model; None is 1 for each.
    method : str
        A name that `weightshare.methods` lists.
    base : array or mapping, optional
        The base model, for the methods that need or take one.
    seed : int
        Key of random numbers, for methods that draw some.
    threads : int, optional
        Threads; None means ``OMP_NUM_THREADS``, else the cores of this process. The result does
        not depend on it.
    **parameters : float, bool or sequence
        The method's parameters; a per-model one may be a sequence of n. ``lambda_`` stands for
        ``lambda``, which Python reserves. One that is a checkpoint in recipes, such as
        ``fisher``, is a sequence of n arrays or mappings with the shapes of the models.

    Returns
    -------
    ndarray or dict of str to ndarray
        A new model, of the dtype of the models and the base; where they differ, of the one that
        holds them all: float16 with bfloat16 gives float32.

    Raises
    ------
    ArgumentError
        Unknown method or parameter, a value that cannot be used, too few or too many models, a
        missing or superfluous base.
    ArgumentTypeError, ElementError
        Models that are no arrays of numbers, a seed that is no integer.
    NamesError, ShapeError
        Models that do not hold the same names or shapes.

    Examples
    --------
    >>> merge([np.float32([1, 2]), np.float32([3, 6])], [1, 3])
    array([2.5, 5. ], dtype=float32)
    >>> base = {"w": np.zeros(2)}
    >>> merge([{"w": np.ones(2)}], method="task_arithmetic", base=base, lambda_=0.5)
    {'w': array([0.5, 0.5])}
    >>> merge([np.float32([0, 2])], method="slerp", base=np.float32([2, 0]), t=0.5)
    array([1.4142135, 1.4142135], dtype=float32)
    """
    chosen = get_method(method)
    key = _checked_seed(seed)
    models = _as_sequence(models)
    given, anchor = check_models(models, chosen, base)
    if chosen.base == "joins" and anchor is not None:
        given, anchor = [*given, anchor], None
    numbers = {name: value for name, value in parameters.items() if not _is_statistic(chosen, name)}
    settings = _settings(chosen, len(given), weights, numbers)
    statistics = _statistics(chosen, given, parameters)
    workers = resolve_threads(threads)
    every = given if anchor is None else [*given, anchor]
    merged: dict[str, Array] = {}
    for name in every[-1]:
        arrays = [model[name] for model in every]
        if any(array.dtype not in CODE_OF_DTYPE for array in arrays):
            merged[name] = _copied(name, arrays)
            continue
        measured = [_statistic(label, held, name, arrays[0]) for label, held in statistics]
        work = _Work(chosen, settings, anchor is not None, key, workers)
        merged[name] = work.merge_tensor(name, arrays, measured)
    return merged if isinstance(models[0], Mapping) else merged[""]


def check_models(
    models: Sequence[Model] | Array, method: Method, base: Model | None = None
) -> tuple[list[dict[str, Array]], dict[str, Array] | None]:
    """Return models and base as mappings of arrays that fit each other and the method.

    Parameters
    ----------
    models, base
        As for `merge`.
    method : Method
        What they are for.

    Returns
    -------
    list of dict, and dict or None
        The models and the base; an array is a model of one tensor without a name.

    Raises
    ------
    ArgumentError, ArgumentTypeError, ElementError, NamesError, ShapeError
        As `merge` does.

    Examples
    --------
    >>> check_models([np.ones(1)], get_method("linear"))
    ([{'': array([1.])}], None)
    """
    given = [_as_model(model, f"models[{i}]") for i, model in enumerate(_as_sequence(models))]
    anchor = None if base is None else _as_model(base, "base")
    _check_models(method, given, anchor)
    return given, anchor


def _as_sequence(models: Sequence[Model] | Array) -> list[Model]:
    if isinstance(models, Mapping | str) or not hasattr(models, "__len__"):
        raise ArgumentTypeError(
            f"models: expected a sequence of models, got {type(models).__name__}; put the models"
            " into a list"
        )
    if len(models) == 0:
        raise ArgumentError("models: expected at least one model, got none")
    return list(models)


def _checked_seed(seed: Any) -> int:
    if isinstance(seed, bool | np.bool_) or not hasattr(seed, "__index__"):
        raise ArgumentTypeError(f"seed: expected an integer, got {seed!r}")
    return operator.index(seed)


def _as_model(model: Model, argument: str) -> dict[str, Array]:
    if isinstance(model, Mapping):
        return {name: _as_array(value, f"{argument}[{name!r}]") for name, value in model.items()}
    # An array is a model of one tensor that has no name.
    return {"": _as_array(model, argument)}


def _as_array(value: Any, argument: str) -> Array:
    array = contiguous(as_array(value, argument))
    if array.dtype not in CODE_OF_DTYPE and array.dtype.kind not in "biu":
        raise ElementError(
            f"{argument}: expected float16, bfloat16, float32 or float64, got {array.dtype};"
            " convert it with astype"
        )
    return array


def _check_models(
    method: Method, models: list[dict[str, Array]], base: dict[str, Array] | None
) -> None:
    if method.needs_base and base is None:
        raise ArgumentError(f"base: method {method.name!r} needs a base model, got None")
    if method.base == "none" and base is not None:
        raise ArgumentError(f"base: method {method.name!r} takes no base model; leave it out")
    most = method.max_models
    if len(models) < method.min_models or (most is not None and len(models) > most):
        raise ArgumentError(
            f"models: method {method.name!r} merges {method.allowed_models}, got {len(models)}"
        )
    expected = models[0] if base is None else base
    for index, model in enumerate(models):
        missing, extra = sorted(expected.keys() - model), sorted(model.keys() - expected)
        if missing or extra:
            raise NamesError(
                f"models[{index}]: lacks {missing[:5]} and has {extra[:5]} beside the others;"
                " every model must hold the same names"
            )
        for name, array in model.items():
            if array.shape != expected[name].shape:
                raise ShapeError(
                    f"models[{index}]{[name] if name else ''}: expected shape"
                    f" {expected[name].shape}, got {array.shape}"
                )


def _settings(
    method: Method, count: int, weights: Sequence[float] | None, given: dict[str, Any]
) -> Settings:
    values = {("lambda" if name == "lambda_" else name): value for name, value in given.items()}
    if "weight" in values:
        raise ArgumentError("weight: give the weights as the argument weights")
    known = [parameter.name for parameter in method.parameters]
    if weights is not None or "weight" in known:
        values["weight"] = [1.0] * count if weights is None else weights
    for name in values:
        if name not in known:
            raise ArgumentError(
                f"{name}: method {method.name!r} has no such parameter"
                f"{nearest(name, known)} (it takes {', '.join(known)})"
            )
    shared: dict[str, float] = {}
    per_model: list[dict[str, float]] = [{} for _ in range(count)]
    for parameter in method.parameters:
        if parameter.kind == "checkpoint":
            continue
        value = values.get(parameter.name, parameter.default)
        if value is None and parameter.required:
            raise ArgumentError(f"{parameter.name}: is missing, and {method.name} needs it")
        if value is None:
            continue
        if not parameter.per_model:
            shared[parameter.name] = _number(parameter, value)
            continue
        for row, item in zip(per_model, _column(parameter, value, count), strict=True):
            row[parameter.name] = _number(parameter, item)
    settings = Settings(shared, tuple(per_model))
    problem = method.check(settings)
    if problem is not None:
        raise ArgumentError(f"{method.name}: {problem}")
    return settings


def _column(parameter: Parameter, value: Any, count: int) -> list[Any]:
    if not hasattr(value, "__iter__") or getattr(value, "ndim", 1) == 0:
        return [value] * count
    items = list(value)
    if len(items) != count:
        name = "weights" if parameter.name == "weight" else parameter.name
        raise ArgumentError(
            f"{name}: expected {count} values, one for each model, got {len(items)}"
        )
    return items


def _number(parameter: Parameter, value: Any) -> float:
    name = "weights" if parameter.name == "weight" else parameter.name
    if parameter.kind == "bool":
        if not isinstance(value, bool | np.bool_):
            raise ArgumentError(f"{name}: expected True or False, got {value!r}")
        return bool(value)
    if isinstance(value, bool | np.bool_ | str) or not np.isscalar(value) or np.iscomplex(value):
        raise ArgumentError(f"{name}: expected a real number, got {value!r}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = np.inf
    if not np.isfinite(number):
        raise ArgumentError(f"{name}: expected a finite number, got {value!r}")
    problem = parameter.problem(number)
    if problem is not None:
        raise ArgumentError(f"{name}: {problem}")
    return number


@dataclass(frozen=True, slots=True)
class _Work:
    method: Method
    settings: Settings
    has_base: bool
    seed: int
    threads: int

    def merge_tensor(self, name: str, arrays: list[Array], statistics: list[Array]) -> Array:
        codes = [CODE_OF_DTYPE[array.dtype] for array in arrays]
        out = np.empty(arrays[-1].shape, DTYPE_OF_CODE[promoted(codes)])
        if not out.size:
            return out
        flat = [array.reshape(-1) for array in arrays]
        models, base = (flat[:-1], flat[-1]) if self.has_base else (flat, None)
        dtypes = tuple(array.dtype for array in arrays)
        tensor = Tensor(name, out.shape, self.settings, self.seed, dtypes, self.has_base)
        measured = tuple(array.reshape(-1) for array in statistics)
        whole = out.reshape(-1)
        combine_whole(self.method, Tile(whole, models, base, tensor, 0, self.threads, measured))
        return out


def _is_statistic(method: Method, name: str) -> bool:
    return any(known.name == name for known in method.statistics)


def _statistics(
    method: Method, models: list[dict[str, Array]], given: dict[str, Any]
) -> list[tuple[str, dict[str, Array]]]:
    """Return what each parameter that is a checkpoint holds of each model, model by model."""
    columns = []
    for parameter in method.statistics:
        value = given.get(parameter.name)
        if value is None:
            if parameter.required:
                raise ArgumentError(f"{parameter.name}: is missing, and {method.name} needs it")
            continue
        if isinstance(value, Mapping | str) or not hasattr(value, "__len__"):
            raise ArgumentTypeError(
                f"{parameter.name}: expected a sequence of {len(models)} arrays or mappings, one"
                f" for each model, got {type(value).__name__}"
            )
        if len(value) != len(models):
            raise ArgumentError(
                f"{parameter.name}: expected {len(models)} values, one for each model, got"
                f" {len(value)}"
            )
        labels = [f"{parameter.name}[{i}]" for i in range(len(models))]
        columns.append(
            [(label, _as_model(held, label)) for label, held in zip(labels, value, strict=True)]
        )
    return [entry for row in zip(*columns, strict=True) for entry in row]


def _statistic(label: str, held: dict[str, Array], name: str, model: Array) -> Array:
    if name not in held:
        raise NamesError(f"{label}: lacks {name!r}; it must hold what the models hold")
    found = held[name]
    if found.shape != model.shape:
        raise ShapeError(
            f"{label}{[name] if name else ''}: expected shape {model.shape}, got {found.shape}"
        )
    if found.dtype not in CODE_OF_DTYPE:
        raise ElementError(
            f"{label}{[name] if name else ''}: expected float16, bfloat16, float32 or float64, got"
            f" {found.dtype}; convert it with astype"
        )
    return found


def _copied(name: str, arrays: list[Array]) -> Array:
    first = arrays[-1]
    label = f" {name!r}" if name else ""
    if any(array.dtype != first.dtype for array in arrays):
        found = ", ".join(str(array.dtype) for array in arrays)
        raise ElementError(f"models: tensor{label} has dtypes {found}; convert them to one float")
    if not name:
        raise ElementError(
            f"models: expected float16, bfloat16, float32 or float64, got {first.dtype}; convert"
            " them with astype"
        )
    if any(not np.array_equal(array, first) for array in arrays):
        raise ArgumentError(
            f"models: tensor{label} is {first.dtype} and differs between the models; integers are"
            " not merged, make them equal or leave them out"
        )
    return first.copy()

"""What users pass becomes NumPy arrays here: one place that accepts, converts once, or refuses.

A **model** is an array, or a mapping from names to arrays. `Family` is n models of one form, tensor
by tensor, the shape in which every function that compares or mixes models wants them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightshare._core.tensors import array_of_tensor, is_tensor
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)

Array = NDArray[Any]
Model = Array | Mapping[str, Any]

FLOATS = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
_FLOAT_NAMES = "float16, bfloat16, float32 or float64"


def as_array(value: Any, argument: str) -> Array:
    """The value as an array of a native dtype, without a copy where there need be none.

    CPU torch tensors share their memory; nested lists of numbers become float64.
    """
    if is_tensor(value):
        return array_of_tensor(value, argument)
    if isinstance(value, np.ma.MaskedArray):
        raise ArgumentTypeError(f"{argument}: masked arrays are not supported; fill the mask first")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(
            f"{argument}: expected an array, got a ragged sequence ({error})"
        ) from None
    if array.dtype.kind in "iu" and not hasattr(value, "dtype"):
        array = array.astype(np.float64)
    if array.dtype.kind in "OSUMmc" or array.dtype.names is not None:
        raise ElementError(f"{argument}: expected {_FLOAT_NAMES}, got {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def contiguous(array: Array) -> Array:
    """The array itself if it is C-contiguous and aligned, else one copy; keeps zero dimensions."""
    plain = array.flags.c_contiguous and array.flags.aligned
    return array if plain else np.array(array, order="C")


@dataclass(frozen=True)
class Family:
    """n models of one form, by tensor: ``tensors[name]`` are the n arrays of that name.

    `form` is ``"array"`` (one array, models along its first axis), ``"arrays"`` or ``"mappings"``;
    the first two have the one name ``""``.
    """

    form: str
    n: int
    tensors: dict[str, list[Array]]

    @property
    def floats(self) -> dict[str, list[Array]]:
        """Only the tensors of float16, bfloat16, float32 or float64."""
        return {name: w for name, w in self.tensors.items() if w[0].dtype in FLOATS}

    def label(self, j: int, name: str, argument: str) -> str:
        """How a message names one array, such as ``models[2]['bias']``."""
        return f"{argument}[{j}]" if self.form != "mappings" else f"{argument}[{j}][{name!r}]"


def as_family(models: Any, argument: str = "models", *, least: int = 1) -> Family:
    """n models: an array (n, ...), or a sequence of arrays or of mappings.

    Raises
    ------
    ArgumentTypeError, ElementError
        For what is no model, or has a dtype that no tensor of a model may have.
    ShapeError, NamesError
        If shapes or names differ between the models.
    """
    if isinstance(models, Mapping):
        raise ArgumentTypeError(
            f"{argument}: expected several models, got one mapping; pass a list of mappings"
        )
    if hasattr(models, "shape") and hasattr(models, "dtype"):
        family = _from_stack(as_array(models, argument), argument)
    elif isinstance(models, Iterable) and not isinstance(models, (str, bytes)):
        family = _from_sequence(list(models), argument)
    else:
        raise ArgumentTypeError(
            f"{argument}: expected an array or a sequence of models, got {type(models).__name__}"
        )
    if family.n < least:
        raise ArgumentError(f"{argument}: expected at least {least} models, got {family.n}")
    return family


def _from_stack(stack: Array, argument: str) -> Family:
    if stack.ndim == 0:
        raise ShapeError(f"{argument}: expected shape (n, ...), got a single number")
    _check_float(stack, argument)
    return Family("array", len(stack), {"": [contiguous(row) for row in _rows(stack)]})


def _rows(stack: Array) -> list[Array]:
    # stack[j] of a one-dimensional array would be a scalar that has lost its memory
    return [stack[j, ...] for j in range(len(stack))]


def _from_sequence(models: list[Any], argument: str) -> Family:
    if not models:
        raise ArgumentError(f"{argument}: expected at least one model, got none")
    mappings = [isinstance(model, Mapping) for model in models]
    if all(mappings):
        return _from_mappings(models, argument)
    if any(mappings):
        odd = mappings.index(not mappings[0])
        raise ArgumentTypeError(
            f"{argument}: expected all arrays or all mappings; {argument}[{odd}] is of the other kind"
        )
    arrays = [as_array(model, f"{argument}[{j}]") for j, model in enumerate(models)]
    family = Family("arrays", len(arrays), {"": arrays})
    for j, array in enumerate(arrays):
        _check_float(array, f"{argument}[{j}]")
    _check_alike(family, "", argument)
    return _contiguous(family)


def _from_mappings(models: Sequence[Mapping[str, Any]], argument: str) -> Family:
    names = list(models[0])
    check_names(models, argument)
    family = Family("mappings", len(models), {name: [] for name in names})
    for name in names:
        for j, model in enumerate(models):
            array = as_array(model[name], family.label(j, name, argument))
            family.tensors[name].append(array)
        _check_alike(family, name, argument)
        first = family.tensors[name][0]
        if first.dtype.kind not in "biu":
            _check_float(first, family.label(0, name, argument))
    return _contiguous(family)


def _contiguous(family: Family) -> Family:
    tensors = {name: [contiguous(a) for a in arrays] for name, arrays in family.tensors.items()}
    return Family(family.form, family.n, tensors)


def check_names(models: Sequence[Mapping[str, Any]], argument: str) -> None:
    expected = set(models[0])
    for name in expected:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"{argument}[0]: expected names that are str, got {name!r}")
    for j, model in enumerate(models):
        missing, extra = sorted(expected - set(model)), sorted(map(str, set(model) - expected))
        if missing or extra:
            parts = [f"lacks {missing[:3]}"] * bool(missing) + [f"adds {extra[:3]}"] * bool(extra)
            raise NamesError(
                f"{argument}[{j}]: expected the names of {argument}[0]; it {' and '.join(parts)}"
            )


def _check_float(array: Array, label: str) -> None:
    if array.dtype not in FLOATS:
        raise ElementError(
            f"{label}: expected {_FLOAT_NAMES}, got {array.dtype}; cast it, such as x.astype('float32')"
        )


def _check_alike(family: Family, name: str, argument: str) -> None:
    first = family.tensors[name][0]
    for j, array in enumerate(family.tensors[name]):
        label = family.label(j, name, argument)
        if array.shape != first.shape:
            raise ShapeError(f"{label}: expected shape {first.shape}, got {array.shape}")
        if array.dtype != first.dtype:
            raise ElementError(
                f"{label}: expected {first.dtype} as in {family.label(0, name, argument)}, "
                f"got {array.dtype}; cast one of them"
            )


def as_model_like(model: Any, family: Family, argument: str) -> dict[str, Array]:
    """One model with the names and shapes of a family (a base, a target), by tensor name."""
    is_mapping = isinstance(model, Mapping)
    if is_mapping != (family.form == "mappings"):
        expected = "a mapping" if family.form == "mappings" else "an array"
        raise ArgumentTypeError(
            f"{argument}: expected {expected} like the models, got {type(model).__name__}"
        )
    if not is_mapping:
        model = {"": model}
    elif set(model) != set(family.tensors):
        odd = sorted(set(model) ^ set(family.tensors))
        raise NamesError(f"{argument}: expected the names of the models; these differ: {odd[:3]}")
    arrays = {name: as_array(model[name], argument) for name in family.tensors}
    for name, array in arrays.items():
        shape = family.tensors[name][0].shape
        if array.shape != shape:
            label = f"{argument}[{name!r}]" if is_mapping else argument
            raise ShapeError(f"{label}: expected shape {shape}, got {array.shape}")
        if family.tensors[name][0].dtype in FLOATS:
            _check_float(array, f"{argument}[{name!r}]" if is_mapping else argument)
    return {name: contiguous(array) for name, array in arrays.items()}

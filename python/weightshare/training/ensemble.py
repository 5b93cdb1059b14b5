"""All the models of a run as flat buffers, with the arithmetic that merging and stepping need.

The caller's form (one array, or a list of mappings) is checked here, and given back at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightshare._core.arrays import as_array
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)

Array: TypeAlias = NDArray[Any]
Models: TypeAlias = Any  # an array (n, ...), or a list of n dicts: whatever the caller gave

_BLOCK = 1 << 16  # elements a pass holds in float64 besides the models


class Form:
    """How the caller's models look: names (None for one array), shapes and element types."""

    def __init__(self, W: Models) -> None:
        if isinstance(W, Mapping):
            raise ArgumentTypeError(
                "W: expected an array (n, ...) or a sequence of n mappings, got one mapping; put "
                "the models into a list."
            )
        self.names: tuple[str, ...] | None = None
        if isinstance(W, Sequence) and len(W) and all(isinstance(m, Mapping) for m in W):
            self._from_mappings(W)
        else:
            found = _array(W, "W")
            if found.ndim == 0 or found.size == 0:
                raise ShapeError(
                    f"W: expected an array (n, ...) with at least one number, got shape "
                    f"{found.shape}; stack the models along the first axis."
                )
            self.n, self.shapes, self.dtypes = len(found), [found.shape[1:]], [found.dtype]
            _check_finite(found, "W")
        self.work = [np.dtype("f8" if d == np.float64 else "f4") for d in self.dtypes]
        self.epsilon = max(float(np.finfo(d).eps) for d in self.work)

    def _from_mappings(self, W: Sequence[Mapping[str, Any]]) -> None:
        self.n, self.names = len(W), tuple(W[0])
        for i, model in enumerate(W):
            _check_names(model, self.names, f"W[{i}]")
        first = [_array(W[0][name], f"W[0][{name!r}]") for name in self.names]
        self.shapes, self.dtypes = [a.shape for a in first], [a.dtype for a in first]
        if not sum(a.size for a in first):
            raise ShapeError("W: expected at least one number, got empty models; give weights.")
        for i, model in enumerate(W):
            for name, like in zip(self.names, first, strict=True):
                label = f"W[{i}][{name!r}]"
                found = _array(model[name], label)
                _check_shape(found, like.shape, label, f"W[0][{name!r}]")
                if found.dtype != like.dtype:
                    raise ElementError(
                        f"{label}: expected {like.dtype} as in W[0], got {found.dtype}; cast the "
                        "models to one type."
                    )
                _check_finite(found, label)

    def fill(self, buffer: Buffer, W: Models) -> None:
        """Copy the caller's models into a buffer."""
        if self.names is None:
            buffer.leaves[0][...] = _array(W, "W").reshape(self.n, -1)
            return
        for i, model in enumerate(W):
            for name, leaf in zip(self.names, buffer.leaves, strict=True):
                leaf[i] = _array(model[name], name).reshape(-1)

    def gradient(self, G: Any) -> tuple[Any, list[Array]]:
        """Check a gradient; return it as a step object takes it, and as pieces."""
        if self.names is None:
            found = _array(G, "gradient(W)", self.work[0])
            _check_shape(found, (self.n, *self.shapes[0]), "gradient(W)", "W")
            return found, [found.reshape(self.n, -1)]
        if isinstance(G, Mapping) or not isinstance(G, Sequence) or len(G) != self.n:
            got = f"{len(G)} entries" if isinstance(G, Sequence) else type(G).__name__
            raise ShapeError(
                f"gradient(W): expected a sequence of {self.n} mappings as W, got {got}; return "
                "one mapping for each model."
            )
        flat: dict[str, Array] = {}
        for i, model in enumerate(G):
            label = f"gradient(W)[{i}]"
            if not isinstance(model, Mapping):
                raise ArgumentTypeError(
                    f"{label}: expected a mapping as W[{i}], got {type(model).__name__}; return "
                    "name → array."
                )
            _check_names(model, self.names, label)
            for k, name in enumerate(self.names):
                found = _array(model[name], f"{label}[{name!r}]", self.work[k])
                _check_shape(found, self.shapes[k], f"{label}[{name!r}]", f"W[{i}][{name!r}]")
                flat[f"{i}.{name}"] = found
        return flat, [found.reshape(1, -1) for found in flat.values()]

    def restored(self, buffer: Buffer) -> Models:
        """Return the buffer's models in the caller's form and element types."""
        whole = [
            leaf.reshape(self.n, *shape).astype(dtype, copy=False)
            for leaf, shape, dtype in zip(buffer.leaves, self.shapes, self.dtypes, strict=True)
        ]
        if self.names is None:
            return whole[0]
        # `...` keeps a scalar entry an array
        return [
            {name: leaf[i, ...] for name, leaf in zip(self.names, whole, strict=True)}
            for i in range(self.n)
        ]


class Buffer:
    """All models: leaves (n, size), one a name; pieces (rows, size); views in the caller's form."""

    def __init__(self, form: Form) -> None:
        sizes = [math.prod(shape) for shape in form.shapes]
        self.leaves = [np.zeros((form.n, k), d) for k, d in zip(sizes, form.work, strict=True)]
        self.pieces: list[Array]
        self.writable: Any
        self.shown: Models
        shaped = [
            leaf.reshape(form.n, *shape)
            for leaf, shape in zip(self.leaves, form.shapes, strict=True)
        ]
        if form.names is None:
            self.writable, self.shown = shaped[0], _read_only(shaped[0])
            self.pieces = self.leaves
            return
        self.pieces = [leaf[i : i + 1] for i in range(form.n) for leaf in self.leaves]
        self.writable, self.shown = {}, []
        for i in range(form.n):
            model = {name: leaf[i, ...] for name, leaf in zip(form.names, shaped, strict=True)}
            self.writable.update({f"{i}.{name}": view for name, view in model.items()})
            self.shown.append({name: _read_only(view) for name, view in model.items()})


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def copy(targets: list[Array], sources: list[Array]) -> None:
    """Copy each source into its target."""
    for target, source in zip(targets, sources, strict=True):
        target[...] = source


def add(targets: list[Array], sources: list[Array], factor: float) -> None:
    """Add factor · source to each target, in blocks so that no model-sized temporary arises."""
    for target, source in zip(targets, sources, strict=True):
        for part in _blocks(target):
            target[:, part] += target.dtype.type(factor) * source[:, part]


def squares(first: list[Array], second: list[Array] | None = None) -> NDArray[np.float64]:
    """Return Σ first², or Σ (first - second)², of each row of each piece, in float64."""
    rows = []
    for k, piece in enumerate(first):
        total = np.zeros(len(piece))
        for part in _blocks(piece):
            values = piece[:, part].astype(np.float64)
            if second is not None:
                values -= second[k][:, part]
            total += np.einsum("ij,ij->i", values, values)
        rows.append(total)
    return np.concatenate(rows)


def spread_and_norm(leaves: list[Array]) -> tuple[float, float]:
    """Return ‖X - 1x̄ᵀ‖ and ‖X‖, in float64."""
    spread = norm = 0.0
    for leaf in leaves:
        for part in _blocks(leaf):
            values = leaf[:, part].astype(np.float64)
            norm += _sum_of_squares(values)
            values -= values.mean(axis=0)
            spread += _sum_of_squares(values)
    return math.sqrt(spread), math.sqrt(norm)


def norm_of_mean(leaves: list[Array]) -> float:
    """Return ‖1ḡᵀ‖: √n times the norm of the mean over the models."""
    total = 0.0
    for leaf in leaves:
        for part in _blocks(leaf):
            mean = leaf[:, part].mean(axis=0, dtype=np.float64)
            total += len(leaf) * _sum_of_squares(mean)
    return math.sqrt(total)


def _sum_of_squares(values: NDArray[np.float64]) -> float:
    # not a BLAS dot product: its threads cost more than they save here, and change the last bits
    flat = values.reshape(-1)
    return float(np.einsum("i,i->", flat, flat))


def _blocks(piece: Array) -> Iterable[slice]:
    """Return slices of the columns, each of at most a block of elements over all rows."""
    width = max(1, _BLOCK // len(piece))
    return (slice(start, start + width) for start in range(0, piece.shape[1], width))


def _array(value: Any, name: str, dtype: np.dtype[Any] | None = None) -> Array:
    """Return `value` as a native array of real floating-point numbers, copied only if needed."""
    found = as_array(value, name)
    if found.dtype.kind != "f" and found.dtype.name != "bfloat16":
        raise ElementError(
            f"{name}: expected real floating-point numbers, got elements of type {found.dtype}; "
            "cast to float32 or float64."
        )
    if found.dtype.itemsize > 8:
        raise ElementError(f"{name}: expected at most float64, got {found.dtype}; cast to float64.")
    return found.astype(dtype or found.dtype.newbyteorder("="), copy=False)


def _check_shape(found: Array, shape: tuple[int, ...], name: str, like: str) -> None:
    if found.shape != shape:
        hint = " (targets (n,) against predictions (n, 1) broadcast to (n, n))"
        raise ShapeError(
            f"{name}: expected shape {shape} as {like}, got {found.shape}; give that shape"
            f"{hint if name.startswith('gradient') else ''}."
        )


def _check_names(model: Mapping[str, Any], names: tuple[str, ...], label: str) -> None:
    if not all(isinstance(name, str) for name in model):
        raise NamesError(f"{label}: expected names that are strings, got {list(model)!r}; rename.")
    if set(model) != set(names):
        missing = sorted(set(names) - set(model), key=str)
        extra = sorted(set(model) - set(names), key=str)
        raise NamesError(
            f"{label}: expected the names of W[0], got {missing} missing and {extra} unknown; give "
            "every model the same names."
        )


def _check_finite(found: Array, name: str) -> None:
    flat = found.reshape(1, -1)
    if not all(np.isfinite(flat[:, part]).all() for part in _blocks(flat)):
        raise ArgumentError(
            f"{name}: expected finite weights, got NaN or infinity; repair the model first."
        )

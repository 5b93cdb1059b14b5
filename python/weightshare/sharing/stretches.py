"""Sums over the tensors of models: held in memory, or read stretch by stretch from open checkpoints."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from weightshare._core.arrays import FLOATS, Array, Family, as_array, check_names, contiguous
from weightshare.errors import ArgumentTypeError, ElementError, NamesError, ShapeError

# Elements that the core sums apart: stretches of whole chunks give the bits of the whole tensor.
CHUNK = 1 << 17
# Bytes that one worker holds of all models together, where a chunk of each is not more.
_BYTES_AT_ONCE = 1 << 24

# add(out, w, base, threads) writes one sum over equal stretches of all models.
Add = Callable[[Array, list[Array], "Array | None", int], None]
_Job = TypeVar("_Job")
_Told = TypeVar("_Told")


class Sums(Protocol):
    """n models, of which sums over all pairs are wanted, tensor by tensor."""

    @property
    def n(self) -> int:
        """Number of models."""

    @property
    def names(self) -> list[str]:
        """Their floating-point tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""

    def label(self, j: int, name: str) -> str:
        """How a message names one tensor."""

    def total(self, out: Array, name: str, add: Add, unit: int = CHUNK) -> None:
        """Write the sum over a tensor; `unit` elements are summed apart."""

    def row_blocks(self, name: str) -> Iterator[tuple[list[Array], Array | None]]:
        """Yield a 2-D tensor of all models and of the base, some whole rows at a time."""

    def base_is_finite(self, name: str) -> bool:
        """Whether there is no NaN or infinity in the base's tensor; true without a base."""


@dataclass(frozen=True)
class HeldSums:
    """Models in memory: each tensor is one stretch, and the core has the threads."""

    family: Family
    base: dict[str, Array]
    threads: int

    @property
    def n(self) -> int:
        return self.family.n

    @property
    def names(self) -> list[str]:
        return list(self.family.floats)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.family.tensors[name][0].shape)

    def label(self, j: int, name: str) -> str:
        return self.family.label(j, name, "models")

    def total(self, out: Array, name: str, add: Add, unit: int = CHUNK) -> None:
        add(out, self.family.tensors[name], self.base.get(name), self.threads)

    def row_blocks(self, name: str) -> Iterator[tuple[list[Array], Array | None]]:
        yield self.family.tensors[name], self.base.get(name)

    def base_is_finite(self, name: str) -> bool:
        base = self.base.get(name)
        return base is None or bool(np.isfinite(base.astype(np.float64)).all())


def is_open_checkpoint(model: object) -> bool:
    """Return whether a model is read from files when it is asked, and can be read in part."""
    parts = ("info", "read_into")
    return isinstance(model, Mapping) and all(hasattr(model, part) for part in parts)


@dataclass(frozen=True)
class Stretch:
    """One tensor of one model, of which any stretch can be had."""

    model: Any
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self, start: int, stop: int) -> Array:
        """Return the elements from one flat index to another."""
        if not is_open_checkpoint(self.model):
            return np.asarray(self.model.reshape(-1)[start:stop])
        found = np.empty(stop - start, self.dtype)
        self.model.read_into(self.name, start * self.dtype.itemsize, found)
        if self.dtype == np.bool_:
            # Any byte but 0 is true; NumPy's own arithmetic goes wrong on bytes above 1.
            np.not_equal(found.view(np.uint8), 0, out=found)
        return found if np.little_endian else found.byteswap(inplace=True)


def stretch_of(model: Mapping[str, Any], name: str, label: str) -> Stretch:
    """Return a tensor of a mapping: of an open checkpoint unread, of another one as an array."""
    if is_open_checkpoint(model):
        info = model.info(name)  # type: ignore[attr-defined]
        return Stretch(model, name, tuple(info.shape), info.numpy_dtype)
    array = contiguous(as_array(model[name], label))
    return Stretch(array, name, tuple(array.shape), array.dtype)


class StreamedSums:
    """Models of which at least one is an open checkpoint: a worker reads a stretch and sums it.

    Sums have the bits of `HeldSums` on the same models loaded. The models may differ in their
    floating-point types.

    Raises
    ------
    ArgumentTypeError, NamesError, ShapeError, ElementError
        The models, or the base, do not fit each other.
    """

    def __init__(self, models: Sequence[Any], base: Any, threads: int) -> None:
        if not all(isinstance(model, Mapping) for model in models):
            raise ArgumentTypeError("models: expected all arrays or all mappings, got both")
        check_names(models, "models")
        self._n = len(models)
        self.threads = threads
        known = {
            name: [stretch_of(m, name, self.label(j, name)) for j, m in enumerate(models)]
            for name in models[0]
        }
        self._models = {name: w for name, w in known.items() if self._is_float(w, name)}
        self._base = {} if base is None else _base_stretches(base, known, self._models)

    @property
    def n(self) -> int:
        return self._n

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def _is_float(self, w: list[Stretch], name: str) -> bool:
        for j, one in enumerate(w):
            if one.shape != w[0].shape:
                raise ShapeError(
                    f"{self.label(j, name)}: expected shape {w[0].shape}, got {one.shape}"
                )
        odd = next((j for j, one in enumerate(w) if one.dtype not in FLOATS), None)
        if odd is None:
            return True
        if all(one.dtype.kind in "biu" for one in w):
            return False
        raise ElementError(
            f"{self.label(odd, name)}: expected float16, bfloat16, float32 or float64, got"
            f" {w[odd].dtype}"
        )

    def shape(self, name: str) -> tuple[int, ...]:
        return self._models[name][0].shape

    def label(self, j: int, name: str) -> str:
        return f"models[{j}][{name!r}]"

    def _read(self, name: str, start: int, stop: int) -> tuple[list[Array], Array | None]:
        base = self._base.get(name)
        read = [one.read(start, stop) for one in self._models[name]]
        return read, None if base is None else base.read(start, stop)

    def _at_once(self, name: str, unit: int) -> int:
        """Elements of one stretch: whole units, few enough for the memory of a worker."""
        base = self._base.get(name)
        every = [*self._models[name], *([] if base is None else [base])]
        width = sum(one.dtype.itemsize for one in every)
        return max(1, _BYTES_AT_ONCE // (width * unit)) * unit

    def total(self, out: Array, name: str, add: Add, unit: int = CHUNK) -> None:
        size, step = self._models[name][0].size, self._at_once(name, unit)

        def look(start: int) -> list[Array]:
            w, base = self._read(name, start, min(size, start + step))
            parts = []
            for first in range(0, w[0].size, unit):
                piece = slice(first, first + unit)
                part = np.zeros_like(out)
                add(part, [x[piece] for x in w], None if base is None else base[piece], 1)
                parts.append(part)
            return parts

        out[...] = 0
        threads = self.threads if size > step else 1
        for parts in in_order(threads, look, range(0, size, step)):
            for part in parts:
                out += part

    def row_blocks(self, name: str) -> Iterator[tuple[list[Array], Array | None]]:
        rows, columns = self.shape(name)
        # A triangle is made anew for each block: blocks twice as high keep that from dominating.
        step = max(2 * columns, self._at_once(name, max(1, columns)) // max(1, columns))
        for first in range(0, max(1, rows), step):
            last = min(rows, first + step)
            w, base = self._read(name, first * columns, last * columns)
            shape = (last - first, columns)
            yield [x.reshape(shape) for x in w], None if base is None else base.reshape(shape)

    def base_is_finite(self, name: str) -> bool:
        base, step = self._base.get(name), CHUNK
        if base is None:
            return True
        starts = range(0, base.size, step)
        read = (base.read(start, min(base.size, start + step)) for start in starts)
        return all(bool(np.isfinite(part.astype(np.float64)).all()) for part in read)


def _base_stretches(
    base: Any, known: dict[str, list[Stretch]], floats: Iterable[str]
) -> dict[str, Stretch]:
    if not isinstance(base, Mapping):
        raise ArgumentTypeError(
            f"base: expected a mapping like the models, got {type(base).__name__}"
        )
    if set(base) != set(known):
        odd = sorted(map(str, set(base) ^ set(known)))
        raise NamesError(f"base: expected the names of the models; these differ: {odd[:3]}")
    found = {name: stretch_of(base, name, f"base[{name!r}]") for name in floats}
    for name, one in found.items():
        expected = known[name][0].shape
        if one.shape != expected:
            raise ShapeError(f"base[{name!r}]: expected shape {expected}, got {one.shape}")
        if one.dtype not in FLOATS:
            raise ElementError(f"base[{name!r}]: expected a floating-point type, got {one.dtype}")
    return found


def in_order(threads: int, look: Callable[[_Job], _Told], jobs: Iterable[_Job]) -> Iterator[_Told]:
    """Yield what each job tells, in the order of the jobs; some are looked at at the same time.

    Examples
    --------
    >>> list(in_order(2, abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    if threads == 1:
        yield from map(look, jobs)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Told]] = deque()
        for job in jobs:
            waiting.append(pool.submit(look, job))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

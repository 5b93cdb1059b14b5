"""How two checkpoints differ, tensor by tensor, in bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from weightshare._core.threads import resolve_threads
from weightshare.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from weightshare.errors import ArgumentError, ArgumentTypeError
from weightshare.merging.elements import CODE_OF_DTYPE, Array
from weightshare.merging.progress import progress_callback

if TYPE_CHECKING:
    from weightshare.sharing.stretches import Stretch

SORTS = ("relative", "max_abs", "cosine", "sign", "name")
# Elements of both tensors that one worker reads at once.
_AT_ONCE = 1 << 21
_CHUNK = 1 << 17
# Codes of elements that are compared by their bytes alone.
_NOT_NUMBERS = ("F4", "F6_", "C64")
_HTML_ROWS = 60
_REPR_ROWS = 8
_SHOWN = 60


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor differs between the first checkpoint and the second.

    Numbers that cannot be had are None: those of tensors whose shapes differ or whose elements are
    complex or packed (4- and 6-bit floats), and a cosine or sign where one tensor is zero throughout.

    Attributes
    ----------
    name : str
    dtypes, shapes : pair
        Of the two tensors; a dtype is a code such as ``"BF16"``.
    identical : bool
        Same dtype, shape and bytes.
    relative : float or None
        ‖b - a‖ / ‖a‖: 0 where they are equal, infinity where only a is zero. NaN, as the cosine,
        where squares overflow float64.
    max_abs : float or None
        The largest |b - a|.
    cosine : float or None
        ⟨a, b⟩ / (‖a‖ ‖b‖).
    sign : float or None
        Share of equal signs among the elements that are non-zero in both.
    changed : int or None
        Elements that are not the same.
    not_finite : pair of int
        NaN and infinite elements of the two; when there are some, the other numbers may be NaN.
    squares : triple of float, or None
        ‖a‖², ⟨a, b⟩ and ‖b - a‖², of which totals are made.
    """

    name: str
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    identical: bool
    relative: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    sign: float | None = None
    changed: int | None = None
    not_finite: tuple[int, int] = (0, 0)
    squares: tuple[float, float, float] | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as plain lists, numbers and text; numbers that JSON lacks are None or text."""
        plain = {key: _plain(value) for key, value in asdict(self).items() if key != "squares"}
        return plain | {
            "dtypes": list(self.dtypes),
            "shapes": [list(shape) for shape in self.shapes],
            "not_finite": list(self.not_finite),
        }

    @property
    def row(self) -> tuple[str, ...]:
        """What a table says of it: `Comparison.heads` names the columns."""
        first, second = self.shapes
        dtype = self.dtypes[0] if self.dtypes[0] == self.dtypes[1] else " > ".join(self.dtypes)
        shape = f"{list(first)}" if first == second else f"{list(first)} > {list(second)}"
        size = max(1, math.prod(first))
        changed = "-" if self.changed is None else f"{_percent(self.changed / size)}"
        numbers = (_text(value) for value in (self.relative, self.max_abs, self.cosine))
        sign = "-" if self.sign is None else _percent(self.sign)
        return (self.name, dtype, shape, *numbers, sign, changed)


@dataclass(frozen=True, repr=False)
class Comparison:
    """How two checkpoints differ; `weightshare.compare_checkpoints` makes one.

    Attributes
    ----------
    first, second : str
        The paths.
    tensors : tuple of TensorDifference
        Those in both, the one that changed most first.
    missing, extra : tuple of str
        Names that only the first has, and that only the second has.

    Examples
    --------
    >>> alike = TensorDifference("b", ("F32", "F32"), ((2,), (2,)), identical=True)
    >>> Comparison("a", "b", (alike,), extra=("c",))
    Comparison
      first       a
      second      b
      tensors     1 in both, 1 of them identical
      extra       1: c
    """

    heads = ("tensor", "dtype", "shape", "relative", "max abs", "cosine", "signs", "changed")

    first: str
    second: str
    tensors: tuple[TensorDifference, ...]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether they hold the same tensors, bit for bit."""
        return not self.missing and not self.extra and all(t.identical for t in self.tensors)

    @property
    def relative(self) -> float | None:
        """‖b - a‖ / ‖a‖ over all elements that can be compared; None if there are none."""
        sums = self._squares()
        return None if sums is None else _relative(sums[0], sums[2])

    @property
    def max_abs(self) -> float | None:
        """The largest |b - a|; None if nothing can be compared."""
        return float(np.max(found)) if (found := self._numbers()) else None

    def _squares(self) -> list[float] | None:
        known = [t.squares for t in self.tensors if t.squares is not None]
        return [_sum(column) for column in zip(*known, strict=True)] if known else None

    def _numbers(self) -> list[float]:
        return [t.max_abs for t in self.tensors if t.max_abs is not None]

    def sorted_by(self, key: str) -> tuple[TensorDifference, ...]:
        """Return the tensors in another order.

        Parameters
        ----------
        key : {"relative", "max_abs", "cosine", "sign", "name"}
            What changed most by this comes first; what cannot be compared comes before it.

        Raises
        ------
        ArgumentError
            It is another word.
        """
        if key not in SORTS:
            raise ArgumentError(f"key: expected one of {', '.join(SORTS)}, got {key!r}")
        return _sorted(self.tensors, key)

    def to_json(self) -> dict[str, object]:
        """Return the comparison as plain lists, mappings, numbers and text.

        Returns
        -------
        dict
            What is not a number is None, infinity is ``"Infinity"``; ``json.dumps`` takes it.
        """
        return {
            "schema": 1,
            "first": self.first,
            "second": self.second,
            "identical": self.identical,
            "relative": _plain(self.relative),
            "max_abs": _plain(self.max_abs),
            "missing": list(self.missing),
            "extra": list(self.extra),
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }

    def summary(self) -> list[tuple[str, str]]:
        """Return the main facts as pairs of a title and a sentence."""
        same = sum(tensor.identical for tensor in self.tensors)
        facts = [
            ("first", self.first),
            ("second", self.second),
            ("tensors", f"{len(self.tensors)} in both, {same} of them identical"),
        ]
        facts += [
            (title, f"{len(names)}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
            for title, names in (("missing", self.missing), ("extra", self.extra))
            if names
        ]
        for title, differ in (("shapes", _shapes_differ), ("dtypes", _dtypes_differ)):
            count = sum(map(differ, self.tensors))
            facts += [(title, f"differ in {count}")] if count else []
        bad = [sum(tensor.not_finite[side] for tensor in self.tensors) for side in (0, 1)]
        if any(bad):
            facts.append(("not finite", f"{bad[0]} elements of the first, {bad[1]} of the second"))
        if self.relative is not None:
            facts.append(("change", f"{_text(self.relative)} of the first's norm"))
            facts.append(("largest", _text(self.max_abs)))
        return facts

    def __repr__(self) -> str:
        lines = [f"  {title:<12}{fact[:200]}" for title, fact in self.summary()]
        changed = [tensor for tensor in self.tensors if not tensor.identical]
        lines += [f"  {_line(tensor)}" for tensor in changed[:_REPR_ROWS]]
        if len(changed) > _REPR_ROWS:
            lines.append(f"  and {len(changed) - _REPR_ROWS} more that differ")
        return "\n".join(["Comparison", *lines])

    def _repr_html_(self) -> str:
        facts = "".join(
            f"<tr><th>{escape(title)}</th><td colspan='7'>{escape(fact[:500])}</td></tr>"
            for title, fact in self.summary()
        )
        heads = "".join(f"<th>{escape(head)}</th>" for head in self.heads)
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell[:_SHOWN])}</td>' for cell in tensor.row)}</tr>"
            for tensor in self.tensors[:_HTML_ROWS]
        )
        rest = len(self.tensors) - _HTML_ROWS
        more = f"<tr><td colspan='8'>and {rest} more</td></tr>" if rest > 0 else ""
        return f"<table>{facts}<tr>{heads}</tr>{rows}{more}</table>"


def compare_checkpoints(
    first: str | os.PathLike[str] | Checkpoint,
    second: str | os.PathLike[str] | Checkpoint,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], object] | bool | None = None,
) -> Comparison:
    """Say how two checkpoints differ, tensor by tensor, whatever their size.

    Both are read stretch by stretch, so that memory does not grow with the tensors. The numbers do
    not depend on `threads`. Tensors of one name and shape are compared even if their dtypes differ.

    Parameters
    ----------
    first, second : path or Checkpoint
        The second is looked at as a change of the first.
    threads : int, optional
        Threads; None means ``OMP_NUM_THREADS``, else the cores of this process.
    progress : callable or True, optional
        ``progress(done, total)`` in bytes read; True is a bar on stderr.

    Returns
    -------
    Comparison
        The tensors, the one that changed most first, and the names that only one of them has.

    Raises
    ------
    CheckpointError
        One of them cannot be read.
    ArgumentError, ArgumentTypeError
        An argument is not what it should be.

    Examples
    --------
    >>> import os, tempfile, numpy as np
    >>> import weightshare as ws
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a, b = (os.path.join(folder, name) for name in "ab")
    ...     ws.save_checkpoint(a, {"w": np.float32([3, 4]), "bias": np.float32([1])})
    ...     ws.save_checkpoint(b, {"w": np.float32([3, 4.5]), "bias": np.float32([1])})
    ...     found = ws.compare_checkpoints(a, b)
    >>> [(tensor.name, tensor.relative, tensor.max_abs) for tensor in found.tensors]
    [('w', 0.1, 0.5), ('bias', 0.0, 0.0)]
    """
    workers = resolve_threads(threads)
    with ExitStack() as opened:
        a, b = (_opened(opened, argument) for argument in ((first, "first"), (second, "second")))
        both = [name for name in a if name in b]
        total = sum(a.info(name).nbytes + b.info(name).nbytes for name in both)
        found = []
        with progress_callback(progress, "compared") as told:
            done = 0
            for name in both:
                found.append(_compare(a, b, name, workers))
                done += a.info(name).nbytes + b.info(name).nbytes
                if told is not None:
                    told(done, total)
        return Comparison(
            first=a.path,
            second=b.path,
            tensors=_sorted(found, "relative"),
            missing=tuple(name for name in a if name not in b),
            extra=tuple(name for name in b if name not in a),
        )


def _opened(opened: ExitStack, given: tuple[Any, str]) -> Checkpoint:
    path, argument = given
    if isinstance(path, Checkpoint):
        return path
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError(
            f"{argument}: expected a path or an open checkpoint, got {type(path).__name__}"
        )
    return opened.enter_context(open_checkpoint(path))


@dataclass(slots=True)
class _Sums:
    """What is added up over the stretches of one tensor."""

    squares: Array
    signs: Array
    distance: float = 0.0
    max_abs: float = 0.0
    changed: int = 0
    not_finite: tuple[int, int] = (0, 0)

    def add(self, other: _Sums) -> None:
        self.squares += other.squares
        self.signs += other.signs
        self.distance += other.distance
        self.max_abs = float(np.maximum(self.max_abs, other.max_abs))
        self.changed += other.changed
        mine, others = self.not_finite, other.not_finite
        self.not_finite = (mine[0] + others[0], mine[1] + others[1])


def _compare(a: Checkpoint, b: Checkpoint, name: str, threads: int) -> TensorDifference:
    # Imported when used, so that a merge does not load the room.
    from weightshare.sharing.stretches import Stretch

    infos = (a.info(name), b.info(name))
    dtypes = (infos[0].dtype, infos[1].dtype)
    shapes = (tuple(infos[0].shape), tuple(infos[1].shape))
    if shapes[0] != shapes[1]:
        return TensorDifference(name, dtypes, shapes, identical=False)
    if any(code.startswith(_NOT_NUMBERS) for code in dtypes):
        same = dtypes[0] == dtypes[1] and _same_bytes(a, b, infos[0])
        return TensorDifference(name, dtypes, shapes, identical=same)
    pair = [
        Stretch(model, name, shapes[0], info.numpy_dtype)
        for model, info in zip((a, b), infos, strict=True)
    ]
    return _summed(pair, dtypes, threads)


def _summed(pair: list[Stretch], dtypes: tuple[str, str], threads: int) -> TensorDifference:
    from weightshare.sharing.stretches import in_order

    total = _Sums(np.zeros(3), np.zeros(2, np.int64))
    size = pair[0].size
    threads = threads if size > _AT_ONCE else 1
    starts = range(0, size, _AT_ONCE)
    for parts in in_order(threads, lambda start: list(_look(pair, start)), starts):
        for part in parts:
            total.add(part)
    squares, products, others = (float(number) for number in total.squares)
    scale = math.sqrt(squares) * math.sqrt(others)
    same, both = (int(count) for count in total.signs)
    return TensorDifference(
        pair[0].name,
        dtypes,
        (pair[0].shape, pair[1].shape),
        identical=dtypes[0] == dtypes[1] and total.changed == 0,
        relative=_relative(squares, total.distance),
        max_abs=total.max_abs,
        cosine=None if scale == 0 else float(np.clip(products / scale, -1.0, 1.0)),
        sign=same / both if both else None,
        changed=total.changed,
        not_finite=total.not_finite,
        squares=(squares, products, total.distance),
    )


def _look(pair: list[Stretch], start: int) -> Iterator[_Sums]:
    stop = min(pair[0].size, start + _AT_ONCE)
    first, second = (one.read(start, stop) for one in pair)
    for begin in range(0, stop - start, _CHUNK):
        piece = slice(begin, begin + _CHUNK)
        yield _sums(first[piece], second[piece])


def _sums(first: Array, second: Array) -> _Sums:
    # Imported when used, so that reading a report does not load the core.
    from weightshare._core import similarity

    alike = first.dtype == second.dtype
    changed = int(np.count_nonzero(_bits(first) != _bits(second))) if alike else -1
    a = _as_float(first)
    w = [a] if changed == 0 else [a, _as_float(second)]
    products = np.zeros((len(w), len(w)))
    signs = np.zeros((2, len(w), len(w)), np.int64)
    similarity.inner_products(products, w)
    similarity.count_signs(signs[0], signs[1], w)
    part = _Sums(products[[0, 0, -1], [0, -1, -1]], signs[:, 0, -1], changed=max(changed, 0))
    if len(w) > 1:
        if alike and first.dtype.kind in "iu":
            w = [np.zeros(first.size), _integer_gap(first, second)]
        distances = np.zeros((2, 2))
        similarity.squared_distances(distances, w)
        gap = _gap(w)
        part.distance = float(distances[0, 1])
        part.max_abs = float(np.maximum(gap.max(), -gap.min())) + 0.0  # never -0
        if not alike:
            part.changed = int(np.count_nonzero(gap != 0))
    if not np.isfinite(products).all():
        bad = [int(np.count_nonzero(~np.isfinite(x.astype(np.float64)))) for x in w]
        part.not_finite = (bad[0], bad[-1])
    return part


def _gap(w: list[Array]) -> Array:
    """The second less the first; in float64 too where float32 would overflow."""
    from weightshare._core import mixing

    for kind in (np.float32, np.float64):
        if kind == np.float32 and any(x.dtype == np.float64 for x in w):
            continue
        gap: Array = np.empty(w[0].size, kind)
        mixing.mix([gap], w, np.array([[-1.0, 1.0]]))
        if np.isfinite(gap).all():
            break
    return gap


def _integer_gap(first: Array, second: Array) -> Array:
    """|second - first| of integers of one kind: float64 would lose what differs in large ones."""
    kind = f"u{first.dtype.itemsize}"
    low, high = np.minimum(first, second), np.maximum(first, second)
    gap: Array = (high.view(kind) - low.view(kind)).astype(np.float64)
    return gap


def _bits(values: Array) -> Array:
    """The elements as integers, so that NaN equals itself and 0 differs from -0."""
    return values.view(f"u{values.dtype.itemsize}") if values.dtype.kind != "b" else values


def _as_float(values: Array) -> Array:
    """The elements as floating-point numbers that the core takes."""
    if values.dtype in CODE_OF_DTYPE:
        return values
    narrow = values.dtype.kind == "V" or values.dtype.itemsize < 3
    return values.astype(np.float32 if narrow else np.float64)


def _same_bytes(a: Checkpoint, b: Checkpoint, info: TensorInfo) -> bool:
    for start in range(0, info.nbytes, _AT_ONCE):
        count = min(_AT_ONCE, info.nbytes - start)
        first, second = np.empty(count, np.uint8), np.empty(count, np.uint8)
        a.read_into(info.name, start, first)
        b.read_into(info.name, start, second)
        if not np.array_equal(first, second):
            return False
    return True


def _relative(squares: float, distance: float) -> float:
    if distance == 0:
        return 0.0
    return math.sqrt(distance) / math.sqrt(squares) if squares > 0 else math.inf * distance


def _sum(values: tuple[float, ...]) -> float:
    # fsum refuses infinities of both signs; the plain sum gives NaN.
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def _sorted(tensors: Iterable[TensorDifference], key: str) -> tuple[TensorDifference, ...]:
    return tuple(sorted(tensors, key=lambda tensor: _rank(tensor, key)))


def _rank(tensor: TensorDifference, key: str) -> tuple[Any, ...]:
    if key == "name":
        return (0, 0.0, tensor.name)
    value = getattr(tensor, key)
    if tensor.identical:
        return (2, 0.0, tensor.name)
    if value is None or math.isnan(value):
        return (0, 0.0, tensor.name)
    return (1, value if key in ("cosine", "sign") else -value, tensor.name)


def _shapes_differ(tensor: TensorDifference) -> bool:
    return tensor.shapes[0] != tensor.shapes[1]


def _dtypes_differ(tensor: TensorDifference) -> bool:
    return tensor.dtypes[0] != tensor.dtypes[1]


def _line(tensor: TensorDifference) -> str:
    name, _, _, relative, largest, cosine, *_ = tensor.row
    name = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
    if _shapes_differ(tensor):
        return f"{name}: shape {tensor.row[2]}"
    return f"{name}: relative {relative}, max abs {largest}, cosine {cosine}"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(share: float) -> str:
    # Never 100 % or 0 % of what is not all or nothing.
    if 0 < share < 1:
        return f"{min(max(100 * share, 0.01), 99.99):.4g} %"
    return f"{100 * share:.0f} %"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value

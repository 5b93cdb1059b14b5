"""Mixing models: w_i = Σ_j a_ij w_j, and what is made of it: share, fuse, transfer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightshare._core import mixing as _core
from weightshare._core.arrays import (
    FLOATS,
    Array,
    Family,
    Model,
    as_array,
    as_family,
    as_model_like,
)
from weightshare._core.numbers import number, real_array
from weightshare._core.threads import resolve_threads
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)
from weightshare.sharing.similarity import norms


def mix(models: Any, A: Any, *, out: Any = None, threads: int | None = None) -> Any:
    """Mix n models into m: w_i = Σ_j a_ij w_j, all of them in one pass over memory.

    Sums run in float32 for float16, bfloat16 and float32, in float64 for float64, and are rounded
    once. A coefficient of 0 leaves its model out altogether. Results are the same bits for every
    number of threads and every CPU.

    Parameters
    ----------
    models : array (n, ...), or sequence of n arrays or of n mappings name -> array
        float16, bfloat16, float32 or float64, one dtype for each name. Integer and boolean entries of
        mappings must be equal in all models and are copied. CPU torch tensors are read in place.
    A : array_like (m, n) or (n,)
        Finite coefficients of any sign; rows are receivers. (n,) makes one model.
    out : like the result, default None
        Where to write: C-contiguous arrays of the same dtypes. May be the models themselves.
    threads : int, default None
        Threads to use; None means ``OMP_NUM_THREADS``, else the cores this process may use.

    Returns
    -------
    array (m, ...) for an array, else a list of m arrays or dicts; one array or dict for A (n,)
        `out`, when it is given.

    Raises
    ------
    ShapeError, NamesError
        If shapes, names or the number of coefficients do not fit.
    ElementError, ArgumentTypeError
        For other dtypes, or dtypes that differ between the models.
    ArgumentError
        If A is not finite, integer entries differ, or `out` overlaps without being a model.

    References
    ----------
    Wortsman et al. 2022, arXiv:2203.05482; with a doubly stochastic A, one step of gossip averaging
    (Xiao & Boyd 2004).

    Examples
    --------
    >>> import numpy as np, weightshare as ws
    >>> models = np.array([[1.0, 2.0], [3.0, 6.0]])
    >>> ws.mix(models, [[0.5, 0.5], [0.0, 1.0]])
    array([[2., 4.],
           [3., 6.]])
    >>> ws.mix([{"w": np.float32([1, 2])}, {"w": np.float32([3, 6])}], [2, -1])
    {'w': array([-1., -2.], dtype=float32)}
    """
    family = as_family(models)
    a = as_coefficients(A, family.n)
    one = a.ndim == 1
    a = np.atleast_2d(a)
    count = resolve_threads(threads)
    _check_integers(family)
    m = len(a)
    _check_range(a, family)
    results = _new_results(family, m) if out is None else _results_in(out, family, m, one)
    for name, w in family.tensors.items():
        if w[0].dtype in FLOATS:
            _core.mix(results[name], w, a, None, count)
        else:
            for target in results[name]:
                np.copyto(target, w[0])
    return out if out is not None else _in_form(results, family, m, one)


def share(models: Any, weights: Any = None, *, threads: int | None = None) -> list[Any]:
    """Tie n models to one set of values: n results that are views of one buffer.

    The values are the weighted mean of the models. Writing to one result changes them all, which is
    what hard sharing means; use `fuse` for a model of its own.

    Parameters
    ----------
    models : as in `mix`
    weights : array_like (n,), default None
        Importance of each model, normalised to sum one; None means equal.
    threads : int, default None
        As in `mix`.

    Returns
    -------
    list of n arrays or dicts
        Writable; ``np.shares_memory`` holds between any two.

    Raises
    ------
    ArgumentError
        If the weights are not finite or sum to zero; otherwise as `mix`.

    Examples
    --------
    >>> import numpy as np, weightshare as ws
    >>> first, second = ws.share([np.zeros(2), np.ones(2)])
    >>> first[0] = 9.0
    >>> second
    array([9. , 0.5])
    """
    family = as_family(models)
    values = fuse(models, weights, threads=threads)
    if isinstance(values, dict):
        return [{name: array[...] for name, array in values.items()} for _ in range(family.n)]
    return [values[...] for _ in range(family.n)]


def fuse(
    models: Any, weights: Any = None, *, rescale: str | None = None, threads: int | None = None
) -> Any:
    """Fuse n models into a new one, their weighted mean; the models stay as they are.

    Parameters
    ----------
    models : as in `mix`
    weights : array_like (n,), default None
        Importance of each model, normalised to sum one; None means equal.
    rescale : {None, "norm"}, default None
        "norm" gives each tensor the mean of the models' norms, weighted by abs(weights): averaging
        unrelated tensors shrinks them (by the square root of n for independent ones).
    threads : int, default None
        As in `mix`.

    Returns
    -------
    array or dict
        One model, in the dtype of the models.

    Raises
    ------
    ArgumentError
        If the weights are not finite or sum to zero, or `rescale` is another word.

    References
    ----------
    Wortsman et al. 2022, arXiv:2203.05482 (model soups); Jordan et al. 2023, arXiv:2211.08403 (rescale).

    Examples
    --------
    >>> import numpy as np, weightshare as ws
    >>> ws.fuse([np.array([3.0, 0.0]), np.array([0.0, 4.0])])
    array([1.5, 2. ])
    >>> ws.fuse([np.array([3.0, 0.0]), np.array([0.0, 4.0])], rescale="norm")
    array([2.1, 2.8])
    """
    if rescale not in (None, "norm"):
        raise ArgumentError(f"rescale: expected None or 'norm', got {rescale!r}")
    family = as_family(models)
    c = _normalised(weights, family.n)
    fused = mix(models, c, threads=threads)
    if rescale is None:
        return fused
    parts = fused if isinstance(fused, dict) else {"": fused}
    for name, w in family.floats.items():
        target = float(np.abs(c) @ norms(w, threads) / np.abs(c).sum())
        now = float(norms([parts[name]], threads)[0])
        if not np.isfinite(target) or not np.isfinite(now):
            raise ArgumentError(f"models: {name!r} is not finite, so it has no norm to restore")
        if now > 0.0:
            _core.mix(
                [parts[name]],
                [parts[name]],
                np.array([[target / now]]),
                None,
                resolve_threads(threads),
            )
    return fused


def transfer(
    source: Model,
    target: Model,
    gamma: float,
    *,
    base: Model | None = None,
    threads: int | None = None,
) -> Any:
    """Carry weights from a source into a target: only the target's copy changes.

    Without a base: (1 - gamma) target + gamma source. With one: target + gamma (source - base), the
    task vector of the source added to the target.

    Parameters
    ----------
    source, target : array, or mapping name -> array
        Of equal names, shapes and dtypes.
    gamma : float
        Share that is carried over; any finite number (0 leaves the target as it is).
    base : like source, default None
        The model that the source was trained from.
    threads : int, default None
        As in `mix`.

    Returns
    -------
    array or dict
        A new model in the dtype of the target.

    Raises
    ------
    ShapeError, NamesError, ElementError, ArgumentTypeError, ArgumentError
        As `mix`.

    References
    ----------
    Ilharco et al. 2023, arXiv:2212.04089 (task vectors).

    Examples
    --------
    >>> import numpy as np, weightshare as ws
    >>> ws.transfer(np.array([2.0, 4.0]), np.array([0.0, 0.0]), 0.25)
    array([0.5, 1. ])
    >>> ws.transfer(np.array([2.0, 4.0]), np.array([10.0, 10.0]), 1.0, base=np.array([1.0, 1.0]))
    array([11., 13.])
    """
    share_carried = number(gamma, "gamma")
    family = _pair(source, target)
    count = resolve_threads(threads)
    origin = None if base is None else as_model_like(base, family, "base")
    _check_integers(family, "source and target")
    results = _new_results(family, 1)
    for name, (given, kept) in family.tensors.items():
        if kept.dtype not in FLOATS:
            np.copyto(results[name][0], kept)
        elif origin is None:
            a = np.array([[1.0 - share_carried, share_carried]])
            _core.mix(results[name], [kept, given], a, None, count)
        else:
            a = np.array([[share_carried]])
            _core.mix(results[name], [given], a, origin[name], count, kept)
    return _in_form(results, family, 1, True)


def _pair(source: Any, target: Any) -> Family:
    for value, argument in ((source, "source"), (target, "target")):
        if not isinstance(value, Mapping):
            as_array(value, argument)
    return as_family([source, target], "[source, target]")


def as_coefficients(A: Any, n: int, argument: str = "A") -> NDArray[np.float64]:
    """Finite coefficients (m, n) or (n,) as float64."""
    a = real_array(A, argument)
    if a.ndim not in (1, 2) or a.shape[-1] != n:
        raise ShapeError(
            f"{argument}: expected shape (m, {n}) or ({n},) for {n} models, got {a.shape}"
        )
    if len(a) == 0:
        raise ShapeError(f"{argument}: expected at least one row, got {a.shape}")
    return a


def _check_range(a: NDArray[np.float64], family: Family) -> None:
    largest = float(np.abs(a).max())
    narrow = any(w[0].dtype != np.float64 for w in family.floats.values())
    if narrow and largest > float(np.finfo(np.float32).max):
        raise ArgumentError(
            f"A: expected coefficients within float32 for models that are not float64, got {largest:g}"
        )


def _normalised(weights: Any, n: int) -> NDArray[np.float64]:
    if weights is None:
        return np.full(n, 1.0 / n)
    c = real_array(weights, "weights")
    if c.shape != (n,):
        raise ShapeError(f"weights: expected shape ({n},), one for each model, got {c.shape}")
    total = float(c.sum())
    if abs(total) <= 1e-12 * float(np.abs(c).sum()):
        raise ArgumentError("weights: expected a sum that is not zero, to normalise by; got 0")
    return np.asarray(c / total)


def _check_integers(family: Family, argument: str = "models") -> None:
    for name, w in family.tensors.items():
        if w[0].dtype in FLOATS:
            continue
        if w[0].dtype.kind not in "biu":
            raise ElementError(
                f"{argument}: {name!r} is {w[0].dtype}; expected float16, bfloat16, float32 or float64"
            )
        for j, array in enumerate(w):
            if not np.array_equal(array, w[0]):
                raise ArgumentError(
                    f"{family.label(j, name, argument)}: {array.dtype} entries must be equal in all "
                    "models to be copied; leave them out, or cast them to a float type"
                )


def _new_results(family: Family, m: int) -> dict[str, list[Array]]:
    """Fresh arrays; the rows of one array when the models came as one array."""
    results = {}
    for name, w in family.tensors.items():
        stack = np.empty((m, *w[0].shape), w[0].dtype) if family.form == "array" else None
        results[name] = [
            np.empty(w[0].shape, w[0].dtype) if stack is None else stack[i, ...] for i in range(m)
        ]
    return results


def _in_form(results: dict[str, list[Array]], family: Family, m: int, one: bool) -> Any:
    """The results in the form in which the models came."""
    if family.form == "mappings":
        dicts = [{name: w[i] for name, w in results.items()} for i in range(m)]
        return dicts[0] if one else dicts
    rows = results[""]
    if one:
        return rows[0]
    return rows[0].base if family.form == "array" else rows


def _results_in(out: Any, family: Family, m: int, one: bool) -> dict[str, list[Array]]:
    """The caller's own arrays as results, all checked before anything is written."""
    given = [out] if one else out
    if isinstance(given, Mapping) or not hasattr(given, "__getitem__"):
        raise ArgumentTypeError(f"out: expected {m} models, got {type(out).__name__}")
    if len(given) != m:
        raise ShapeError(f"out: expected {m} models, one for each row of A, got {len(given)}")
    results: dict[str, list[Array]] = {name: [] for name in family.tensors}
    for i in range(m):
        # indexing an array of one dimension would give a scalar that is not its memory
        model = given[i, ...] if isinstance(given, np.ndarray) else given[i]
        _add_result(results, model, family, "out" if one else f"out[{i}]")
    _check_memory(results, family)
    return results


def _add_result(results: dict[str, list[Array]], model: Any, family: Family, label: str) -> None:
    if isinstance(model, Mapping) != (family.form == "mappings"):
        raise ArgumentTypeError(
            f"{label}: expected the form of the models, got {type(model).__name__}"
        )
    if isinstance(model, Mapping) and set(model) != set(family.tensors):
        odd = sorted(map(str, set(model) ^ set(family.tensors)))
        raise NamesError(f"{label}: expected the names of the models; these differ: {odd[:3]}")
    for name, w in family.tensors.items():
        place = f"{label}[{name!r}]" if isinstance(model, Mapping) else label
        target = model[name] if isinstance(model, Mapping) else model
        results[name].append(_checked_result(target, w[0], place))


def _checked_result(target: Any, like: Array, label: str) -> Array:
    if not isinstance(target, np.ndarray):
        raise ArgumentTypeError(
            f"{label}: expected a NumPy array to write to, got {type(target).__name__}"
        )
    if target.shape != like.shape:
        raise ShapeError(f"{label}: expected shape {like.shape}, got {target.shape}")
    if target.dtype != like.dtype or not target.dtype.isnative:
        raise ElementError(f"{label}: expected native {like.dtype}, got {target.dtype!r}")
    if not target.flags.writeable:
        raise ArgumentError(f"{label}: array is read-only; pass one that may be written")
    if not target.flags.c_contiguous or not target.flags.aligned:
        raise ArgumentError(f"{label}: array is not C-contiguous and aligned; pass one that is")
    return target


def _check_memory(results: dict[str, list[Array]], family: Family) -> None:
    """Refuses outputs that share memory with one another, or with an input other than of their name."""
    spans = [(*_span(a), True, name) for name, w in results.items() for a in w if a.size]
    inputs = [(*_span(a), False, name) for name, w in family.tensors.items() for a in w if a.size]
    names_at: dict[tuple[int, int], set[str]] = {}
    for low, high, _, name in inputs:
        names_at.setdefault((low, high), set()).add(name)
    # outputs first among equal spans: each then meets every input that began before it
    ordered = sorted(spans + inputs, key=lambda span: (span[0], span[1], not span[2]))
    furthest: dict[bool, tuple[int, int, str]] = {}
    for low, high, is_out, name in ordered:
        for other_is_out, (start, stop, owner) in furthest.items():
            if low >= stop or not (is_out or other_is_out):
                continue
            in_place = is_out != other_is_out and (start, stop) == (low, high)
            if not in_place or names_at[low, high] != {name if is_out else owner}:
                raise ArgumentError(
                    f"out{f'[...][{name!r}]' if name else ''}: shares memory with another output, or with "
                    "an input that is not it; pass the models themselves, or other memory"
                )
        if is_out not in furthest or high > furthest[is_out][1]:
            furthest[is_out] = (low, high, name)


def _span(array: Array) -> tuple[int, int]:
    # contiguous here, so this is all that byte_bounds would find, in a tenth of its time
    start: int = array.__array_interface__["data"][0]
    return start, start + array.nbytes


__all__ = ["fuse", "mix", "share", "transfer"]

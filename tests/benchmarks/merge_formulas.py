"""What each merge method is asked for in the benchmark, and its formula in float64 for one tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
# Exact in every element, so that sums that cancel are zero by every arithmetic.
WEIGHTS = (0.5, 0.375, 0.125)


@dataclass(frozen=True)
class Task:
    """One method of the benchmark.

    `models` of three are merged, the base (the last) left out; `exact` is the formula of the models
    and the base. A random method is compared by the length of its change.
    """

    method: str
    exact: Callable[[list[Array], Array], Array]
    models: int = 2
    base: bool = True
    per_model: dict[str, tuple[float, ...]] = field(default_factory=dict)
    shared: dict[str, float | bool] = field(default_factory=dict)
    random: bool = False
    elementwise: bool = False
    times_faster: float | None = None

    @property
    def files(self) -> int:
        """How many checkpoints are read."""
        return self.models + self.base


def _linear(models: list[Array], base: Array) -> Array:
    return sum(w * x for w, x in zip(WEIGHTS, models, strict=True)) / sum(WEIGHTS)


def _arithmetic(models: list[Array], base: Array) -> Array:
    return base + sum(w * (x - base) for w, x in zip(WEIGHTS, models, strict=False))


def _arc(t: float, first: Array, second: Array) -> Array:
    cosine = float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)


def _slerp(models: list[Array], base: Array) -> Array:
    return _arc(0.3, base, models[0])


def _nuslerp(models: list[Array], base: Array) -> Array:
    t = WEIGHTS[1] / (WEIGHTS[0] + WEIGHTS[1])
    lengths = [np.sqrt((x**2).sum()) for x in models]
    cosine = float((models[0] * models[1]).sum() / (lengths[0] * lengths[1]))
    angle = np.arccos(min(1.0, cosine))
    parts = np.sin((1 - t) * angle) * models[0] + np.sin(t * angle) * models[1]
    return parts / np.sin(angle)


def _multislerp(models: list[Array], base: Array) -> Array:
    weights = np.array(WEIGHTS) / sum(WEIGHTS)
    lengths = [np.sqrt((x**2).sum()) for x in models]
    mean = sum(w * x / n for w, x, n in zip(weights, models, lengths, strict=True))
    return float(weights @ lengths) * mean / np.sqrt((mean**2).sum())


def _karcher(models: list[Array], base: Array) -> Array:
    units = [x / np.sqrt((x**2).sum()) for x in models]
    mean = sum(units)
    mean /= np.sqrt((mean**2).sum())
    for _ in range(10):
        cosines = [float(np.clip((mean * u).sum(), -1, 1)) for u in units]
        angles = np.arccos(cosines)
        step = sum(
            a / np.sin(a) * (u - c * mean) / len(units)
            for u, c, a in zip(units, cosines, angles, strict=True)
            if a > 1e-5
        )
        length = float(np.sqrt(np.sum(step**2)))
        if length < 1e-5:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
        mean /= np.sqrt((mean**2).sum())
    return mean * np.mean([np.sqrt((x**2).sum()) for x in models])


def _stock(models: list[Array], base: Array) -> Array:
    first, second = (x - base for x in models)
    cosine = float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))
    t = 2 * cosine / (1 + cosine)
    return t * (models[0] + models[1]) / 2 + (1 - t) * base


def _nearswap(models: list[Array], base: Array) -> Array:
    share = np.clip(0.001 / np.maximum(np.abs(base - models[0]), 1e-6), 0, 1)
    return share * models[0] + (1 - share) * base


def _softmax(x: Array) -> Array:
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True) + 1e-8


def _fusion(models: list[Array], base: Array) -> Array:
    p, q = _softmax(models[0]), _softmax(base)
    change = models[0] - base
    importance = np.abs(change) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ranked = np.sort(importance, axis=None)
    low, middle, high = (ranked[int(q * (ranked.size - 1))] for q in (0.25, 0.5, 0.75))
    return base + np.where(importance >= middle + 1.5 * (high - low), change, 0)


def _ram(models: list[Array], base: Array) -> Array:
    changes = [x - base for x in models]
    active = [np.abs(change) > 1e-5 for change in changes]
    count = np.maximum(1, sum(a.astype(int) for a in active))
    return base + sum(a * c for a, c in zip(active, changes, strict=True)) / count


def _top(change: Array, count: int) -> Array:
    order = np.argsort(-np.abs(change), axis=None, kind="stable")
    kept = np.zeros(change.size, bool)
    kept[order[:count]] = True
    return kept.reshape(change.shape)


def _elected(changes: list[Array], weights: tuple[float, ...]) -> tuple[Array, Array]:
    weighted = [w * c for w, c in zip(weights, changes, strict=False)]
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    agree = [np.sign(w) == sign for w in weighted]
    total = sum(a * w for a, w in zip(agree, weighted, strict=True))
    divisor = sum(a * w for a, w in zip(agree, weights, strict=False))
    return total, np.where(divisor == 0, 1, divisor)


def _ties(models: list[Array], base: Array) -> Array:
    changes = [x - base for x in models]
    total, divisor = _elected([c * _top(c, c.size // 2) for c in changes], WEIGHTS)
    return base + total / divisor


def _breadcrumbs(models: list[Array], base: Array) -> Array:
    total = 0.0
    for weight, x in zip(WEIGHTS, models, strict=False):
        change = x - base
        above, least = int(0.01 * change.size), int(0.9 * change.size)
        below = max(0, change.size - least - above)
        above -= max(0, above + least - change.size)
        kept = _top(change, change.size - below) & ~_top(change, above)
        total = total + weight * change * kept
    return base + total


def _drawn(change: Array, chance: float | Array, seed: int) -> Array:
    kept = change * (np.random.default_rng(seed).random(change.shape) < chance)
    return kept * (np.abs(change).sum() / np.abs(kept).sum())


def _dare_linear(models: list[Array], base: Array) -> Array:
    kept = [_drawn(x - base, 0.5, seed) for seed, x in enumerate(models)]
    return base + sum(w * k for w, k in zip(WEIGHTS, kept, strict=False))


def _dare_ties(models: list[Array], base: Array) -> Array:
    kept = [_drawn(x - base, 0.5, seed) for seed, x in enumerate(models)]
    return base + _elected(kept, WEIGHTS)[0]


def _della(models: list[Array], base: Array) -> Array:
    kept = []
    for seed, x in enumerate(models):
        rank = np.argsort(np.argsort(np.abs(x - base), axis=-1, kind="stable"), axis=-1)
        kept.append(_drawn(x - base, 0.35 + 0.3 * rank / (rank.shape[-1] - 1), seed))
    total, divisor = _elected(kept, WEIGHTS)
    return base + total / divisor


def _sce(models: list[Array], base: Array) -> Array:
    changes = np.stack([x - base for x in models])
    spread = changes.var(axis=0)
    changes = changes * _top(spread, int(0.5 * np.count_nonzero(spread)))
    shares = (changes**2).mean(axis=tuple(range(1, changes.ndim)))
    shares = shares / shares.sum() if shares.sum() >= 1e-6 else np.full(len(models), 0.5)
    sign = np.where(changes.sum(axis=0) >= 0, 1.0, -1.0)
    agree = np.sign(changes) == sign
    divisor = np.maximum(np.einsum("i,i...->...", shares, agree), 1e-6)
    return base + np.einsum("i,i...->...", shares, changes * agree) / divisor


_WEIGHT = {"weight": WEIGHTS}
TASKS = {
    task.method: task
    for task in (
        Task("linear", _linear, 3, False, _WEIGHT, elementwise=True),
        Task("task_arithmetic", _arithmetic, per_model=_WEIGHT, elementwise=True),
        Task("passthrough", lambda models, base: models[0], 1, False, elementwise=True),
        Task("nearswap", _nearswap, 1, shared={"t": 0.001}, elementwise=True),
        Task("ram", _ram, elementwise=True),
        Task("slerp", _slerp, 1, shared={"t": 0.3}),
        Task("nuslerp", _nuslerp, 2, False, _WEIGHT),
        Task("multislerp", _multislerp, 3, False, _WEIGHT),
        Task("karcher", _karcher, 3, False, times_faster=12),
        Task("model_stock", _stock),
        Task("arcee_fusion", _fusion, 1),
        Task("ties", _ties, 2, True, _WEIGHT, {"density": 0.5}, times_faster=20),
        Task(
            "breadcrumbs", _breadcrumbs, 2, True, _WEIGHT, {"density": 0.9, "gamma": 0.01},
            times_faster=20,
        ),
        Task("sce", _sce, shared={"select_topk": 0.5}, times_faster=20),
        Task("dare_linear", _dare_linear, 2, True, _WEIGHT, {"density": 0.5}, random=True),
        Task(
            "dare_ties", _dare_ties, 2, True, _WEIGHT, {"density": 0.5}, random=True, times_faster=12
        ),
        Task(
            "della", _della, 2, True, _WEIGHT, {"density": 0.5, "epsilon": 0.15}, random=True,
            times_faster=20,
        ),
    )
}  # fmt: skip


def error_of(task: Task, found: Array, models: list[Array], base: Array) -> float:
    """Of one tensor: the length of the error over that of the result; of the change, if random."""
    exact = task.exact(models[: task.models], base)
    if not task.random:
        return float(np.sqrt(((found - exact) ** 2).sum() / (exact**2).sum()))
    lengths = [np.sqrt(((x - base) ** 2).sum()) for x in (found, exact)]
    return float(abs(lengths[0] / lengths[1] - 1))

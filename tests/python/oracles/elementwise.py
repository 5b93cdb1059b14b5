"""The methods that look at elements, in float64 from their formulas, and arcee_fusion."""

from __future__ import annotations

import numpy as np


def nearswap(base, model, t):
    """The base moved towards the model by at most t."""
    alpha = np.clip(t / np.maximum(np.abs(base - model), 1e-6), 0, 1)
    return alpha * model + (1 - alpha) * base


def ram(models, base, epsilon=1e-5, factors=None):
    """The mean of the active deltas, one alone times the factor of its model."""
    factors = [1.0] * len(models) if factors is None else factors
    deltas = [model - base for model in models]
    active = [np.abs(delta) > epsilon for delta in deltas]
    count = sum(a.astype(int) for a in active)
    found = np.array(base, dtype=np.float64)
    for delta, on, factor in zip(deltas, active, factors, strict=True):
        found = found + np.where(
            on, np.where(count == 1, factor * delta, delta / np.maximum(count, 1)), 0
        )
    return found


def ramplus_tl(models, base, r=0.1, alpha=0.2, epsilon=1e-5):
    """RAM, with a factor for what one model alone changed."""
    active = [np.abs(model - base) > epsilon for model in models]
    count = sum(a.astype(int) for a in active)
    factors = []
    for on in active:
        rho = np.sum(on & (count > 1)) / max(np.sum(on & (count == 1)), epsilon)
        factors.append(1 + r * np.clip(rho, 0, alpha))
    return ram(models, base, epsilon, factors)


def magmax(models, base, strength=1.0):
    """The delta of largest magnitude."""
    deltas = np.array([model - base for model in models])
    first = np.argmax(np.abs(deltas), axis=0)
    return base + strength * np.take_along_axis(deltas, first[None], 0)[0]


def consensus_ta(models, base, k=2, thresholds=None, alpha=1.0):
    """The summed deltas where k TALL masks agree."""
    thresholds = [0.4] * len(models) if thresholds is None else thresholds
    deltas = [model - base for model in models]
    total = sum(deltas)
    masks = [
        np.abs(delta) >= least * np.abs(total - delta)
        for delta, least in zip(deltas, thresholds, strict=True)
    ]
    return base + alpha * np.where(sum(m.astype(int) for m in masks) >= k, total, 0)


def fisher(models, information, weights, epsilon=1e-6, normalize=False):
    """The mean of the models weighted by their information."""
    total, divisor = 0.0, 0.0
    for model, known, weight in zip(models, information, weights, strict=True):
        length = np.linalg.norm(known) if normalize else 1.0
        share = weight / (length or 1.0) * (known + epsilon)
        total, divisor = total + share * model, divisor + share
    return total / divisor


def fusion_importance(model, base):
    """|x - base| times the divergence of the row, and the threshold."""
    row = base.shape[-1] if base.ndim else 1
    x, b = model.reshape(-1, row), base.reshape(-1, row)
    p, q = (np.exp(v - v.max(1, keepdims=True)) for v in (x, b))
    p, q = (v / v.sum(1, keepdims=True) + 1e-8 for v in (p, q))
    divergence = (p * np.log(p / q)).sum(1, keepdims=True)
    importance = np.abs(x - b) * np.maximum(divergence, 0)
    ranked = np.sort(importance, axis=None)
    last = ranked.size - 1
    first, median, third = (ranked[int(part * last)] for part in (0.25, 0.5, 0.75))
    return importance.reshape(base.shape), median + 1.5 * (third - first)

"""The methods of angles and norms in float64, from their formulas on whole vectors."""

from __future__ import annotations

import numpy as np


def slerp(base, model, t):
    """v0 is the base; the vectors themselves are combined, their directions give the angle."""
    v0, v1 = base.ravel(), model.ravel()
    units = [v / np.linalg.norm(v) if np.linalg.norm(v) > 1e-8 else v for v in (v0, v1)]
    cosine = float(units[0] @ units[1])
    if abs(cosine) > 0.9995:
        return (1 - t) * base + t * model
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * base + np.sin(t * angle) * model) / np.sin(angle)


def _nuslerp_vectors(v0, v1, t):
    units = [v / max(np.linalg.norm(v), 1e-7) for v in (v0, v1)]
    cosine = np.clip(units[0] @ units[1], -1, 1)
    if 1 - cosine**2 <= 1e-12:
        return (1 - t) * v0 + t * v1
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * v0 + np.sin(t * angle) * v1) / np.sin(angle)


def nuslerp(models, base, weights, flatten=True, row_wise=False):
    """Of the vectors, or of their deltas with the base added back; along the axis asked for."""
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    shape = models[0].shape
    start = np.zeros(shape) if base is None else base
    first, second = (model - start for model in models)
    if flatten or len(shape) < 2:
        found = _nuslerp_vectors(first.ravel(), second.ravel(), t).reshape(shape)
    elif row_wise:
        pairs = (v.reshape(shape[0], -1) for v in (first, second))
        columns = [_nuslerp_vectors(a, b, t) for a, b in zip(*(v.T for v in pairs), strict=True)]
        found = np.array(columns).T.reshape(shape)
    else:
        pairs = (v.reshape(-1, shape[-1]) for v in (first, second))
        found = np.array([_nuslerp_vectors(a, b, t) for a, b in zip(*pairs, strict=True)])
    return start + found.reshape(shape)


def multislerp(models, base, weights, normalize_weights=True, eps=1e-8):
    """With the tangent mean at the weighted mean of directions, which vanishes but for rounding."""
    start = np.zeros(models[0].shape) if base is None else base
    vectors = [(model - start).ravel() for model in models]
    if normalize_weights:
        weights = [weight / sum(weights) for weight in weights]
    lengths = [np.linalg.norm(v) for v in vectors]
    units = [v / (length + eps) for v, length in zip(vectors, lengths, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    if np.linalg.norm(mean) < eps:
        flat = sum(w * v for w, v in zip(weights, vectors, strict=True))
        return start + flat.reshape(start.shape)
    mean = mean / np.linalg.norm(mean)
    tangent = sum(w * (u - (u @ mean) * mean) for w, u in zip(weights, units, strict=True))
    size = np.linalg.norm(tangent) + eps
    direction = mean * np.cos(size) + tangent * np.sin(size) / size
    scale = sum(w * length for w, length in zip(weights, lengths, strict=True))
    return start + (scale * direction).reshape(start.shape)


def karcher(models, max_iter=10, tol=1e-5):
    """The iteration on the vectors themselves."""
    vectors = [model.ravel() for model in models]
    lengths = [np.linalg.norm(v) for v in vectors]
    units = [v / n for v, n in zip(vectors, lengths, strict=True) if n > tol]
    if not units:
        return np.zeros(models[0].shape)
    mean = sum(units) / len(units)
    mean = units[0] if np.linalg.norm(mean) < tol else mean / np.linalg.norm(mean)
    for _ in range(max_iter):
        step = np.zeros_like(mean)
        for u in units:
            cosine = np.clip(mean @ u, -1, 1)
            angle = np.arccos(cosine)
            if angle >= tol and np.sin(angle) >= 1e-8:
                step += angle / np.sin(angle) * (u - cosine * mean) / len(units)
        size = np.linalg.norm(step)
        if size < tol:
            break
        mean = np.cos(size) * mean + np.sin(size) * step / size
        mean = mean / np.linalg.norm(mean)
    return (np.mean(lengths) * mean).reshape(models[0].shape)


def _stock_ratio(vectors):
    n = len(vectors)
    cosines = []
    for i in range(n):
        for j in range(i):
            scale = max(np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j]), 1e-6)
            cosines.append(np.clip(vectors[i] @ vectors[j] / scale, -1, 1))
    c = np.mean(cosines)
    return 0.0 if abs(1 + (n - 1) * c) < 1e-8 else n * c / (1 + (n - 1) * c)


def model_stock(models, base, filter_wise=False):
    """Between the base and the mean of the models, by the mean cosine of the deltas."""
    mean = sum(models) / len(models)
    if not filter_wise or base.ndim < 2:
        t = _stock_ratio([(model - base).ravel() for model in models])
        return t * mean + (1 - t) * base
    rows = [(model - base).reshape(-1, base.shape[-1]) for model in models]
    t = np.array([_stock_ratio([r[k] for r in rows]) for k in range(len(rows[0]))])
    t = t.reshape((*base.shape[:-1], 1))
    return t * mean + (1 - t) * base

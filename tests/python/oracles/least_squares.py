"""Least-squares tasks with their optima in closed form, graphs among them, and a plain step."""

from __future__ import annotations

import numpy as np

import weightshare as ws


class Problem:
    """n least-squares tasks of d unknowns each, with their closed-form optima."""

    def __init__(self, n: int = 6, d: int = 3, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        inputs = rng.standard_normal((n, 8, d))
        self.H = np.einsum("tij,tik->tjk", inputs, inputs) / 8
        self.b = rng.standard_normal((n, d))
        self.n, self.d = n, d
        self.L = float(np.linalg.eigvalsh(self.H).max())
        self.start = rng.standard_normal((n, d))

    def gradient(self, W: np.ndarray) -> np.ndarray:
        return np.einsum("tij,tj->ti", self.H, W) - self.b

    def loss(self, W: np.ndarray) -> float:
        return float(0.5 * np.einsum("ti,tij,tj", W, self.H, W) - (W * self.b).sum())

    def pooled(self, pi: np.ndarray | None = None) -> np.ndarray:
        pi = np.ones(self.n) if pi is None else pi
        return np.linalg.solve(np.einsum("t,tij->ij", pi, self.H), pi @ self.b)

    def penalised(self, M: np.ndarray) -> np.ndarray:
        """Minimise Σ f_t + ½ tr(Wᵀ M W)."""
        n, d = self.n, self.d
        full = np.kron(M, np.eye(d))
        for t in range(n):
            full[t * d : (t + 1) * d, t * d : (t + 1) * d] += self.H[t]
        return np.linalg.solve(full, self.b.ravel()).reshape(n, d)


def ring(n: int) -> np.ndarray:
    return ws.mixing.circulant([1 / 3, 1 / 3, 1 / 3], n)


def task_similarity(n: int) -> np.ndarray:
    place = np.arange(n)
    return np.exp(-np.abs(place[:, None] - place[None, :]) / 2.0)


def graph_laplacian(S: np.ndarray) -> np.ndarray:
    V = S - np.diag(np.diag(S))
    return np.diag(V.sum(axis=1)) - V


class PlainStep:
    """The least step object: a rate, and a step in place on arrays and mappings."""

    def __init__(self, rates):
        self.rates, self.count = rates, 0

    @property
    def lr(self):
        return self.rates[min(self.count, len(self.rates) - 1)]

    def step(self, params, grads):
        if isinstance(params, dict):
            for name in params:
                params[name] -= self.lr * grads[name]
        else:
            params -= self.lr * grads
        self.count += 1

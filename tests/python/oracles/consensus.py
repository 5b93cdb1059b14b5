"""Methods of sparse task vectors, written from their formulas in float64 NumPy, sorts and all."""

from __future__ import annotations

import hashlib
import struct

import numpy as np

ELECTED = {"ties", "dare_ties", "breadcrumbs_ties", "della"}
TRIM = {
    "ties": "magnitude",
    "dare_linear": "random",
    "dare_ties": "random",
    "breadcrumbs": "band",
    "breadcrumbs_ties": "band",
    "della": "ranked",
    "della_linear": "ranked",
}
NORMALIZED = {"ties", "della"}
RESCALED = {"dare_linear", "dare_ties", "della", "della_linear"}


def philox_words(key, count):
    """The first words of a stream: Philox4x32-10 of Salmon et al. 2011, counter i // 4, word i % 4."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    counter = np.arange(-(-count // 4), dtype=np.uint64)
    c = [counter & low, counter >> half, np.zeros_like(counter), np.zeros_like(counter)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c[0]
        p1 = np.uint64(0xCD9E8D57) * c[2]
        c = [
            (p1 >> half) ^ c[1] ^ np.uint64(k0),
            p1 & low,
            (p0 >> half) ^ c[3] ^ np.uint64(k1),
            p0 & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1).reshape(-1)[:count]


def words_of(seed, name, index, count):
    digest = hashlib.blake2b(f"{seed}:{index}:{name}".encode(), digest_size=8).digest()
    return philox_words(struct.unpack("<Q", digest)[0], count)


def descending(quantity):
    """Places by falling quantity; of equal ones the earlier first."""
    return np.argsort(-quantity, kind="stable")


def kept_of(trim, tau, density, words, gamma=0.01, epsilon=0.15):
    """Which elements of a task vector are kept."""
    n = tau.size
    flat = np.abs(tau).reshape(-1)
    kept = np.zeros(n, dtype=bool)
    if density == 0:
        return kept.reshape(tau.shape)
    if density >= 1:
        return ~kept.reshape(tau.shape)
    if trim == "random":
        kept = words < density * 2.0**32
    elif trim == "ranked":
        rows = flat.reshape(-1, tau.shape[-1] if tau.ndim else 1)
        chance = np.empty(rows.shape)
        for row, target in zip(rows, chance, strict=True):
            rank = np.empty(len(row))
            rank[descending(row)[::-1]] = np.arange(len(row))
            spread = 2 * epsilon * rank / (len(row) - 1) if len(row) > 1 else epsilon
            target[:] = density - epsilon + spread
        kept = words < chance.reshape(-1) * 2.0**32
    else:
        k = max(1, int(density * n))
        top = min(int(gamma * n), n - k) if trim == "band" else 0
        kept[descending(flat)[top : top + k]] = True
    return kept.reshape(tau.shape)


def summed(tau, factors, votes=None, weights=None, floor=None):
    """The sum of task vectors, by an election when there are votes, divided when there are weights."""
    factors = np.asarray(factors, dtype=np.float64).reshape(-1, *[1] * (tau[0].ndim))
    agree = np.ones(np.shape(tau), dtype=bool)
    if votes is not None:
        voted = np.asarray(votes, dtype=np.float64).reshape(factors.shape) * tau
        sign = np.where(voted.sum(axis=0) >= 0, 1.0, -1.0)
        agree = (np.sign(voted) == sign) & (voted != 0)
    total = (factors * tau * agree).sum(axis=0)
    if weights is None:
        return total
    divisor = (np.asarray(weights, dtype=np.float64).reshape(factors.shape) * agree).sum(axis=0)
    divisor = np.where(divisor == 0, 1.0, divisor) if floor is None else np.maximum(divisor, floor)
    return total / divisor


def merged(
    method,
    models,
    base,
    weights,
    *,
    density=1.0,
    gamma=0.01,
    epsilon=0.15,
    normalize=None,
    rescale=None,
    strength=1.0,
    seed=0,
    name="",
    work=np.float32,
):
    """One tensor merged by TIES, DARE, breadcrumbs or DELLA; task vectors are taken in `work`."""
    n = len(models)
    densities = np.broadcast_to(density, n)
    normalize = method in NORMALIZED if normalize is None else normalize
    rescale = method in RESCALED if rescale is None else rescale
    taus, scales = [], []
    for j, model in enumerate(models):
        tau = model.astype(work) - base.astype(work)
        words = words_of(seed, name, j, tau.size)
        kept = kept_of(TRIM[method], tau, float(densities[j]), words, gamma, epsilon)
        whole = tau.astype(np.float64)
        part = np.where(kept, whole, 0.0)
        before, after = np.abs(whole).sum(), np.abs(part).sum()
        scale = before / after if rescale and before >= 1e-7 and after >= 1e-7 else 1.0
        taus.append(part)
        scales.append(scale)
    factors = np.asarray(weights, dtype=np.float64) * scales
    if method in ELECTED:
        total = summed(taus, factors, factors, weights if normalize else None)
    else:
        total = summed(taus, factors) / (sum(weights) if normalize else 1.0)
    return base.astype(np.float64) + strength * total


def merged_sce(models, base, select_topk=1.0, work=np.float32):
    """One tensor merged by SCE; task vectors and variances are taken in `work`."""
    n = len(models)
    tau = np.stack([model.astype(work) - base.astype(work) for model in models])
    kept = np.ones(base.size, dtype=bool)
    if select_topk < 1:
        mean = sum(tau[1:], tau[0]) / work(n)
        variance = sum(((t - mean) ** 2 for t in tau), np.zeros_like(mean)) / work(n)
        k = int(np.count_nonzero(variance) * select_topk)
        kept = np.zeros(base.size, dtype=bool)
        kept[descending(variance.reshape(-1))[:k]] = True
    tau = np.where(kept.reshape(base.shape), tau.astype(np.float64), 0.0)
    squares = [np.mean(t**2) if t.size else 0.0 for t in tau]
    total = sum(squares)
    shares = [1 / n] * n if total < 1e-6 else [square / total for square in squares]
    delta = summed(tau, shares, np.ones(n), shares, floor=1e-6)
    return base.astype(np.float64) + delta

"""`ws.similarity` of eight models, float64 sums in one pass, beside float32 matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from material import MEAN, TILE, repeated, tiles
from report import Case, Context
from timing import Contestant, race
from worker import Ready

N_MODELS = 8
ELEMENTS = 64 * TILE
COLUMNS = 4096
Matrix = Any


def _cosines(products: Matrix) -> Matrix:
    scale = np.sqrt(np.einsum("...ii->...i", products))
    return products / scale[..., :, None] / scale[..., None, :]


def _equal_signs(products: Matrix, count: int) -> Matrix:
    return (1.0 + products / count) / 2.0


def exact(metric: str, rows: Matrix) -> Matrix:
    """The similarity in float64 from one tile: repeating it changes no cosine, mean or share."""
    wide = rows.astype(np.float64)
    if metric == "cosine":
        return _cosines(wide @ wide.T)
    if metric == "sign":
        signs = np.sign(wide)
        return _equal_signs(signs @ signs.T, wide.shape[1])
    by_row = wide.reshape(len(wide), -1, COLUMNS).transpose(1, 0, 2)
    return _cosines(by_row @ by_row.transpose(0, 2, 1)).mean(axis=0)


def numpy_cosine(w: Matrix) -> Matrix:
    """One product over all models."""
    return _cosines(np.dot(w, w.T))


def numpy_cosine_wide(w: Matrix) -> Matrix:
    """The same on a copy in float64."""
    return numpy_cosine(w.astype(np.float64))


def numpy_sign(w: Matrix) -> Matrix:
    """One product over the signs, which needs an array of the models' size."""
    signs = np.sign(w)
    return _equal_signs(np.dot(signs, signs.T), w.shape[1])


def numpy_row_cosine(w: Matrix) -> Matrix:
    """A small product for each row."""
    by_row = w.reshape(len(w), -1, COLUMNS).transpose(1, 0, 2)
    return _cosines(by_row @ by_row.transpose(0, 2, 1)).mean(axis=0)


_PEERS: dict[str, Callable[[Matrix], Matrix]] = {
    "cosine": numpy_cosine,
    "cosine float64": numpy_cosine_wide,
    "sign": numpy_sign,
    "row_cosine": numpy_row_cosine,
}


def _rows(metric: str) -> Matrix:
    # with an offset of 100 all signs are equal, so signs are measured about zero
    return tiles(N_MODELS, 0.0 if metric == "sign" else MEAN)


def _ready(call: Callable[[], Matrix], expected: Matrix) -> Ready:
    held: dict[str, Matrix] = {}

    def run() -> None:
        held["result"] = call()

    def facts() -> dict[str, Any]:
        return {"error": float(np.abs(np.asarray(held["result"]) - expected).max())}

    return Ready(run, facts=facts)


def ours(metric: str, size: int, threads: int) -> Ready:
    """``ws.similarity(W, metric)``."""
    import weightshare as ws

    rows = _rows(metric)
    w = repeated(rows, size)
    models = w.reshape(N_MODELS, -1, COLUMNS) if metric == "row_cosine" else w
    return _ready(lambda: ws.similarity(models, metric, threads=threads), exact(metric, rows))


def peer(metric: str, form: str, size: int) -> Ready:
    """What NumPy users write."""
    rows = _rows(metric)
    w = repeated(rows, size)
    return _ready(lambda: _PEERS[form](w), exact(metric, rows))


def _case(context: Context, metric: str, *, wide: bool = False) -> Case:
    size = context.size(ELEMENTS) // (16 if wide and not context.small else 1)
    form = f"{metric} float64" if wide else metric
    sized: dict[str, Any] = {"metric": metric, "size": size}
    threaded = {**sized, "threads": context.threads}
    named = "W.astype(float64), then np.dot" if wide else f"NumPy float32 {metric}"
    contestants = [
        Contestant(f"ws.similarity {metric}", "bench_similarity:ours", threaded),
        Contestant(named, "bench_similarity:peer", {**sized, "form": form}),
    ]
    found = race(contestants, threads=context.threads, repeats=context.repeats())
    title = f"similarity {metric}: {N_MODELS} models x {size / 1e6:.1f}M float32"
    if wide:
        title += ", a slice, beside float64"
    case = Case(f"similarity {form}", title, found, 4 * N_MODELS * size, context.bandwidth)
    case.most_error = 1e-12
    where = "mean 0" if metric == "sign" else "mean = 100 std"
    case.notes.append(f"error: largest difference from the float64 similarity, data with {where}")
    if metric == "row_cosine":
        case.notes.append(f"rows of {COLUMNS}")
    return case


def run(context: Context) -> list[Case]:
    """The three streaming metrics, and the float64 form on a slice."""
    cases = [_case(context, metric) for metric in ("cosine", "sign", "row_cosine")]
    cases.insert(1, _case(context, "cosine", wide=True))
    return cases

"""Each method without sparsity, with a spread of parameters and its oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import elementwise
import spherical


@dataclass(frozen=True)
class DenseCase:
    """A method, its parameters as `weightshare.merge` takes them, and what it should give."""

    name: str
    method: str
    models: int
    oracle: Any
    base: bool = True
    values: dict[str, Any] = field(default_factory=dict)
    weights: list[float] | None = None


def _slerp(t):
    return lambda models, base: spherical.slerp(base, models[0], t)


CASES = [
    *(
        DenseCase(f"slerp {t}", "slerp", 1, _slerp(t), values={"t": t})
        for t in (0.0, 0.3, 0.5, 1.0, 1.4)
    ),
    *(
        DenseCase(
            f"nuslerp {name} {'delta' if base else 'whole'}",
            "nuslerp",
            2,
            lambda models, base, kind=kind: spherical.nuslerp(models, base, [0.8, 0.4], **kind),
            base=base,
            values={f"nuslerp_{word}": value for word, value in kind.items()},
            weights=[0.8, 0.4],
        )
        for base in (False, True)
        for name, kind in (
            ("flat", {"flatten": True}),
            ("rows", {"flatten": False}),
            ("columns", {"flatten": False, "row_wise": True}),
        )
    ),
    *(
        DenseCase(
            f"multislerp {'delta' if base else 'whole'} {normalize}",
            "multislerp",
            3,
            lambda models, base, normalize=normalize: spherical.multislerp(
                models, base, [1.0, 0.5, 0.25], normalize
            ),
            base=base,
            values={"normalize_weights": normalize},
            weights=[1.0, 0.5, 0.25],
        )
        for base in (False, True)
        for normalize in (False, True)
    ),
    *(
        DenseCase(
            f"karcher {n}", "karcher", n, lambda models, _: spherical.karcher(models), base=False
        )
        for n in (1, 2, 4)
    ),
    *(
        DenseCase(
            f"model_stock {n} {by_row}",
            "model_stock",
            n,
            lambda models, base, by_row=by_row: spherical.model_stock(models, base, by_row),
            values={"filter_wise": by_row},
        )
        for n in (2, 3)
        for by_row in (False, True)
    ),
    *(
        DenseCase(
            f"nearswap {t}",
            "nearswap",
            1,
            lambda models, base, t=t: elementwise.nearswap(base, models[0], t),
            values={"t": t},
        )
        for t in (0.0, 0.05, 10.0)
    ),
    DenseCase("ram", "ram", 3, elementwise.ram),
    DenseCase(
        "ram wide",
        "ram",
        3,
        lambda models, base: elementwise.ram(models, base, 0.11),
        values={"epsilon": 0.11},
    ),
    DenseCase(
        "ramplus_tl",
        "ramplus_tl",
        3,
        lambda models, base: elementwise.ramplus_tl(models, base, 0.3, 0.6, 0.11),
        values={"r": 0.3, "alpha": 0.6, "epsilon": 0.11},
    ),
    DenseCase(
        "magmax",
        "magmax",
        3,
        lambda models, base: elementwise.magmax(models, base, 0.7),
        values={"lambda_": 0.7},
    ),
    *(
        DenseCase(
            f"consensus_ta {k}",
            "consensus_ta",
            3,
            lambda models, base, k=k: elementwise.consensus_ta(
                models, base, k, [0.5312345, 0.2712345, 0.4112345], 0.9
            ),
            values={"k": k, "mask_threshold": [0.5312345, 0.2712345, 0.4112345], "alpha": 0.9},
        )
        for k in (1, 2, 3)
    ),
    DenseCase(
        "passthrough scale",
        "passthrough",
        1,
        lambda models, _: -1.5 * models[0],
        base=False,
        values={"scale": -1.5},
    ),
    DenseCase(
        "ema",
        "ema",
        3,
        lambda models, _: 0.7 * (0.7 * models[0] + 0.3 * models[1]) + 0.3 * models[2],
        base=False,
        values={"decay": 0.7},
    ),
    DenseCase("swa", "swa", 3, lambda models, _: np.mean(models, axis=0), base=False),
]

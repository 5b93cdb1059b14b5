"""Merge methods that look at each element alone: nearswap, RAM, magmax, consensus TA, Fisher."""

from __future__ import annotations

from typing import Any

import numpy as np

from weightshare.merging.elements import Array
from weightshare.merging.gram import gram_of, norm
from weightshare.merging.method import (
    Method,
    Parameter,
    Pass,
    Settings,
    Survey,
    Tensor,
    Tile,
    anywhere,
    at_chunks,
)


def _base(tile: Tile) -> Array:
    assert tile.base is not None
    return tile.base


def _combine_nearswap(tile: Tile, _: object) -> None:
    from weightshare._core import elementwise as _elementwise

    t = float(tile.settings.shared["t"])
    _elementwise.nearswap(tile.out, tile.models[0], _base(tile), t, tile.threads)


def _combine_ram(tile: Tile, _: object) -> None:
    _mean_of_active(tile, [1.0] * len(tile.models))


def _mean_of_active(tile: Tile, alone: list[float]) -> None:
    from weightshare._core import elementwise as _elementwise

    epsilon = float(tile.settings.shared["epsilon"])
    _elementwise.mean_of_active(tile.out, tile.models, _base(tile), epsilon, alone, tile.threads)


def _survey_ramplus(tensor: Tensor) -> Survey:
    shared = tensor.settings.shared
    epsilon = float(shared["epsilon"])

    def look(tile: Tile) -> Array:
        from weightshare._core import elementwise as _elementwise

        counts = np.empty((2, len(tile.models)), dtype=np.int64)
        _elementwise.count_active(counts, tile.models, _base(tile), epsilon, tile.threads)
        return counts

    counts = yield Pass(look, lambda total, told: told if total is None else total + told)
    # A model without lone deltas has none to make larger.
    ratios = [
        together / max(alone, epsilon) if alone else 0.0 for together, alone in counts.T.tolist()
    ]
    return [1.0 + shared["r"] * min(ratio, shared["alpha"]) for ratio in ratios]


def _combine_ramplus(tile: Tile, factors: list[float]) -> None:
    _mean_of_active(tile, factors)


def _combine_magmax(tile: Tile, _: object) -> None:
    from weightshare._core import elementwise as _elementwise

    strength = float(tile.settings.shared["lambda"])
    _elementwise.largest_delta(tile.out, tile.models, _base(tile), strength, tile.threads)


def _check_consensus(settings: Settings) -> str | None:
    k, count = settings.shared["k"], len(settings.per_model)
    if k <= count:
        return None
    return f"k: expected at most the number of models, {count}, got {k:g}; nothing would be kept"


def _combine_consensus(tile: Tile, _: object) -> None:
    from weightshare._core import elementwise as _elementwise

    shared = tile.settings.shared
    thresholds = tile.settings.of_models("mask_threshold")
    k, alpha = float(shared["k"]), float(shared["alpha"])
    _elementwise.agreed_sum(tile.out, tile.models, _base(tile), thresholds, k, alpha, tile.threads)


def _check_fisher(settings: Settings) -> str | None:
    if any(weight > 0.0 for weight in settings.of_models("weight")):
        return None
    return "every weight is zero, so nothing would be averaged; give a weight above zero"


def _statistics(tile: Tile) -> list[Array]:
    return list(tile.statistics)


def _survey_fisher(tensor: Tensor) -> Survey | None:
    return _survey_fisher_norms() if tensor.settings.shared["normalize_fisher"] else None


def _survey_fisher_norms() -> Survey:
    gram = yield from gram_of(_statistics, deltas=False)
    return [norm(gram[i][i]) for i in range(len(gram))]


def _unit_fisher(tensor: Tensor) -> int:
    return at_chunks(tensor) if tensor.settings.shared["normalize_fisher"] else anywhere(tensor)


def _combine_fisher(tile: Tile, norms: Any) -> None:
    from weightshare._core import elementwise as _elementwise

    weights = tile.settings.of_models("weight")
    # Where there is no information at all, there is nothing to divide by.
    divisors = [value if value else 1.0 for value in norms or [1.0] * len(weights)]
    shares = [weight / divisor for weight, divisor in zip(weights, divisors, strict=True)]
    epsilon = float(tile.settings.shared["epsilon"])
    statistics = _statistics(tile)
    _elementwise.weighted_mean(tile.out, tile.models, statistics, shares, epsilon, tile.threads)


_ACTIVE = Parameter("epsilon", "deltas up to this are none", default=1e-5, low=0.0)

NEARSWAP = Method(
    name="nearswap",
    summary="base + min(t / |x - base|, 1) (x - base): the base, moved towards x by at most t",
    source="none; a rule of the mergekit community",
    parameters=(Parameter("t", "largest move"),),
    combine=_combine_nearswap,
    base="required",
    max_models=1,
)

RAM = Method(
    name="ram",
    summary="base + mean of the deltas x_i - base that are larger than epsilon",
    source="Reinforced agent merging (RAM), as mergekit has it",
    parameters=(_ACTIVE,),
    combine=_combine_ram,
    base="required",
)

RAMPLUS_TL = Method(
    name="ramplus_tl",
    summary=(
        "as ram, where one model alone has a delta times 1 + r min(shared_i / alone_i, alpha),"
        " counts of its deltas in the tensor"
    ),
    source="Reinforced agent merging (RAM+), as mergekit has it",
    parameters=(
        Parameter("r", "how much deltas of one model alone grow", default=0.1),
        Parameter("alpha", "largest ratio of shared to lone deltas", default=0.2, low=0.0),
        _ACTIVE,
    ),
    combine=_combine_ramplus,
    base="required",
    survey=_survey_ramplus,
    differs="the output has the dtype of the base; mergekit writes float32 for bfloat16 models",
)

MAGMAX = Method(
    name="magmax",
    summary="base + lambda times the delta x_i - base of largest magnitude, element by element",
    source="MagMax, Marczak et al. 2024, arXiv:2407.06322",
    parameters=(Parameter("lambda", "strength of the chosen deltas", default=1.0),),
    combine=_combine_magmax,
    base="required",
)

CONSENSUS_TA = Method(
    name="consensus_ta",
    summary=(
        "base + alpha * sum of t_i where at least k of the masks"
        " |t_i| >= mask_threshold_i |sum of t - t_i| hold, t_i = x_i - base; elsewhere the base"
    ),
    source="Localizing task information (TALL masks), Wang et al. 2024, arXiv:2405.07813",
    parameters=(
        Parameter("k", "tasks that an element must serve", default=2, kind="int", low=0),
        Parameter("mask_threshold", "the paper's lambda_i", default=0.4, per_model=True, low=0.0),
        Parameter("alpha", "strength of the summed deltas", default=1.0),
    ),
    combine=_combine_consensus,
    check=_check_consensus,
    base="required",
)

FISHER = Method(
    name="fisher",
    summary="sum of weight_i (F_i + epsilon) x_i / sum of weight_i (F_i + epsilon), by element",
    source="Merging models with Fisher-weighted averaging, Matena & Raffel 2022, arXiv:2111.09832",
    parameters=(
        Parameter("weight", "share of this model", default=1.0, per_model=True, low=0.0),
        Parameter(
            "fisher", "diagonal Fisher information of this model", per_model=True, kind="checkpoint"
        ),
        Parameter("epsilon", "added to the information", default=1e-6, low=1e-30),
        Parameter(
            "normalize_fisher",
            "divide a model's information by its norm in each tensor",
            default=False,
            kind="bool",
        ),
    ),
    combine=_combine_fisher,
    check=_check_fisher,
    survey=_survey_fisher,
    unit=_unit_fisher,
)

METHODS = (NEARSWAP, RAM, RAMPLUS_TL, MAGMAX, CONSENSUS_TA, FISHER)

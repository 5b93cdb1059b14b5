"""Merge methods that are one weighted sum: linear, task arithmetic, passthrough, EMA, SWA."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightshare.merging.elements import Array, added
from weightshare.merging.method import Method, Parameter, Settings, Tile

# A sum of weights this small beside the weights themselves is a cancelled sum, not a divisor.
_CANCELLED = 1e-8


def normalized(settings: Settings) -> list[float]:
    """Return the weights, divided by their sum when ``normalize`` is true."""
    weights = settings.of_models("weight")
    if not settings.shared["normalize"]:
        return weights
    total = added(weights)
    return [weight / total for weight in weights]


def check_weights(settings: Settings) -> str | None:
    """Return what is wrong with the weights, or None."""
    if not settings.shared["normalize"]:
        return None
    return weights_problem(settings.of_models("weight"), "normalize")


def weights_problem(weights: Sequence[float], switch: str) -> str | None:
    """Return why weights cannot be divided by their sum, or None.

    Parameters
    ----------
    weights : sequence of float
        The weights.
    switch : str
        The parameter that asks for the division.

    Returns
    -------
    str or None
        A sentence that says what to change.

    Examples
    --------
    >>> weights_problem([1.0, 2.0], "normalize")
    """
    if not np.isfinite(added(weights)):
        return (
            f"the sum of the weights {', '.join(f'{weight:g}' for weight in weights)} overflows, so"
            " they cannot be normalised; give smaller weights"
        )
    if abs(added(weights)) > _CANCELLED * added(abs(weight) for weight in weights):
        return None
    return (
        f"the weights {', '.join(f'{weight:g}' for weight in weights)} sum to zero, so they cannot"
        f" be normalised; change a weight or set {switch}: false"
    )


def mix_tile(tile: Tile, coefficients: Sequence[float], base: Array | None) -> None:
    """Write the sum of the models with these coefficients; deltas to a base when there is one."""
    # Imported when used, so that listing methods does not load the core.
    from weightshare._core import mixing as _mixing

    row = np.array([coefficients], dtype=np.float64)
    _mixing.mix([tile.out], tile.models, row, base, tile.threads)


def _combine_linear(tile: Tile, _: object) -> None:
    mix_tile(tile, normalized(tile.settings), None)


def _combine_task_arithmetic(tile: Tile, _: object) -> None:
    strength = float(tile.settings.shared["lambda"])
    mix_tile(tile, [strength * weight for weight in normalized(tile.settings)], tile.base)


def _combine_passthrough(tile: Tile, _: object) -> None:
    scale = tile.settings.per_model[0].get("scale")
    model = tile.models[0]
    if scale is None and model.dtype == tile.out.dtype:
        tile.out.view(np.uint8)[...] = model.view(np.uint8)
    else:
        mix_tile(tile, [1.0 if scale is None else float(scale)], None)


def ema_coefficients(decay: float, count: int) -> list[float]:
    """Return the share of each of so many models in their running mean, in the order of time.

    Parameters
    ----------
    decay : float
        What stays of the mean when a model joins it.
    count : int
        Number of models, the first the oldest.

    Returns
    -------
    list of float
        Shares that sum to one.

    Examples
    --------
    >>> ema_coefficients(0.5, 3)
    [0.25, 0.25, 0.5]
    """
    shares = [1.0]
    for _ in range(count - 1):
        shares = [decay * share for share in shares] + [1.0 - decay]
    return shares


def _combine_ema(tile: Tile, _: object) -> None:
    mix_tile(tile, ema_coefficients(float(tile.settings.shared["decay"]), len(tile.models)), None)


def _combine_swa(tile: Tile, _: object) -> None:
    mix_tile(tile, [1.0 / len(tile.models)] * len(tile.models), None)


WEIGHT = Parameter("weight", "share of this model", per_model=True)

LINEAR = Method(
    name="linear",
    summary="sum of weight_i x_i, divided by the sum of the weights when normalize is true",
    source="Model soups, Wortsman et al. 2022, arXiv:2203.05482",
    parameters=(
        WEIGHT,
        Parameter("normalize", "divide by the sum of the weights", default=True, kind="bool"),
    ),
    combine=_combine_linear,
    check=check_weights,
    differs="weights that sum to zero are refused; mergekit divides by zero",
)

TASK_ARITHMETIC = Method(
    name="task_arithmetic",
    summary="base + lambda * sum of weight_i (x_i - base)",
    source="Editing models with task arithmetic, Ilharco et al. 2022, arXiv:2212.04089",
    parameters=(
        WEIGHT,
        Parameter("normalize", "divide by the sum of the weights", default=False, kind="bool"),
        Parameter("lambda", "strength of the summed task vectors", default=1.0),
    ),
    combine=_combine_task_arithmetic,
    check=check_weights,
    base="required",
)

PASSTHROUGH = Method(
    name="passthrough",
    summary="scale * x, or x itself bit for bit when there is no scale",
    source="none; for stacking layers of models",
    parameters=(
        Parameter("scale", "what the tensor is multiplied with", per_model=True, optional=True),
    ),
    combine=_combine_passthrough,
    max_models=1,
)

EMA = Method(
    name="ema",
    summary="y <- decay y + (1 - decay) x_i over the models in their order, from y = x_1",
    source="Acceleration of stochastic approximation by averaging, Polyak & Juditsky 1992",
    parameters=(Parameter("decay", "what stays of the mean at each model", low=0.0, high=1.0),),
    combine=_combine_ema,
)

SWA = Method(
    name="swa",
    summary="mean of the models, such as checkpoints of one run",
    source="Averaging weights leads to wider optima, Izmailov et al. 2018, arXiv:1803.05407",
    parameters=(),
    combine=_combine_swa,
)

METHODS = (LINEAR, TASK_ARITHMETIC, PASSTHROUGH, EMA, SWA)

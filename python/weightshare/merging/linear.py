"""Merge methods that are one weighted sum: linear, task arithmetic."""

from __future__ import annotations

import numpy as np

from weightshare.merging.elements import Array
from weightshare.merging.method import Method, Parameter, Settings, Tile

# A sum of weights this small beside the weights themselves is a cancelled sum, not a divisor.
_CANCELLED = 1e-8


def normalized(settings: Settings) -> list[float]:
    """Return the weights, divided by their sum when ``normalize`` is true."""
    weights = settings.of_models("weight")
    if not settings.shared["normalize"]:
        return weights
    total = sum(weights)
    return [weight / total for weight in weights]


def check_weights(settings: Settings) -> str | None:
    """Return what is wrong with the weights, or None."""
    weights = settings.of_models("weight")
    if not settings.shared["normalize"]:
        return None
    if not np.isfinite(sum(weights)):
        return (
            f"the sum of the weights {', '.join(f'{weight:g}' for weight in weights)} overflows, so"
            " they cannot be normalised; give smaller weights"
        )
    if abs(sum(weights)) > _CANCELLED * sum(abs(weight) for weight in weights):
        return None
    return (
        f"the weights {', '.join(f'{weight:g}' for weight in weights)} sum to zero, so they cannot"
        " be normalised; change a weight or set normalize: false"
    )


def mix_tile(tile: Tile, coefficients: list[float], base: Array | None) -> None:
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

METHODS = (LINEAR, TASK_ARITHMETIC)

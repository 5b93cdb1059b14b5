"""Merge methods of sparse task vectors and an election of signs: TIES, DARE, DELLA, breadcrumbs, SCE."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Literal

from weightshare.merging.elements import added
from weightshare.merging.linear import WEIGHT, check_weights, mix_tile, normalized
from weightshare.merging.method import Method, Parameter, Pass, Settings, Survey, Tensor, Tile
from weightshare.merging.selection import Cut, find_cuts, first_digits, ranking_bytes, refine_cuts
from weightshare.merging.sparsity import (
    ALL,
    NONE,
    Mask,
    Sparse,
    by_band,
    by_chance,
    by_cut,
    by_rank,
    chunk_of,
    is_wide,
    magnitudes,
    may_hold,
    norms,
    rescaled,
    sum_tile,
    total_norms,
)

Trim = Literal["magnitude", "band", "random", "ranked"]

# Sums of weights of both signs this small beside the weights are rounding errors, in float32.
_ROUNDING = 2.0**-22
# Sums of squares and of weights that SCE does not divide by.
_SCE_LEAST = 1e-6

DENSITY = Parameter(
    "density", "share of the task vector that is kept", 1.0, per_model=True, low=0.0, high=1.0
)
GAMMA = Parameter(
    "gamma", "share of the greatest that is dropped", 0.01, per_model=True, low=0.0, high=1.0
)
EPSILON = Parameter(
    "epsilon",
    "how far the chance of the greatest is above the density, and of the least below",
    0.15,
    per_model=True,
    low=0.0,
    high=1.0,
)
INT8_MASK = Parameter("int8_mask", "accepted, without effect", default=False, kind="bool")
LAMBDA = Parameter("lambda", "strength of the summed task vectors", default=1.0)


@dataclass(frozen=True)
class Recipe:
    """What one of the methods does to task vectors.

    Attributes
    ----------
    trim : {"magnitude", "band", "random", "ranked"}
        By what elements are dropped.
    elect : bool
        Whether only elements of the elected sign are summed.
    """

    trim: Trim
    elect: bool

    def survey(self, tensor: Tensor) -> Survey:
        """Find the masks of a tensor and their scales."""
        masks = yield from _trimmed(self.trim, tensor)
        chunk = chunk_of(tensor, self.trim == "ranked")
        sparse = Sparse(tuple(masks), (1.0,) * len(masks), chunk)
        chosen = [j for j, mask in enumerate(masks) if mask.drops]
        if tensor.settings.shared["rescale"] and chosen:
            hold = may_hold(sparse, chosen, tensor.size)
            sparse = rescaled(sparse, chosen, (yield norms(sparse, chosen, 1, hold)))
        return sparse

    def unit(self, tensor: Tensor) -> int:
        """Return what tiles are multiples of."""
        return chunk_of(tensor, self.trim == "ranked")

    def scratch(self, tensor: Tensor) -> int:
        """Return the bytes that ranking takes, of a row or of the whole tensor."""
        if self.trim == "random":
            return 0
        if self.trim != "ranked":
            return ranking_bytes(tensor.size)
        # Of each element its key and those that are sorted, bins, orders, ranks, words and masks.
        key = 8 if is_wide(tensor) else 4
        return min(tensor.size, max(1, tensor.row)) * (26 + 2 * key + len(tensor.dtypes))

    def combine(self, tile: Tile, sparse: Sparse) -> None:
        """Write the merged tile."""
        settings = tile.settings
        strength = float(settings.shared["lambda"])
        weights = settings.of_models("weight") if self.elect else normalized(settings)
        factors = [w * scale for w, scale in zip(weights, sparse.scales, strict=True)]
        if not self.elect:
            if any(mask.drops for mask in sparse.masks):
                sum_tile(tile, sparse, coefficients=factors, strength=strength)
            else:
                kept = zip(factors, sparse.masks, strict=True)
                mix_tile(tile, [strength * f * (mask == ALL) for f, mask in kept], tile.base)
            return
        mixed = min(weights) < 0 < max(weights)
        sum_tile(
            tile,
            sparse,
            coefficients=factors,
            votes=factors,
            weights=weights if settings.shared["normalize"] else [],
            tiny=_ROUNDING * added(abs(weight) for weight in weights) if mixed else 0.0,
            strength=strength,
        )

    def check(self, settings: Settings) -> str | None:
        """Return what is wrong with the values together, or None."""
        if self.trim == "ranked":
            for values in settings.per_model:
                density, epsilon = values["density"], values["epsilon"]
                if 0 < density < 1 and (density <= epsilon or density + epsilon >= 1):
                    return (
                        f"density {density:g} with epsilon {epsilon:g} gives chances from"
                        f" {density - epsilon:g} to {density + epsilon:g}, expected them between 0"
                        " and 1; choose a smaller epsilon"
                    )
        return None if self.elect else check_weights(settings)


def _kept(density: float, size: int) -> int:
    """Return how many elements a density keeps."""
    return max(1, int(density * size))


def _trimmed(trim: Trim, tensor: Tensor) -> Generator[Pass, Any, list[Mask]]:
    """Return the mask of each model."""
    masks: list[Mask] = []
    ranks: dict[int, tuple[int, int]] = {}
    for j, values in enumerate(tensor.settings.per_model):
        density = values["density"]
        if density == 0 or values["weight"] == 0:
            masks.append(NONE)
        elif density >= 1:
            masks.append(ALL)
        elif trim == "random":
            masks.append(by_chance(tensor, j, density))
        elif trim == "ranked":
            masks.append(by_rank(tensor, j, density, values["epsilon"]))
        else:
            kept = _kept(density, tensor.size)
            top = int(values["gamma"] * tensor.size) if trim == "band" else 0
            ranks[j] = (min(top, tensor.size - kept), min(top + kept, tensor.size))
            masks.append(ALL)
    if ranks:
        yield from _cut_ranks(tensor, masks, ranks)
    return masks


def _cut_ranks(
    tensor: Tensor, masks: list[Mask], ranks: dict[int, tuple[int, int]]
) -> Generator[Pass, Any, None]:
    """Set the masks that keep the ranks between two counts of the greatest elements."""
    wanted = [(j, k) for j, pair in ranks.items() for k in pair if 0 < k < tensor.size]
    found = dict(zip(wanted, (yield from find_cuts(magnitudes(tensor), wanted)), strict=True))
    for j, (top, low) in ranks.items():
        lower = found.get((j, low), Cut(0, tensor.size))
        if top > 0:
            masks[j] = by_band(lower, found[j, top])
        elif low < tensor.size:
            masks[j] = by_cut(lower)


def _survey_sce(tensor: Tensor) -> Survey:
    """Find the elements that vary most over the models, and the weights of the models."""
    n = len(tensor.settings.per_model)
    mask = yield from _most_varied(tensor, tensor.settings.shared["select_topk"])
    sparse = Sparse((mask,) * n, (1.0 / n,) * n, chunk_of(tensor, False))
    if mask == NONE:
        return sparse
    _, squares = total_norms((yield norms(sparse, range(n), 2)))
    means = [square / tensor.size for square in squares]
    total = added(means)
    if abs(total) < _SCE_LEAST:
        return sparse
    return replace(sparse, scales=tuple(mean / total for mean in means))


def _most_varied(tensor: Tensor, share: float) -> Generator[Pass, Any, Mask]:
    if share >= 1:
        return ALL
    ranking = magnitudes(tensor, "variance")
    counts = yield first_digits(ranking)
    kept = int((tensor.size - int(counts[0][-1])) * share)
    if kept == 0:
        return NONE
    cut = (yield from refine_cuts(ranking, counts, [(0, kept)]))[0]
    return by_cut(cut, "variance")


def _combine_sce(tile: Tile, sparse: Sparse) -> None:
    weights = list(sparse.scales)
    votes = [1.0] * len(weights)
    least = {"tiny": _SCE_LEAST, "instead": _SCE_LEAST}
    sum_tile(tile, sparse, coefficients=weights, votes=votes, weights=weights, **least)


def _method(
    name: str,
    recipe: Recipe,
    summary: str,
    source: str,
    *extra: Parameter,
    normalize: bool = False,
    rescale: bool = False,
    differs: str = "",
) -> Method:
    return Method(
        name=name,
        summary=summary,
        source=source,
        parameters=(
            WEIGHT,
            DENSITY,
            *extra,
            Parameter(
                "normalize", "divide by the sum of the weights", default=normalize, kind="bool"
            ),
            Parameter(
                "rescale", "scale what is kept to the L1 norm before", default=rescale, kind="bool"
            ),
            LAMBDA,
            INT8_MASK,
        ),
        combine=recipe.combine,
        check=recipe.check,
        base="required",
        survey=recipe.survey,
        unit=recipe.unit,
        scratch=recipe.scratch,
        differs=differs,
    )


_ELECTED = "base + lambda * sum of weight_i m_i t_i over those of the elected sign"
_SUMMED = "base + lambda * sum of weight_i m_i t_i"
_TIES = "TIES-Merging, Yadav et al. 2023, arXiv:2306.01708"
_DARE = "DARE, Yu et al. 2024, arXiv:2311.03099"
_BREADCRUMBS = "Model Breadcrumbs, Davari and Belilovsky 2023, arXiv:2312.06795"
_DELLA = "DELLA-Merging, Deep et al. 2024, arXiv:2406.11617"
_BY_PLACE = "Of equal magnitudes at the threshold the first are kept, not arbitrary ones"
_BY_SEED = (
    "What is dropped depends on the seed, the tensor's name and the model alone, not on the order"
    " of the work"
)
_ROWS = "; rows are the last axis, whatever the number of axes, and ranks are exact for bfloat16"

METHODS: tuple[Method, ...] = (
    _method(
        "ties",
        Recipe("magnitude", elect=True),
        f"{_ELECTED}; m_i keeps the density_i of t_i = x_i - base that is greatest",
        _TIES,
        normalize=True,
        differs=f"{_BY_PLACE}; density 0 keeps nothing.",
    ),
    _method(
        "dare_linear",
        Recipe("random", elect=False),
        f"{_SUMMED}; m_i keeps each element with the chance density_i",
        _DARE,
        rescale=True,
        differs=f"{_BY_SEED}.",
    ),
    _method(
        "dare_ties",
        Recipe("random", elect=True),
        f"{_ELECTED}; m_i keeps each element with the chance density_i",
        _DARE,
        rescale=True,
        differs=f"{_BY_SEED}.",
    ),
    _method(
        "breadcrumbs",
        Recipe("band", elect=False),
        f"{_SUMMED}; m_i keeps density_i of the elements, below the gamma_i that is greatest",
        _BREADCRUMBS,
        GAMMA,
        differs=f"{_BY_PLACE}; a tensor of few elements keeps at least one.",
    ),
    _method(
        "breadcrumbs_ties",
        Recipe("band", elect=True),
        f"{_ELECTED}; m_i keeps density_i of the elements, below the gamma_i that is greatest",
        _BREADCRUMBS,
        GAMMA,
        differs=f"{_BY_PLACE}; a tensor of few elements keeps at least one.",
    ),
    _method(
        "della",
        Recipe("ranked", elect=True),
        f"{_ELECTED}; m_i keeps with a chance from density_i - epsilon_i to density_i + epsilon_i"
        " that grows with the rank of the magnitude in its row",
        _DELLA,
        EPSILON,
        normalize=True,
        rescale=True,
        differs=f"{_BY_SEED}{_ROWS}, and rows of one element are kept with the chance density.",
    ),
    _method(
        "della_linear",
        Recipe("ranked", elect=False),
        f"{_SUMMED}; m_i keeps with a chance from density_i - epsilon_i to density_i + epsilon_i"
        " that grows with the rank of the magnitude in its row",
        _DELLA,
        EPSILON,
        rescale=True,
        differs=f"{_BY_SEED}{_ROWS}, and rows of one element are kept with the chance density.",
    ),
    Method(
        name="sce",
        summary="base + sum of o_i m_i t_i / sum of o_i m_i over those of the elected sign; o_i is"
        " the mean square of t_i = x_i - base, where the variance over the models is greatest",
        source="FuseChat, Wan et al. 2024, arXiv:2408.07990",
        parameters=(
            Parameter(
                "select_topk", "share of the elements that vary, kept", 1.0, low=0.0, high=1.0
            ),
            INT8_MASK,
        ),
        combine=_combine_sce,
        base="required",
        survey=_survey_sce,
        unit=lambda tensor: chunk_of(tensor, False),
        scratch=lambda tensor: ranking_bytes(tensor.size),
        differs="The shape stays when nothing varies; of equal variances the first are kept.",
    ),
)

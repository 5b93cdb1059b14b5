"""Quantised models: 8-bit floats are made float32 while they are read, all others are refused.

Sources: ``<weight>_scale_inv`` of DeepSeek-V3 (arXiv:2412.19437, blocks of 128 x 128),
``<weight>_scale`` of compressed-tensors, FBGEMM and ModelOpt, ``scale_weight`` of ComfyUI. Each is
what a code is multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weightshare.checkpoint import Checkpoint, TensorInfo
from weightshare.merging.plan import Source
from weightshare.merging.scaled_view import ScaledBlocksView
from weightshare.recipes.listing import listed
from weightshare.recipes.packed import packed_problem

# What the rule of the output's dtype takes an 8-bit float for.
TAKEN_FOR = "BF16"
_EIGHT_BIT = frozenset(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"))
_SCALE_DTYPES = frozenset(("F16", "BF16", "F32", "F64", "F8_E8M0"))
_CONFIG_KEYS = ("quantization_config", "compression_config")
_MARKER = "scaled_fp8"
# Scales of activations and caches, which serve only the quantised model while it runs.
_RUNNING = (
    *("input_scale", "activation_scale", "output_scale", "scale_input", "input_scale_ub"),
    *("activation_scale_ub", "k_scale", "v_scale", "q_scale", "prob_scale"),
)
_USUAL_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Scaled:
    """Where the scales of a weight are: their tensor, its shape with all axes, a block's size."""

    scale: TensorInfo | None = None
    shape: tuple[int, ...] = ()
    block: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Quantised:
    """The 8-bit floats of a model.

    Attributes
    ----------
    weights : mapping of str to Scaled
        By name.
    hidden : frozenset of str
        Tensors that serve only them, and are none of a merged model.
    warnings : tuple of str
        What is probably not meant.
    """

    weights: Mapping[str, Scaled] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()

    def info(self, info: TensorInfo) -> TensorInfo:
        """Return what a tensor is to the rule of the output's dtype."""
        if info.name not in self.weights:
            return info
        return replace(info, dtype=TAKEN_FOR)

    def source(self, index: int, info: TensorInfo) -> Source:
        """Return how the plan's model of that place reads a tensor of its file."""
        plain, found = Source(index, info.name, info.dtype), self.weights.get(info.name)
        if found is None:
            return plain
        scale = found.scale
        beside = None if scale is None else Source(index, scale.name, scale.dtype)
        view = ScaledBlocksView(plain, beside, info.shape, found.shape, found.block)
        return Source(index, info.name, "F32", view)


def without_quantisation(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that no longer says that the model is quantised."""
    nested = {
        key: without_quantisation(value) if _is_nested(key, value) else value
        for key, value in config.items()
    }
    return {key: value for key, value in nested.items() if key not in _CONFIG_KEYS}


def read_quantised(
    checkpoint: Checkpoint, config: Mapping[str, Any] | None, problems: list[str]
) -> Quantised:
    """Tell whether a model is quantised, and how its weights are made floats again.

    8-bit floats without scales stand for themselves where nothing says that they are scaled, as in
    files that were only cast.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    config : mapping or None
        The contents of its ``config.json``.
    problems : list of str
        Takes why it cannot be merged: clauses that begin with "it".

    Returns
    -------
    Quantised
        Empty for a model that is not quantised.
    """
    said = next(_said(config or {}), None)
    method = str((said or {}).get("quant_method", "")).lower()
    packed = packed_problem(checkpoint, method)
    if packed is not None:
        problems.append(packed)
        return Quantised()
    eight_bit = (name for name in checkpoint if checkpoint.info(name).dtype in _EIGHT_BIT)
    names = [name for name in eight_bit if name != _MARKER]
    if not names:
        return Quantised(warnings=_unused(said, method))
    return _Matching(checkpoint, said, names).result(problems)


def _is_nested(key: str, value: object) -> bool:
    return isinstance(value, dict) and key.endswith("_config") and key not in _CONFIG_KEYS


def _said(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key in _CONFIG_KEYS:
        if isinstance(config.get(key), dict) and config[key]:
            yield config[key]
    for key, value in config.items():
        if _is_nested(key, value):
            yield from _said(value)


def _unused(said: Mapping[str, Any] | None, method: str) -> tuple[str, ...]:
    if said is None:
        return ()
    kind = f" ({method})" if method else ""
    return (f"its quantization_config{kind} is left out: no weight of its files is quantised",)


class _Matching:
    """Finds the scales of every 8-bit float of a model."""

    def __init__(
        self, checkpoint: Checkpoint, said: Mapping[str, Any] | None, names: Sequence[str]
    ) -> None:
        self._checkpoint = checkpoint
        self._said = said
        self._names = names
        self._blocks = list(_blocks_said(said or {}))
        self._bare: list[str] = []
        self._wrong: list[str] = []

    def result(self, problems: list[str]) -> Quantised:
        """Return what was found, or tell what is wrong."""
        weights = {name: self._scaled(name) for name in self._names}
        scales = {found.scale.name for found in weights.values() if found.scale is not None}
        # Beside weights that have no scales the same names are those of tensors like all others.
        running = {name for name in self._checkpoint if scales and self._is_of_running(name)}
        marked = {name for name in self._checkpoint if name == _MARKER}
        if self._wrong:
            problems.append(f"it has scales that do not fit: {listed(self._wrong)}")
        if self._bare and (self._said is not None or marked or scales):
            problems.append(
                f"it has 8-bit floats without their scales: {listed(self._bare)}; download all of"
                " its files again, or merge the model that it was made from"
            )
        warnings = []
        if self._bare:
            warnings.append(
                "it has 8-bit floats and no scales, which were taken for the weights themselves:"
                f" {listed(self._bare)}"
            )
        if running:
            told = listed(sorted(running))
            warnings.append(f"scales that only its quantised form needs are left out: {told}")
        return Quantised(weights, frozenset(scales | running | marked), tuple(warnings))

    def _is_of_running(self, name: str) -> bool:
        if name.rpartition(".")[2] not in _RUNNING:
            return False
        return self._checkpoint.info(name).dtype in _SCALE_DTYPES

    def _scaled(self, name: str) -> Scaled:
        stem = name.removesuffix(".weight")
        tried = [f"{name}_scale_inv", f"{name}_scale"]
        if stem != name:
            tried += [f"{stem}.scale_weight", f"{stem}.scale"]
        for scale in tried:
            if scale in self._checkpoint:
                return self._fitted(name, self._checkpoint.info(scale))
        self._bare.append(name)
        return Scaled()

    def _fitted(self, name: str, scale: TensorInfo) -> Scaled:
        shape = self._checkpoint.info(name).shape
        if scale.dtype not in _SCALE_DTYPES:
            self._wrong.append(f"{scale.name} is {scale.dtype}")
            return Scaled(scale)
        if math.prod(scale.shape) == 1:
            return Scaled(scale)
        # Scales with fewer axes are of whole rows, or of whole experts.
        full = (*scale.shape, *(1,) * (len(shape) - len(scale.shape)))
        block = self._block(shape, full)
        if block is None:
            self._wrong.append(
                f"{scale.name} {list(scale.shape)} of a weight of shape {list(shape)}"
            )
            return Scaled(scale)
        return Scaled(scale, full, block)

    def _block(self, shape: Sequence[int], scales: Sequence[int]) -> tuple[int, ...] | None:
        """Return the sides of a block, or None when no block gives so many scales."""
        if len(shape) != len(scales):
            return None
        found = []
        for axis, (length, count) in enumerate(zip(shape, scales, strict=True)):
            last = axis - len(shape)
            said = [block[last] for block in self._blocks if last >= -len(block)]
            tried = [length] if count == 1 else [1] if count == length else [*said, _USUAL_BLOCK]
            side = next((side for side in tried if -(-length // max(1, side)) == count), None)
            if side is None:
                return None
            found.append(max(1, side))
        return tuple(found)


def _blocks_said(said: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
    """Yield the sides of blocks that a configuration gives, in either way to write them."""
    groups = said.get("config_groups")
    written = [said.get("weight_block_size")]
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            written.append(weights.get("block_structure"))
            size = weights.get("group_size")
            written.append([1, size] if isinstance(size, int) else None)
    for sides in written:
        if isinstance(sides, str):
            sides = [int(side) for side in sides.split("x") if side.isdecimal()][:2]
        if isinstance(sides, list) and sides and all(type(side) is int for side in sides):
            yield tuple(side for side in sides if side > 0)

"""The configuration of a LoRA adapter: ``adapter_config.json`` as the library PEFT writes it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightshare.checkpoint.codes import shown
from weightshare.recipes.configuration import read_configuration

_PLAIN = re.compile(r"[\w.\-]+")
# What these patterns need; nested or stacked repeats could make a search run for ever.
_LONGEST_PATTERN, _MOST_REPEATS = 500, 4
_NESTED_REPEAT = re.compile(r"\)\s*[*+{]")
# Ways to begin that leave the model's own weights as they are.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
_DEFAULT_RANK = _DEFAULT_ALPHA = 8


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of an adapter's configuration its sum needs.

    Attributes
    ----------
    alpha : float
        ``lora_alpha``.
    alphas : mapping of str to float
        ``alpha_pattern``: other values, by the names, or patterns, of modules.
    stabilised : bool
        ``use_rslora``: the product is divided by the root of the rank, not by the rank.
    transposed : bool
        ``fan_in_fan_out``: weights are stored as (inputs, outputs).
    model : str
        The model that it was made for, as it says.
    """

    alpha: float = _DEFAULT_ALPHA
    alphas: Mapping[str, float] | None = None
    stabilised: bool = False
    transposed: bool = False
    model: str = ""

    @property
    def of_model(self) -> str:
        """The model that it was made for, in brackets after a blank, or nothing."""
        return f" (it was made for {shown(self.model)})" if self.model else ""

    def scaling(self, module: str, rank: int) -> float:
        """Return the factor of B A for a module.

        Parameters
        ----------
        module : str
            Its name in the adapter.
        rank : int
            Rows of its A; of rank 0 nothing is added.

        Examples
        --------
        >>> AdapterConfig(16).scaling("q_proj", 8), AdapterConfig(16, stabilised=True).scaling("q", 4)
        (2.0, 8.0)
        """
        alpha = self.alpha
        for pattern, value in (self.alphas or {}).items():
            if _is_of(pattern, module):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.stabilised else rank) if rank else 0.0


def _is_of(pattern: str, module: str) -> bool:
    if _PLAIN.fullmatch(pattern):
        return module == pattern or module.endswith(f".{pattern}")
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module) is not None


def read_adapter_config(file: Path) -> AdapterConfig:
    """Read an adapter's configuration.

    Parameters
    ----------
    file : Path
        ``adapter_config.json``.

    Returns
    -------
    AdapterConfig

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is no configuration, or of an adapter that is not a plain low-rank sum.
    """
    found = read_configuration(file)
    reason = _unlike(found)
    if reason is not None:
        raise ValueError(
            f"{file}: {reason}, which is not supported; merge the adapter into its model with PEFT"
            " (merge_and_unload) and name the result instead"
        )
    patterns = found.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{file}: alpha_pattern: expected an object, got {patterns!r:.80}")
    for pattern in patterns:
        _check_pattern(pattern, file)
    model = found.get("base_model_name_or_path")
    return AdapterConfig(
        alpha=_number(found.get("lora_alpha", _DEFAULT_ALPHA), "lora_alpha", file),
        alphas={key: _number(value, "alpha_pattern", file) for key, value in patterns.items()},
        stabilised=_flag(found, "use_rslora", file),
        transposed=_flag(found, "fan_in_fan_out", file),
        model=model if isinstance(model, str) else "",
    )


def _unlike(found: Mapping[str, Any]) -> str | None:
    """Return in which way it is more than ``W + scaling * B A``, or None."""
    kind = found.get("peft_type", "LORA")
    if str(kind).upper() != "LORA":
        return f"it is an adapter of the kind {shown(str(kind))}, not LORA"
    if found.get("use_dora"):
        return "it is a DoRA adapter (use_dora)"
    for key in ("lora_bias", "layer_replication", "target_parameters", "trainable_token_indices"):
        if found.get(key):
            return f"it uses {key}"
    beginning = found.get("init_lora_weights", True)
    if not isinstance(beginning, bool | None | str) or beginning not in _PLAIN_BEGINNINGS:
        return (
            f"init_lora_weights is {shown(str(beginning))}, so the adapter belongs to weights that"
            " PEFT changes before it adds them"
        )
    return None


def _check_pattern(pattern: str, file: Path) -> None:
    if _PLAIN.fullmatch(pattern):
        return
    repeats = sum(pattern.count(sign) for sign in "*+{")
    if len(pattern) > _LONGEST_PATTERN or repeats > _MOST_REPEATS or _NESTED_REPEAT.search(pattern):
        raise ValueError(
            f"{file}: alpha_pattern: {shown(pattern)} is too involved; name the modules instead"
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{file}: alpha_pattern: {shown(pattern)}: {error}") from None


def _number(value: object, key: str, file: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{file}: {key}: expected a number, got {value!r:.80}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{file}: {key}: expected a finite number, got {value!r:.80}")
    return number


def _flag(found: Mapping[str, Any], key: str, file: Path) -> bool:
    value = found.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{file}: {key}: expected true or false, got {value!r:.80}")
    return bool(value)

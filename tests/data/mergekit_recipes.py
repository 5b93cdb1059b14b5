"""How the recipes of the golden outputs are written down.

A model is named MODELS/name; the folder is put in when a recipe is run.
"""

from __future__ import annotations

from typing import Any

Recipe = dict[str, Any]
LONG = {"dtype": "float32"}
BRIEF = {"dtype": "bfloat16"}


def model(name: str, **parameters: Any) -> dict[str, Any]:
    """One entry of models."""
    entry: dict[str, Any] = {"model": f"MODELS/{name}"}
    return {**entry, "parameters": parameters} if parameters else entry


def source(name: str, first: int, end: int, **parameters: Any) -> dict[str, Any]:
    """One source of a slice."""
    return {**model(name, **parameters), "layer_range": [first, end]}


def recipe(
    method: str, *models: dict[str, Any], base: str | None = None, **keys: Any
) -> dict[str, Any]:
    """A recipe over whole models."""
    made: Recipe = {"merge_method": method, "models": list(models)}
    if base is not None:
        made["base_model"] = f"MODELS/{base}"
    return {**made, **keys}


def weighted(code: int = 32) -> list[dict[str, Any]]:
    """Three fine-tunes of different weights."""
    weights = {"a": 0.5, "b": 0.3, "c": 0.4}
    return [model(f"{name}{code}", weight=weight) for name, weight in weights.items()]

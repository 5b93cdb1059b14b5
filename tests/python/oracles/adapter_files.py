"""LoRA adapters as PEFT writes them, and what they add to a model, in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import weightshare as ws

PREFIX = "base_model.model."
Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
EMBED = "model.embed_tokens"
SHAPES = {f"{Q}.weight": (8, 6), f"{DOWN}.weight": (6, 10), f"{EMBED}.weight": (20, 6)}
SHAPES |= {"model.norm.weight": (6,), "lm_head.weight": (20, 6)}


def drawn(shapes: Mapping[str, tuple[int, ...]], dtype: Any, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def low_rank(
    module: str, out: int, into: int, rank: int, dtype: Any = np.float32
) -> dict[str, Any]:
    """A linear layer's tensors in PEFT's names."""
    a, b = f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"
    return drawn({a: (rank, into), b: (out, rank)}, dtype, seed=len(module) + rank)


def write_adapter(folder: Path, tensors: Mapping[str, Any], **config: Any) -> Path:
    folder.mkdir()
    ws.save_checkpoint(folder / "adapter_model.safetensors", tensors)
    stated = {"peft_type": "LORA", "r": 2, "lora_alpha": 16} | config
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    return folder


def product(tensors: Mapping[str, Any], module: str) -> Any:
    """B A in float64, from the files' tensors."""
    first, second = (tensors[f"{PREFIX}{module}.lora_{x}.weight"] for x in "BA")
    return first.astype(np.float64) @ second.astype(np.float64)

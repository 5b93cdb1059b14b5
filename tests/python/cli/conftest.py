"""Small checkpoints and recipes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws

MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write a model folder below the test's folder; return its path."""

    def make(
        name: str,
        tensors: Mapping[str, Any] | None = None,
        *,
        config: dict[str, Any] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Path:
        folder = tmp_path / name
        ws.save_checkpoint(folder, tensors or {"w": np.ones((2, 3), np.float32)})
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        for file, text in (files or {}).items():
            (folder / file).write_text(text)
        return folder

    return make


@pytest.fixture
def linear() -> Callable[..., dict[str, Any]]:
    """Return a linear recipe of equal weights over the given paths."""

    def recipe(*paths: Path, **keys: Any) -> dict[str, Any]:
        models = [{"model": str(path), "parameters": {"weight": 1.0}} for path in paths]
        return {"merge_method": "linear", "models": models, **keys}

    return recipe

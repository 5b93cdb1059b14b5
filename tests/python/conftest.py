"""What every test run says about itself, the profiles of Hypothesis, and small checkpoints and recipes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

import weightshare as ws

MakeModel = Callable[..., Path]

hypothesis.settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("nightly" if os.environ.get("WEIGHTSHARE_NIGHTLY") else "ci")


def pytest_report_header() -> list[str]:
    from weightshare._core.versions import versions

    return [f"{name}: {value}" for name, value in versions().items()]


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


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

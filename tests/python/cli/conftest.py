"""Running the command line inside the test's process, and a recipe of two small models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from weightshare.cli import main


@dataclass
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the command line inside this process."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Done(caught.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def recipe(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A recipe of two small models."""
    tensors = [{"w": np.float32([[1, 2], [3, 4]]) * k, "ids": np.arange(2)} for k in (1, 3)]
    paths = [make_model(name, t) for name, t in zip("ab", tensors, strict=True)]
    path = tmp_path / "recipe.yml"
    models = [{"model": str(p), "parameters": {"weight": 1}} for p in paths]
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return path

"""Fixtures of the checkpoint room: crafted files, and the folder's state for fault tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from weightshare.checkpoint import save_checkpoint

NIGHTLY = os.environ.get("WEIGHTSHARE_NIGHTLY") == "1"

settings.register_profile(
    "checkpoint",
    max_examples=2000 if NIGHTLY else 60,
    deadline=None,
    derandomize=not NIGHTLY,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("checkpoint")


@pytest.fixture(scope="session")
def nightly() -> bool:
    """Whether the long form of the fault loops is wanted (WEIGHTSHARE_NIGHTLY=1)."""
    return NIGHTLY


@pytest.fixture(scope="session")
def craft() -> Callable[..., bytes]:
    """A function that makes a safetensors file from a header (object, text or bytes) and data."""

    def make(header: object, data: bytes | int = b"", length: int | None = None) -> bytes:
        if not isinstance(header, str | bytes):
            header = json.dumps(header)
        raw = header.encode() if isinstance(header, str) else header
        body = bytes(data) if isinstance(data, int) else data
        stated = len(raw) if length is None else length
        return stated.to_bytes(8, "little") + raw + body

    return make


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes bytes to a new file of the test's folder and returns its path."""

    def write(content: bytes, name: str = "m.safetensors") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def model() -> dict[str, np.ndarray]:
    """Four small tensors of three types."""
    rng = np.random.default_rng(7)
    return {
        "b.weight": rng.standard_normal((5, 4)).astype(np.float32),
        "a.weight": rng.standard_normal((3, 4)).astype(np.float16),
        "a.bias": rng.standard_normal(4).astype(np.float32),
        "steps": np.array(12, np.int64),
    }


@pytest.fixture
def saved(tmp_path: Path, model: dict[str, np.ndarray]) -> Path:
    """A file with the small model."""
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, model, metadata={"by": "test"})
    return path


@pytest.fixture
def sharded(tmp_path: Path, model: dict[str, np.ndarray]) -> Path:
    """A folder with the small model in three shards."""
    path = tmp_path / "sharded"
    save_checkpoint(path, model, max_shard_size=40, metadata={"by": "test"})
    assert len(list(path.glob("*.safetensors"))) == 3
    return path

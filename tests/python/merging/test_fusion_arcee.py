"""Arcee fusion: the threshold over all elements, the elements kept, and tiles."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from elementwise import fusion_importance
from tiling import fixed_array, in_tiles, settings_of
from weightshare import _core
from weightshare.merging import fusion

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SHAPES = [(), (1,), (2,), (40,), (9, 1), (1, 9), (30, 41), (5, 7, 11)]
ORACLES = Path(__file__).resolve().parents[1] / "oracles"
GOLDEN = "cbda32637260742a"


def pair(shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    base = fixed_array(shape, np.float64, 1)
    return (base + fixed_array(shape, np.float64, 2, 0.2) ** 3 * 9).astype(dtype), base.astype(
        dtype
    )


@pytest.mark.parametrize("scale", [1.0, 0.05])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_important_is_the_models_and_the_rest_the_bases(
    shape: tuple[int, ...], dtype: Any, scale: float
) -> None:
    """Exactly their elements, by the oracle's importance; those at the threshold may go either way."""
    model, base = ((each * scale).astype(dtype) for each in pair(shape, dtype))
    found = ws.merge([model], method="arcee_fusion", base=base)
    importance, threshold = fusion_importance(model.astype(np.float64), base.astype(np.float64))
    assert (found.dtype, found.shape) == (dtype, shape)
    clear = np.abs(importance - threshold) > 1e-5 * np.abs(threshold)
    expected = np.where(importance >= threshold, model, base)
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert np.all((found == model) | (found == base))


def test_a_few_elements_are_kept() -> None:
    """Of small random changes some percent, as the method is meant."""
    model, base = pair((200, 300), np.float32)
    kept = ws.merge([model], method="arcee_fusion", base=base) != base
    assert 0.02 < kept.mean() < 0.3


def test_neither_tiles_nor_threads_nor_the_size_of_pieces_change_a_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor rows that are cut into pieces because they are long."""
    method = ws.methods()["arcee_fusion"]
    for shape in [(300, 1000), (20, 70, 30), (50_000,)]:
        model, base = pair(shape, ml_dtypes.bfloat16)
        whole = ws.merge([model], method="arcee_fusion", base=base).tobytes()
        threaded = ws.merge([model], method="arcee_fusion", base=base, threads=3)
        assert threaded.tobytes() == whole
        settings = settings_of(method, 1, {})
        for scratch in (1 << 20, 7000, 333):
            monkeypatch.setattr(fusion, "_SCRATCH", scratch)
            for tiles in (1, 4):
                found, _ = in_tiles(method, [model], base, settings, tiles)
                assert found.tobytes() == whole


def test_quartiles_are_exact_where_importances_are_equal() -> None:
    """One row, so importances are a multiple of the differences: half of them equal."""
    base = np.zeros(101, np.float32)
    model = np.zeros(101, np.float32)
    model[50:] = 0.5
    model[90:] = 4.0
    found = ws.merge([model], method="arcee_fusion", base=base)
    # Ranks 25, 50 and 75 are 0, 0.5 and 0.5: the threshold is 0.5 + 1.5 * 0.5 times the number.
    np.testing.assert_array_equal(found != 0, model == 4.0)


def test_nan_and_infinity_are_not_hidden() -> None:
    """A row whose divergence is not known keeps the model; other rows are judged as ever."""
    for bad in (np.nan, np.inf):
        model, base = pair((30, 41), np.float32)
        model[3, 4] = bad
        found = ws.merge([model], method="arcee_fusion", base=base)
        np.testing.assert_array_equal(found[3], model[3])
        assert np.isfinite(np.delete(found, 3, axis=0)).all()


CODE = f"""
import sys, hashlib
sys.path[:0] = [{str(ORACLES)!r}, {str(Path(__file__).parent)!r}]
import test_fusion_arcee as tests
print(tests.digest())
"""


def digest() -> str:
    found = hashlib.sha256()
    for dtype in DTYPES:
        for shape in [(67, 70), (1027,), (3, 20_000)]:
            for scale in (
                1.0,
                2.0**-4,
            ):  # the exponentials of small numbers have a way of their own
                model, base = ((each * scale).astype(dtype) for each in pair(shape, dtype))
                merged = ws.merge([model], method="arcee_fusion", base=base, threads=2)
                found.update(merged.tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("level", _core.cpu_probe.levels())
def test_the_bytes_are_those_of_every_machine(level: str) -> None:
    """A golden hash of inputs made from integers, at each level that runs here."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "WEIGHTSHARE_ISA": level},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == GOLDEN

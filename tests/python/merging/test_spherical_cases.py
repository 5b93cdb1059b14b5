"""The dense methods against their oracles: values, tiles, threads, instruction sets, golden bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from dense_cases import CASES, DenseCase
from tiling import fixed_array, in_tiles, settings_of
from weightshare import _core

GOLDEN = Path(__file__).with_name("golden_dense.json")
ORACLES = Path(__file__).resolve().parents[1] / "oracles"
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SHAPES = [(), (1,), (17,), (1, 9), (9, 1), (7, 13), (3, 5, 4), (130, 520)]
BY_NAME = {case.name: case for case in CASES}


def arrays_of(
    case: DenseCase, shape: tuple[int, ...], dtype: Any
) -> tuple[list[np.ndarray], np.ndarray | None]:
    base = fixed_array(shape, np.float64, 1)
    models = [
        (base + fixed_array(shape, np.float64, 2 + k, 0.25)).astype(dtype)
        for k in range(case.models)
    ]
    return models, base.astype(dtype) if case.base else None


def merged(
    case: DenseCase, models: list[np.ndarray], base: np.ndarray | None, threads: int = 1
) -> np.ndarray:
    return ws.merge(
        models, case.weights, method=case.method, base=base, threads=threads, **case.values
    )


def assert_rounded(found: np.ndarray, exact: np.ndarray, scale: float) -> None:
    """Within half a unit of the output's element and the error of the arithmetic."""
    info = ml_dtypes.finfo(found.dtype)
    work = 2.0**-47 if found.dtype == np.float64 else 2.0**-23
    bound = 0.5 * float(info.eps) * np.abs(exact) + 24 * work * scale
    bound += float(info.smallest_subnormal)
    assert np.all(np.abs(found.astype(np.float64) - exact) <= bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BY_NAME)
def test_a_method_gives_its_formula_in_every_element_and_shape(name: str, dtype: Any) -> None:
    """The error is that of one rounding and of float32 arithmetic; the dtype is the inputs'."""
    case = BY_NAME[name]
    for shape in SHAPES:
        models, base = arrays_of(case, shape, dtype)
        found = merged(case, models, base)
        wide = [model.astype(np.float64) for model in models]
        exact = case.oracle(wide, None if base is None else base.astype(np.float64))
        assert (found.dtype, found.shape) == (dtype, shape)
        assert_rounded(found, np.asarray(exact), 2.0 + float(np.max(np.abs(exact))))


@pytest.mark.parametrize("name", BY_NAME)
def test_an_empty_tensor_stays_empty(name: str) -> None:
    """No row, no column, no element: nothing to merge, and nothing wrong."""
    case = BY_NAME[name]
    for shape in [(0,), (0, 4), (4, 0)]:
        models, base = arrays_of(case, shape, np.float32)
        assert merged(case, models, base).shape == shape


@pytest.mark.parametrize("name", BY_NAME)
def test_neither_tiles_nor_threads_change_a_bit(name: str) -> None:
    """Cut at any legal places, surveyed in any order, with one to three threads: the same bytes."""
    case = BY_NAME[name]
    method = ws.methods()[case.method]
    for shape in [(300, 1000), (300_001,), (70, 1200, 3)]:
        models, base = arrays_of(case, shape, ml_dtypes.bfloat16)
        whole = merged(case, models, base).tobytes()
        assert merged(case, models, base, threads=3).tobytes() == whole
        values = {"lambda" if k == "lambda_" else k: v for k, v in case.values.items()}
        settings = settings_of(method, len(models), {"weight": case.weights, **values})
        for tiles in (2, 5):
            found, _ = in_tiles(method, models, base, settings, tiles, threads=2)
            assert found.tobytes() == whole


def test_large_tensors_are_cut() -> None:
    """What the test above compares is not one tile beside one tile."""
    for name in ("slerp 0.3", "nuslerp rows delta", "nuslerp columns whole", "ramplus_tl"):
        case = BY_NAME[name]
        method = ws.methods()[case.method]
        models, base = arrays_of(case, (300, 1000), np.float32)
        settings = settings_of(method, len(models), {"weight": case.weights, **case.values})
        assert in_tiles(method, models, base, settings, 5)[1] >= 3


GOLDEN_CODE = f"""
import sys, json
sys.path[:0] = [{str(ORACLES)!r}, {str(Path(__file__).parent)!r}]
import test_spherical_cases as tests
print(json.dumps(tests.digests()))
"""


def digests() -> dict[str, str]:
    found = {}
    for case in CASES:
        digest = hashlib.sha256()
        for dtype in DTYPES:
            for shape in [(67, 70), (1027,)]:
                digest.update(merged(case, *arrays_of(case, shape, dtype), threads=2).tobytes())
        found[case.name] = digest.hexdigest()[:16]
    return found


@pytest.mark.parametrize("level", _core.cpu_probe.levels())
def test_the_bytes_are_those_of_every_machine(level: str) -> None:
    """Golden hashes of inputs made from integers, at each instruction-set level that runs here."""
    done = subprocess.run(
        [sys.executable, "-c", GOLDEN_CODE],
        env={**os.environ, "WEIGHTSHARE_ISA": level},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(GOLDEN.read_text())

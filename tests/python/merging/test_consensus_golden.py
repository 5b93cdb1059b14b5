"""The bytes of TIES, DARE, breadcrumbs, DELLA and SCE, as committed: the same on every machine.

After a change of bytes that is meant: ``python tests/python/merging/test_consensus_golden.py`` prints
the new contents of golden_consensus.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare._core import cpu_probe

GOLDEN = Path(__file__).with_name("golden_consensus.json")
DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
METHODS = {
    "ties": {"density": 0.5},
    "dare_linear": {"density": 0.3},
    "dare_ties": {"density": 0.3},
    "breadcrumbs": {"density": 0.7, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.7, "gamma": 0.05},
    "della": {"density": 0.5, "epsilon": 0.2},
    "della_linear": {"density": 0.5, "epsilon": 0.2},
    "sce": {"select_topk": 0.3},
}
WEIGHTS = (0.7, 0.3, 0.45)


def integers(count, seed):
    """Integers of 31 bits from a multiplicative generator, in integer arithmetic alone."""
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)
    for shift in (29, 32, 31):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(0xBF58476D1CE4E5B9)
    return (state >> np.uint64(33)).astype(np.int64)


def material(shape, dtype):
    count = int(np.prod(shape))
    base = ((integers(count, 1) % 4001 - 2000) / 4096.0).reshape(shape)
    deltas = [((integers(count, k) % 401 - 200) / 8192.0).reshape(shape) for k in (2, 3, 4)]
    return [(base + delta).astype(dtype) for delta in deltas], base.astype(dtype)


def hashes():
    """The first 16 hexadecimal digits of the hash of every case's bytes."""
    found = {}
    for method, options in METHODS.items():
        weights = None if method == "sce" else WEIGHTS
        for dtype in DTYPES:
            for shape in ((150, 1003), (7,), (3, 5, 1)):
                models, base = material(shape, dtype)
                out = ws.merge(models, weights, method=method, base=base, seed=42, **options)
                digest = hashlib.sha256(np.ascontiguousarray(out).tobytes()).hexdigest()[:16]
                found[f"{method} {np.dtype(dtype)} {'x'.join(map(str, shape))}"] = digest
    return found


@pytest.mark.parametrize("level", cpu_probe.levels())
def test_the_bytes_are_those_committed_at_every_instruction_set_level(level):
    environment = {**os.environ, "WEIGHTSHARE_ISA": level}
    command = [sys.executable, str(Path(__file__).resolve())]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    print(json.dumps(hashes(), indent=1))

"""Every merge method: from file to file in tiny tiles it writes what `weightshare.merge` returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare.merging import tiles
from weightshare.merging.run import run_plan

Make = Callable[..., Path]
Arrays = dict[str, np.ndarray]
SHAPES = {"odd": (17, 13), "row": (1, 401), "column": (301, 1), "cube": (3, 7, 11), "one": (1,)}
SHAPES |= {"scalar": (), "none": (0, 5), "line": (277,), "large": (30, 101)}
# One value for each parameter that has no default.
NEEDED = {"t": 0.3, "scale": 1.5, "k": 2}


def models(count: int, dtype: Any) -> list[Arrays]:
    """Return fine-tunes of one model, with equal magnitudes among their differences."""
    generator = np.random.default_rng(5)
    base = {name: generator.normal(size=shape) for name, shape in SHAPES.items()}
    found = [
        {
            n: (a + np.round(generator.normal(size=a.shape), 1) / 8).astype(dtype)
            for n, a in base.items()
        }
        for _ in range(count - 1)
    ]
    return [*found, {name: np.asarray(array.astype(dtype)) for name, array in base.items()}]


def parameters_of(method: ws.merging.Method) -> dict[str, float]:
    return {
        p.name: NEEDED.get(p.name, 0.5)
        for p in method.parameters
        if p.required and p.kind != "checkpoint"
    }


def plan_and_held(name: str, dtype: Any, make_model: Make) -> tuple[ws.merging.MergePlan, Arrays]:
    method = ws.methods()[name]
    has_base = method.base in ("required", "joins")
    count = min(method.max_models or 3, max(method.min_models, 3))
    if method.base == "joins":
        count = max(1, count - 1)
    made = models(count + 1, dtype)
    statistics = {p.name: [{n: np.abs(np.asarray(a, np.float32)) for n, a in m.items()} for m in made[:-1]]
                  for p in method.statistics}  # fmt: skip
    given = parameters_of(method)
    entries = []
    for i, model in enumerate(made[:-1]):
        own = {k: str(make_model(f"{k}{i}", held[i])) for k, held in statistics.items()}
        entries.append({"model": str(make_model(f"m{i}", model)), "parameters": own})
    recipe: dict[str, Any] = {"merge_method": name, "models": entries, "parameters": dict(given)}
    if method.parameter("weight") is not None:
        recipe["parameters"]["weight"] = 0.7
        given.pop("weight", None)
    if has_base:
        recipe["base_model"] = str(make_model("base", made[-1]))
    weights = [0.7] * count if method.parameter("weight") is not None else None
    held = ws.merge(
        made[:-1],
        weights,
        method=name,
        base=made[-1] if has_base else None,
        seed=3,
        **{("lambda_" if k == "lambda" else k): v for k, v in (given | statistics).items()},
    )
    assert isinstance(held, dict)
    return ws.plan_merge(recipe, seed=3), held


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float64], ids=["bf16", "f64"])
@pytest.mark.parametrize("name", sorted(ws.methods()))
def test_tiny_tiles_give_the_bytes_of_the_whole(
    name: str,
    dtype: Any,
    make_model: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Streamed in tiny tiles, by three workers in middling ones, and resident in a slot."""
    plan, held = plan_and_held(name, dtype, make_model)
    floor = plan.memory_floor
    cuts = [(floor + 6000, 1, 1, 1), (floor + 10**6, 3, 9000, 9000), (None, 2, 10**7, 10**7)]
    for number, (memory, threads, tile, slot) in enumerate(cuts):
        monkeypatch.setattr(tiles, "_LARGEST_TILE", tile)
        monkeypatch.setattr(tiles, "_LARGEST_SLOT", slot)
        run_plan(plan, tmp_path / str(number), memory=memory or "512MB", threads=threads)
        with ws.open_checkpoint(tmp_path / str(number)) as merged:
            assert set(merged) == set(held)
            for tensor, array in held.items():
                assert merged[tensor].dtype == array.dtype
                assert merged[tensor].tobytes() == array.tobytes(), (tensor, number)

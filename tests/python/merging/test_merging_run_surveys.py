"""Methods that look at a tensor before they combine it: the same bytes however it is cut."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import OutputSpaceError
from weightshare.merging import registry, tiles
from weightshare.merging.method import (
    Method,
    Pass,
    Survey,
    Tensor,
    Tile,
    at_rows,
    nowhere,
)
from weightshare.merging.run import run_plan

Make = Callable[..., Path]
SHAPES = {"wide": (3, 500), "tall": (700, 7), "cube": (5, 11, 13), "line": (321,), "one": ()}
SHAPES |= {"none": (0, 4), "big": (400, 33)}


def wide(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


def rows_of(tile: Tile) -> list[np.ndarray]:
    return [wide(model).reshape(-1, tile.tensor.row) for model in tile.models]


def survey_rows(tensor: Tensor) -> Survey:
    """Pass 1: the largest element of each row; pass 2: how many exceed the mean of those."""
    seen: list[int] = []

    def fold(total: tuple[float, ...], told: tuple[int, tuple[float, ...]]) -> tuple[float, ...]:
        seen.append(told[0])
        return total + told[1]

    def look(tile: Tile) -> tuple[int, tuple[float, ...]]:
        assert tile.out.size == 0 or tile.out.size == tile.models[0].size
        # Late tiles first: their order must come from the fold.
        time.sleep(0.002 if tile.start == 0 else 0)
        return tile.start, tuple(np.abs(rows_of(tile)[0]).max(axis=1))

    largest = yield Pass(look, fold, ())
    assert seen == sorted(seen)
    limit = math.fsum(largest) / len(largest)

    def count(tile: Tile) -> int:
        return sum(int((rows > limit).sum()) for rows in rows_of(tile))

    above = yield Pass(count, lambda total, told: total + told, 0)
    return limit, above


def combine_rows(tile: Tile, found: tuple[float, int]) -> None:
    limit, above = found
    mean = sum(rows_of(tile)) / len(tile.models)
    index = np.arange(tile.start, tile.start + tile.out.size).reshape(mean.shape)
    tile.out[:] = (mean * limit + above + index).reshape(-1).astype(tile.out.dtype)


def combine_whole_tensor(tile: Tile, _: object) -> None:
    assert tile.start == 0
    assert tile.out.size == tile.tensor.size
    tile.out[:] = (wide(tile.models[0]) - wide(tile.models[1]).mean()).astype(tile.out.dtype)


ROWS = Method("toy_rows", "f", "none", (), combine_rows, survey=survey_rows, unit=at_rows)
WHOLE = Method("toy_whole", "f", "none", (), combine_whole_tensor, unit=nowhere)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods of this file in the registry."""
    for method in (ROWS, WHOLE):
        monkeypatch.setitem(registry._METHODS, method.name, method)


def models(dtype: Any) -> list[dict[str, np.ndarray]]:
    made = []
    for seed in range(2):
        generator = np.random.default_rng(seed)
        made.append({n: generator.normal(size=s).astype(dtype) for n, s in SHAPES.items()})
    return made


def plan_of(method: str, make_model: Make, dtype: Any = np.float32) -> Any:
    paths = [make_model(f"{method}-{i}", model) for i, model in enumerate(models(dtype))]
    return ws.plan_merge({"merge_method": method, "models": [{"model": str(p)} for p in paths]})


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_survey_gives_the_same_bytes_for_every_cut_and_number_of_workers(
    dtype: Any, make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resident in one slot, or streamed tile by tile and pass by pass by several threads."""
    plan = plan_of("toy_rows", make_model, dtype)
    held = ws.merge(models(dtype), method="toy_rows")
    assert isinstance(held, dict)
    found = []
    for number, (threads, slot, tile) in enumerate(
        [(1, 10**8, 10**8), (3, 10**8, 10**4), (1, 5000, 5000), (4, 7000, 7000), (2, 9000, 4000)]
    ):
        monkeypatch.setattr(tiles, "_LARGEST_SLOT", slot)
        monkeypatch.setattr(tiles, "_LARGEST_TILE", tile)
        run_plan(plan, tmp_path / str(number), threads=threads)
        found.append(weights(tmp_path / str(number)))
    assert all(other == found[0] for other in found)
    with ws.open_checkpoint(tmp_path / "0") as merged:
        for name, array in held.items():
            assert merged[name].tobytes() == array.tobytes(), name


def test_the_least_budget_is_enough_and_less_is_refused(make_model: Make, tmp_path: Path) -> None:
    """A plan tells its floor: the longest row, or the largest tensor, of every model."""
    for method, elements in (("toy_rows", 500), ("toy_whole", 400 * 33)):
        plan = plan_of(method, make_model)
        run_plan(plan, tmp_path / method, threads=8)
        floor = plan.memory_floor
        assert floor - tiles._process_bytes(plan.tensors) >= elements * 3 * 4
        run_plan(plan, tmp_path / f"{method}-small", memory=floor, threads=8)
        assert weights(tmp_path / method) == weights(tmp_path / f"{method}-small")
        with pytest.raises(OutputSpaceError, match="memory: this merge needs at least"):
            run_plan(plan, tmp_path / "no", memory=floor - 1)


def test_an_error_in_a_look_or_a_fold_ends_every_worker(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first error is raised, and no thread stays."""

    def broken(where: str) -> Callable[[Tensor], Survey]:
        def fail(*_: object) -> None:
            raise ZeroDivisionError(where)

        def survey(_: Tensor) -> Survey:
            look = fail if where == "look" else lambda _: 1
            fold = fail if where == "fold" else lambda *_: 1
            yield Pass(look, fold)
            if where == "survey":
                fail()
            return None

        return survey

    monkeypatch.setattr(tiles, "_LARGEST_TILE", 5000)
    monkeypatch.setattr(tiles, "_LARGEST_SLOT", 5000)
    plan = plan_of("toy_rows", make_model)
    for where in ("look", "fold", "survey"):
        method = Method("toy_rows", "f", "n", (), combine_rows, survey=broken(where), unit=at_rows)
        monkeypatch.setitem(registry._METHODS, "toy_rows", method)
        with pytest.raises(ZeroDivisionError, match=where):
            run_plan(plan, tmp_path / where, threads=3)
        names = {thread.name for thread in threading.enumerate()}
        assert not any(name.startswith(("merge-", "journal")) for name in names)

"""Cutting a plan into tiles: every element once, within the memory that there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import OutputSpaceError
from weightshare.merging import tiles

Make = Callable[..., Path]
SHAPES = {"embed": (37, 8), "first": (16, 24), "second": (16, 24), "norm": (5,)}


@pytest.fixture
def pair(make_model: Make, linear: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A linear recipe of two small models."""
    tensors = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    return linear(make_model("a", tensors), make_model("b", tensors))


@pytest.mark.parametrize("unit", [1, 3, 64, 200])
@pytest.mark.parametrize("slot", [3_000, 20_000])
def test_pieces_cover_every_element_once_within_the_slot(
    unit: int, slot: int, pair: dict[str, Any]
) -> None:
    """Tiles follow each other without gap, begin at the unit's multiples, and fit the slot."""
    for tensor in ws.plan_merge(pair).tensors:
        for first, last in ((0, tensor.size), (unit * (tensor.size // unit // 2), tensor.size)):
            end = first
            for start, count in tiles.pieces(tensor, unit, slot, first, last):
                assert start == end
                assert start % unit == 0
                end += count
                parts = tiles.carve(np.zeros(slot, np.uint8), tensor, count)
                assert [len(p) for p in parts] == [w * count for w in tensor.widths]
                assert all(part.ctypes.data % 64 == 0 for part in parts)
            assert end == last


@pytest.mark.parametrize("memory", [700, 2_000, 10_000, 10**6])
@pytest.mark.parametrize("surveyed", [False, True])
def test_every_tensor_is_one_job_and_jobs_fit_the_slot(
    memory: int, surveyed: bool, pair: dict[str, Any]
) -> None:
    """Whole tensors that share a slot do not overlap there; larger ones come alone."""
    planned = ws.plan_merge(pair).tensors
    budget = tiles.divide_memory(planned, 10**9, 1).floor + memory
    room = tiles.divide_memory(planned, budget, 1, surveyed=surveyed)
    assert room.peak <= budget
    slot = np.zeros(room.slot, np.uint8)
    seen = []
    for job in tiles.jobs(planned, room):
        if isinstance(job, int):
            seen.append(job)
            continue
        seen += [stretch.tensor for stretch in job]
        assert all((s.start, s.count) == (0, planned[s.tensor].size) for s in job)
        buffers = [b for parts in tiles.carve_batch(slot, planned, job) for b in parts]
        starts = [b.ctypes.data - slot.ctypes.data for b in buffers]
        ends = [start + b.size for start, b in zip(starts, buffers, strict=True)]
        following = [*starts[1:], room.slot]
        assert all(end <= start for end, start in zip(ends, following, strict=True))
    assert seen == list(range(len(planned)))
    assert list(tiles.jobs(planned, room, finished=range(len(planned)))) == []


def test_a_small_budget_has_fewer_workers_before_it_is_refused(pair: dict[str, Any]) -> None:
    """The floor of a plan is enough for one worker, and a byte less for none."""
    planned = ws.plan_merge(pair).tensors
    room = tiles.divide_memory(planned, 10**9, 64)
    assert room.workers == 64
    few = tiles.divide_memory(planned, room.floor, 64)
    assert (few.workers, few.peak) == (1, room.floor)
    with pytest.raises(OutputSpaceError, match="needs at least"):
        tiles.divide_memory(planned, room.floor - 1, 64)
    units = [tensor.size for tensor in planned]
    assert tiles.divide_memory(planned, 10**9, 64, units=units).floor > room.floor
    assert ws.plan_merge(pair).memory_floor == room.floor

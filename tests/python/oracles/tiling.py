"""Merging one tensor in tiles, as a merge from file to file does, and fixed inputs."""

from __future__ import annotations

import math

import numpy as np

from weightshare.merging.method import Settings, Tensor, Tile


def in_tiles(method, models, base, settings, tiles, threads=1, statistics=(), out_dtype=None):
    """Survey and combine a tensor cut into about so many tiles at places that are legal."""
    arrays = models if base is None else [*models, base]
    shape = arrays[-1].shape
    dtypes = tuple(array.dtype for array in arrays)
    tensor = Tensor("w", shape, settings, 0, dtypes, base is not None)
    out = np.empty(math.prod(shape), out_dtype or dtypes[-1])
    unit = method.unit(tensor)
    step = unit * max(1, -(-out.size // (unit * tiles)))

    def tile(start):
        part = slice(start, min(out.size, start + step))
        return Tile(
            *(out[part], [model.reshape(-1)[part] for model in models]),
            *(None if base is None else base.reshape(-1)[part], tensor, start, threads),
            tuple(known.reshape(-1)[part] for known in statistics),
        )

    cut = [tile(start) for start in range(0, out.size, step)]
    found = _surveyed(method, tensor, cut)
    for piece in reversed(cut):
        method.combine(piece, found)
    return out.reshape(shape), len(cut)


def _surveyed(method, tensor, cut):
    survey = method.survey(tensor)
    if survey is None:
        return None
    try:
        wanted = next(survey)
        while True:
            # Looks may come in any order; folds come in that of the tiles.
            told = [wanted.look(piece) for piece in reversed(cut)]
            total = wanted.start
            for one in reversed(told):
                total = wanted.fold(total, one)
            wanted = survey.send(total)
    except StopIteration as end:
        return end.value


def settings_of(method, count, values):
    """The values of a method's parameters for so many models."""
    shared, each = {}, [{} for _ in range(count)]
    for parameter in method.parameters:
        value = values.get(parameter.name, parameter.default)
        if parameter.name == "weight" and value is None:
            value = 1.0
        if value is None:
            continue
        if parameter.per_model:
            column = value if isinstance(value, list) else [value] * count
            for row, item in zip(each, column, strict=True):
                row[parameter.name] = item
        else:
            shared[parameter.name] = value
    return Settings(shared, tuple(each))


def fixed_array(shape, dtype, seed, scale=1.0):
    """Numbers in [-scale, scale) that are made of integers alone: the same everywhere."""
    count = math.prod(shape)
    numbers = np.arange(count, dtype=np.uint64) + np.uint64(seed * 1_000_003 + 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    halves = (numbers >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
    return (halves * scale).astype(dtype).reshape(shape)

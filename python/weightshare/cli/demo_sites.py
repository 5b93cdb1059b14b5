"""The sites of the demo: the same digits, seen in different ways, few of them each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightshare.datasets import load_digits

Images = NDArray[np.float32]
_SIDE = 8


@dataclass(frozen=True, eq=False)
class Site:
    """One site: what it sees, its few training images, and the images it is tested on."""

    name: str
    sees: str
    related: bool
    X: Images
    y: NDArray[np.int64]
    X_held: Images
    y_held: NDArray[np.int64]


# Name, what it sees, training images. The last one is unrelated to the others.
_SITES = (
    ("plain", "the digits as they are", 60),
    ("tilt-left", "turned 15 degrees to the left", 50),
    ("tilt-right", "turned 15 degrees to the right", 40),
    ("shifted", "moved right by one pixel of eight", 30),
    ("noisy", "with noise over every pixel", 20),
    ("scrambled", "pixels in another order: unrelated", 40),
)
UNRELATED = "scrambled"


def draw_sites(random: np.random.Generator) -> list[Site]:
    """Deal the digits to the sites at random; no image is dealt to two sites.

    All that are left are held out: every site is tested on them, seen in its own way.

    Examples
    --------
    >>> sites = draw_sites(np.random.default_rng(0))
    >>> [(site.name, len(site.y)) for site in sites[-2:]], len(sites[0].y_held)
    ([('noisy', 20), ('scrambled', 40)], 1557)
    """
    X, y = load_digits()
    X /= np.float32(16.0)
    order = random.permutation(len(y))
    held = order[sum(count for _, _, count in _SITES) :]
    views = _views(random)
    sites, start = [], 0
    for name, sees, count in _SITES:
        own, start = order[start : start + count], start + count
        view = views[name]
        sites.append(
            Site(name, sees, name != UNRELATED, view(X[own]), y[own], view(X[held]), y[held])
        )
    return sites


def _views(random: np.random.Generator) -> dict[str, Callable[[Images], Images]]:
    scramble = random.permutation(_SIDE * _SIDE)

    def noisy(X: Images) -> Images:
        return X + random.normal(0.0, 0.2, X.shape).astype(np.float32)

    return {
        "plain": lambda X: X,
        "tilt-left": lambda X: turned(X, -15.0),
        "tilt-right": lambda X: turned(X, 15.0),
        "shifted": shifted,
        "noisy": noisy,
        "scrambled": lambda X: np.ascontiguousarray(X[:, scramble]),
    }


def turned(X: Images, degrees: float) -> Images:
    """Return images (n, 64) turned clockwise about their middle, by bilinear interpolation.

    Examples
    --------
    >>> quarter = turned(np.arange(64, dtype=np.float32)[None], 90.0).reshape(8, 8)
    >>> quarter[0].round().tolist()
    [56.0, 48.0, 40.0, 32.0, 24.0, 16.0, 8.0, 0.0]
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle = (_SIDE - 1) / 2
    row, column = np.mgrid[:_SIDE, :_SIDE] - middle
    # a border of one empty pixel; what would come from beyond it is empty too
    framed = np.pad(X.reshape(-1, _SIDE, _SIDE), ((0, 0), (1, 1), (1, 1)))
    top = _SIDE + 1 - 1e-9
    source_row = np.clip(cosine * row - sine * column + middle + 1, 0.0, top)
    source_column = np.clip(sine * row + cosine * column + middle + 1, 0.0, top)
    i, j = source_row.astype(int), source_column.astype(int)
    down, right = source_row - i, source_column - j
    result = (1 - down) * ((1 - right) * framed[:, i, j] + right * framed[:, i, j + 1])
    result += down * ((1 - right) * framed[:, i + 1, j] + right * framed[:, i + 1, j + 1])
    return np.ascontiguousarray(result.reshape(len(X), -1), dtype=np.float32)


def shifted(X: Images) -> Images:
    """Return images (n, 64) moved right by one pixel; the left column becomes empty.

    Examples
    --------
    >>> shifted(np.ones((1, 64), np.float32)).reshape(8, 8)[0].tolist()
    [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    moved = np.zeros_like(X).reshape(-1, _SIDE, _SIDE)
    moved[:, :, 1:] = X.reshape(-1, _SIDE, _SIDE)[:, :, :-1]
    return moved.reshape(len(X), -1)

"""The training of the demo: each site alone, then all of them sharing their weights.

The strength of sharing, the steps and the penalty were chosen on draws of the same digits by
other random numbers than the demo uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightshare.cli.demo_sites import Site
from weightshare.sharing import mixing, similarity
from weightshare.training import SGD, SGDR, SharedFit, merge_and_update
from weightshare.training.network import accuracy, initial_weights, loss_and_gradient

Weights = dict[str, NDArray[Any]]
Matrix = NDArray[np.float64]

ACTIVATION = "tanh"
STRENGTH = 0.1  # of sharing, against the loss
STEP = 1.0
TOLERANCE = 1e-3
_MOMENTUM = 0.9
_PENALTY = 0.005  # on the squared weights: few samples do not determine them
_BATCH = 10
_EPOCHS = 30  # two cycles of SGDR, of 10 and 20 epochs
_MOST_STEPS = 3000
_POWER = 2

# How a model was trained, as the tables say it.
WAYS = ("alone", "longer", "equally", "similarity")


@dataclass(frozen=True)
class Family:
    """A kind of model: the widths of its hidden layers."""

    name: str
    words: str
    hidden: tuple[int, ...]

    @property
    def sizes(self) -> list[int]:
        """Widths of all layers."""
        return [64, *self.hidden, 10]


FAMILIES = (
    Family("softmax", "softmax regression", ()),
    # six of these are small enough for NumPy's BLAS to stay on one thread
    Family("mlp", "network with one hidden layer of 20", (20,)),
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one family on one draw of the sites.

    `accuracies` has, for each way of training, the share of held-out images that each site reads
    right.
    """

    start: Weights
    alone: list[Weights]
    task_cosine: Matrix
    cosine: Matrix
    A: Matrix
    fit: SharedFit
    accuracies: dict[str, list[float]]


def run_family(
    family: Family,
    sites: Sequence[Site],
    random: np.random.Generator,
    *,
    threads: int | None = None,
    callback: Callable[[Any], object] | None = None,
) -> Outcome:
    """Train every site alone, share by similarity, and train the two comparisons.

    Parameters
    ----------
    family : Family
        The kind of model.
    sites : sequence of Site
        From `draw_sites`.
    random : Generator
        For the one initialisation, and the order of the batches.
    threads : int, optional
        As in ``ws.mix``.
    callback : callable, optional
        Told of every iteration of the sharing by similarity.
    """
    start = initial_weights(family.sizes, int(random.integers(2**32)))
    alone = [_train_alone(start, site, random, threads) for site in sites]
    task_cosine = similarity(alone, base=start, threads=threads)
    A = _mixing_matrix(task_cosine)
    fit = _share(alone, sites, A, threads, callback=callback)
    n = len(sites)
    longer = _share(alone, sites, np.eye(n), threads, steps=fit.iterations)
    equally = _share(alone, sites, _mixing_matrix(np.ones((n, n))), threads)
    trained = (alone, longer.weights, equally.weights, fit.weights)
    accuracies = {way: held_out(models, sites) for way, models in zip(WAYS, trained, strict=True)}
    cosine = similarity(alone, threads=threads)
    return Outcome(start, alone, task_cosine, cosine, A, fit, accuracies)


def held_out(models: Sequence[Weights], sites: Sequence[Site]) -> list[float]:
    """Return each site's accuracy on its held-out images."""
    return [
        accuracy(model, site.X_held, site.y_held, ACTIVATION)
        for model, site in zip(models, sites, strict=True)
    ]


def _mixing_matrix(S: Matrix) -> Matrix:
    # implicit: its stop minimises Σ f_t + λ/2 tr(WᵀLap W), whatever the step
    return mixing.laplacian(S, strength=STEP * STRENGTH, power=_POWER, implicit=True)


def _train_alone(
    start: Weights, site: Site, random: np.random.Generator, threads: int | None
) -> Weights:
    model = {name: array.copy() for name, array in start.items()}
    n = len(site.y)
    batches = -(-n // _BATCH)
    step = SGDR(
        0.2,
        T_0=10,
        T_mult=2,
        steps_per_epoch=batches,
        momentum=_MOMENTUM,
        weight_decay=_PENALTY,
        threads=threads,
    )
    for _ in range(_EPOCHS):
        order = random.permutation(n)
        for rows in np.array_split(order, batches):
            _, gradient = loss_and_gradient(model, site.X[rows], site.y[rows], ACTIVATION)
            step.step(model, gradient)
    return model


def _share(
    models: Sequence[Weights],
    sites: Sequence[Site],
    A: Matrix,
    threads: int | None,
    *,
    steps: int | None = None,
    callback: Callable[[Any], object] | None = None,
) -> SharedFit:
    def gradient(W: Matrix) -> tuple[float, Matrix]:
        G = np.float32(_PENALTY) * W
        total = 0.5 * _PENALTY * float(np.sum(np.square(W)))
        for site, weights, of_weights in zip(sites, W, G, strict=True):
            model = _as_mapping(weights, models[0])
            loss, found = loss_and_gradient(model, site.X, site.y, ACTIVATION)
            of_weights += _as_row(found)
            total += loss
        return total, G

    fit = merge_and_update(
        # one array, not mappings: a step is then one pass, whatever the number of names
        np.stack([_as_row(model) for model in models]),
        gradient,
        A,
        step=SGD(STEP * (1.0 - _MOMENTUM), momentum=_MOMENTUM, threads=threads),
        tol=TOLERANCE if steps is None else 0.0,
        max_iter=_MOST_STEPS if steps is None else steps,
        callback=callback,
        threads=threads,
    )
    return replace(fit, weights=[_as_mapping(row, models[0]) for row in fit.weights])


def _as_row(model: Weights) -> NDArray[Any]:
    return np.concatenate([array.ravel() for array in model.values()])


def _as_mapping(row: NDArray[Any], like: Weights) -> Weights:
    ends = np.cumsum([array.size for array in like.values()])
    parts = np.split(row, ends[:-1])
    return {
        name: part.reshape(array.shape)
        for (name, array), part in zip(like.items(), parts, strict=True)
    }

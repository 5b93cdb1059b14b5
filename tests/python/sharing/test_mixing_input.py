"""The mixing matrices: their laws, their limits, and what they say to bad input."""

from __future__ import annotations

import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import ArgumentError, ArgumentTypeError, ElementError, ShapeError


def cosines(n: int, seed: int, size: int = 12, common: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    models = rng.standard_normal((n, size)) + common * rng.standard_normal(size)
    models /= np.linalg.norm(models, axis=1, keepdims=True)
    return models @ models.T


# what every one of them promises

CALLS = {
    "pair": lambda: ws.mixing.pair(0.3),
    "softmax": lambda S: ws.mixing.softmax(S, 0.5),
    "sinkhorn": lambda S: ws.mixing.sinkhorn(S, gap=0.3),
    "metropolis": lambda S: ws.mixing.metropolis(S, 3),
    "laplacian": lambda S: ws.mixing.laplacian(S, 0.05),
    "implicit": lambda S: ws.mixing.laplacian(S, 5.0, implicit=True),
    "labels": lambda S: ws.mixing.projection(S, [0, 0, 1, 1]),
    "clusters": lambda S: ws.mixing.projection(S, 2),
}
OF_S = [name for name in CALLS if name != "pair"]


@pytest.mark.parametrize("name", OF_S)
@pytest.mark.parametrize("kind", ["float32", ">f8", "list", "fortran", "read-only"])
def test_similarities_of_every_numpy_kind_give_float64_and_are_not_modified(name, kind):
    S = cosines(4, 11)
    given_S = {
        "float32": S.astype(np.float32),
        ">f8": S.astype(">f8"),
        "list": S.tolist(),
        "fortran": np.asfortranarray(S),
        "read-only": S.copy(),
    }[kind]
    if kind == "read-only":
        given_S.flags.writeable = False
    before = np.array(given_S)
    A = CALLS[name](given_S)
    assert A.dtype == np.float64
    np.testing.assert_array_equal(np.array(given_S), before)
    np.testing.assert_allclose(A, CALLS[name](S), atol=1e-5)


@pytest.mark.parametrize("name", OF_S)
@pytest.mark.parametrize(
    ("S", "error", "message"),
    [
        (np.ones((3, 4)), ShapeError, r"expected a square matrix \(n, n\), got shape \(3, 4\)"),
        (np.ones(4), ShapeError, r"expected a square matrix"),
        (np.empty((0, 0)), ShapeError, r"at least one number, got shape \(0, 0\)"),
        ([[1.0, 2.0], [1.0]], ShapeError, "ragged"),
        (np.eye(4) * 1j, ElementError, "expected real numbers, got elements of type complex128"),
        (np.eye(4, dtype=object), ElementError, "type object"),
        (np.where(np.eye(4) > 0, np.nan, 0), ArgumentError, r"finite numbers, got nan at \[0, 0\]"),
        (np.full((4, 4), np.inf), ArgumentError, "finite numbers, got inf"),
    ],
)
def test_similarities_that_are_no_finite_real_square_matrix_are_refused(name, S, error, message):
    with pytest.raises(error, match=f"^S: .*{message}.*; "):
        CALLS[name](S)


@pytest.mark.parametrize("name", ["sinkhorn", "laplacian", "implicit", "clusters"])
def test_an_asymmetric_similarity_is_refused_with_the_worst_entry(name):
    S = np.eye(4)
    S[1, 2] = 0.5
    with pytest.raises(ArgumentError, match=r"^S: expected a symmetric .* S\[1, 2\] = 0.5 and"):
        CALLS[name](S)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.pair(np.nan), ArgumentError, "alpha: expected a finite number, got nan"),
        (lambda m: m.pair("a"), ArgumentTypeError, "alpha: expected a real number, got 'a'"),
        (lambda m: m.pair(True), ArgumentTypeError, "alpha: expected a real number, got True"),
        (lambda m: m.softmax(np.eye(2), 0), ArgumentError, "temperature: .* above 0, got 0.0"),
        (lambda m: m.sinkhorn(np.eye(2), temperature=-1), ArgumentError, "temperature: .* above 0"),
        (lambda m: m.sinkhorn(np.eye(2), gap=0), ArgumentError, "gap: .* above 0 and at most 1"),
        (lambda m: m.sinkhorn(np.eye(2), gap=1.1), ArgumentError, "gap: .* above 0 and at most 1"),
        (
            lambda m: m.sinkhorn(np.eye(2), gap=0.3, temperature=1),
            ArgumentError,
            "temperature, gap: expected one of the two",
        ),
        (lambda m: m.metropolis(np.eye(3), 0), ArgumentError, "neighbours: .* from 1 to 2, got 0"),
        (lambda m: m.metropolis(np.eye(3), 3), ArgumentError, "neighbours: .* from 1 to 2, got 3"),
        (lambda m: m.metropolis(np.eye(3), 1.0), ArgumentTypeError, "neighbours: .* whole number"),
        (lambda m: m.laplacian(np.eye(2), -1), ArgumentError, "strength: .* at least 0, got -1.0"),
        (lambda m: m.laplacian(np.eye(2), np.inf), ArgumentError, "strength: .* finite"),
        (lambda m: m.laplacian(np.eye(2), 1, power=0), ArgumentError, "power: .* above 0"),
        (
            lambda m: m.laplacian(np.full((2, 2), 1e200), 0, power=2),
            ArgumentError,
            "power: .* within float64",
        ),
        (lambda m: m.projection(np.eye(2), 3), ArgumentError, "clusters: .* from 1 to 2, got 3"),
        (lambda m: m.projection(np.eye(2), [0]), ShapeError, r"clusters: expected 2 .* \(1,\)"),
        (lambda m: m.projection(np.eye(2), "ab"), ShapeError, r"clusters: expected 2 labels"),
        (lambda m: m.projection(np.eye(2), [[0], [0, 1]]), ShapeError, "clusters: .* ragged"),
        (lambda m: m.projection(np.eye(2), [0.0, np.nan]), ElementError, "clusters: .* float64"),
        (lambda m: m.projection(np.eye(2), [0, -1]), ArgumentError, "clusters: .* got -1"),
        (lambda m: m.projection(np.eye(2), None), ShapeError, "clusters: expected 2 labels"),
        (lambda m: m.interpolation([], [1.0]), ShapeError, "nodes: .* at least one"),
        (lambda m: m.interpolation([0.0], []), ShapeError, "targets: .* at least one"),
        (lambda m: m.interpolation([[0.0]], [0.0]), ShapeError, "nodes: .* one-dimensional"),
        (lambda m: m.interpolation([0.0], [np.nan]), ArgumentError, "targets: .* finite"),
        (lambda m: m.regression(np.ones((2, 2, 2)), 0), ShapeError, r"coordinates: .* \(n, d\)"),
        (lambda m: m.regression([0.0, 1.0], -1), ArgumentError, "degree: .* at least 0, got -1"),
        (lambda m: m.regression([0.0, 1.0], 1, -1.0), ArgumentError, "ridge: .* at least 0"),
        (lambda m: m.circulant([], 3), ShapeError, "kernel: .* at least one"),
        (lambda m: m.circulant([1.0], 0), ArgumentError, "n: .* at least 1, got 0"),
        (lambda m: m.diagnose(np.ones((2, 3))), ShapeError, "A: expected a square"),
        (lambda m: m.diagnose([[np.nan]]), ArgumentError, "A: expected finite"),
    ],
)
def test_every_bad_argument_is_named_with_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call(ws.mixing)


def test_similarities_that_cannot_be_scaled_at_a_temperature_are_refused():
    # the hub would have to give each of its three leaves all of itself
    star = np.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=float)
    with pytest.raises(ArgumentError, match=r"^temperature: .* got 1e-09; raise it"):
        ws.mixing.sinkhorn(star, temperature=1e-9)

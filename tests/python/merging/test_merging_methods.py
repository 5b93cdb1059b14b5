"""The methods, in memory: the formulas, the laws, and what they refuse."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import weightshare as ws
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)
from weightshare.merging.elements import promoted
from weightshare.merging.finite import SOUND, Findings, Flaws, NonFiniteError, find_flaws
from weightshare.merging.sizes import format_bytes, parse_bytes

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
# Rounding to the element, and the float32 arithmetic of the first three.
TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 3e-7, "float64": 1e-15}


def sample(dtype: Any, count: int, shape: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(dtype) for _ in range(count)]


def assert_near(found: np.ndarray, exact: np.ndarray, scale: float) -> None:
    tolerance = TOLERANCE[str(found.dtype)] * scale
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 1), (7, 13), (2, 3, 5)])
def test_linear_is_the_weighted_mean(dtype: Any, shape: tuple[int, ...]) -> None:
    """Equal to the formula in float64, in the dtype and shape of the inputs."""
    models, weights = sample(dtype, 3, shape), [0.3, 1.5, 0.7]
    merged = ws.merge(models, weights)
    exact = sum(w * m.astype(np.float64) for w, m in zip(weights, models, strict=True)) / 2.5
    assert merged.dtype == dtype
    assert merged.shape == shape
    assert_near(merged, np.asarray(exact), 4)


def test_linear_without_normalize_is_the_weighted_sum() -> None:
    """Weights of any sign and sum are taken as they are."""
    models = sample(np.float64, 2, (5,))
    merged = ws.merge(models, [2.0, -2.0], normalize=False)
    np.testing.assert_allclose(merged, 2 * (models[0] - models[1]), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
def test_task_arithmetic_adds_task_vectors(dtype: Any, normalize: bool) -> None:
    """Equal to base + lambda * sum w (x - base), with the weights over their sum if asked."""
    *models, base = sample(dtype, 4, (6, 5))
    weights = [0.5, -0.2, 1.0]
    merged = ws.merge(
        models, weights, method="task_arithmetic", base=base, lambda_=0.7, normalize=normalize
    )
    exact = base.astype(np.float64)
    for weight, model in zip(weights, models, strict=True):
        share = 0.7 * weight / (sum(weights) if normalize else 1.0)
        exact = exact + share * (model.astype(np.float64) - base.astype(np.float64))
    assert merged.dtype == dtype
    assert_near(merged, exact, 8)


@given(
    arrays.arrays(
        np.float32, arrays.array_shapes(max_dims=2), elements=st.floats(-1e6, 1e6, width=32)
    ),
    st.lists(st.floats(-10, 10), min_size=1, max_size=4),
)
def test_task_arithmetic_of_equal_models_is_the_base(
    base: np.ndarray, weights: list[float]
) -> None:
    """No task, no change: the base comes back bit for bit, whatever the weights."""
    models = [base.copy() for _ in weights]
    merged = ws.merge(models, weights, method="task_arithmetic", base=base)
    np.testing.assert_array_equal(merged, base)


@given(st.permutations(range(4)))
def test_linear_does_not_depend_on_the_order(order: list[int]) -> None:
    """Models and weights permuted together give the same model, to rounding."""
    models, weights = sample(np.float64, 4, (9,)), [1.0, 2.0, 3.0, 4.0]
    merged = ws.merge([models[i] for i in order], [weights[i] for i in order])
    np.testing.assert_allclose(merged, ws.merge(models, weights), rtol=1e-13, atol=1e-15)


def test_one_weight_picks_its_model() -> None:
    """A weight of one beside zeros returns that model's numbers."""
    models = sample(np.float32, 3, (11,))
    np.testing.assert_array_equal(ws.merge(models, [0, 1, 0]), models[1])


def test_threads_do_not_change_bits() -> None:
    """One thread and two give the same bytes."""
    models = sample(np.float32, 3, (257, 1031))
    one, two = (ws.merge(models, [1, 2, 3], threads=count) for count in (1, 2))
    assert one.tobytes() == two.tobytes()


def test_mappings_merge_name_by_name_and_keep_integers() -> None:
    """Each name has its own dtype; integers that agree are copied; inputs stay as they were."""
    models = [
        {"w": np.float32([value]), "h": np.float16([value]), "ids": np.arange(3)}
        for value in (1.0, 3.0)
    ]
    merged = ws.merge(models)
    assert list(merged) == ["w", "h", "ids"]
    assert (merged["w"].dtype, merged["h"].dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(merged["w"], [2.0])
    np.testing.assert_array_equal(merged["ids"], np.arange(3))
    merged["ids"][0] = 9
    np.testing.assert_array_equal(models[0]["ids"], np.arange(3))


def test_any_strides_byte_order_and_lists_are_taken() -> None:
    """Transposed, read-only, big-endian arrays and lists give the right numbers."""
    plain = np.arange(6, dtype=np.float32).reshape(2, 3)
    transposed = np.asfortranarray(plain)
    transposed.setflags(write=False)
    np.testing.assert_array_equal(ws.merge([plain, transposed, plain.astype(">f4")]), plain)
    np.testing.assert_array_equal(ws.merge([[1.0, 2.0], [3.0, 4.0]]), [2.0, 3.0])
    np.testing.assert_array_equal(ws.merge(np.float32([[1], [3]])), [2.0])


def test_mixed_dtypes_give_what_holds_both() -> None:
    """float16 with bfloat16 gives float32; the base counts as one of them."""
    half, brain = np.ones(2, np.float16), np.ones(2, ml_dtypes.bfloat16)
    assert ws.merge([half, brain]).dtype == np.float32
    merged = ws.merge([np.ones(2)], method="task_arithmetic", base=half)
    assert merged.dtype == np.float64


ONES = np.ones(2)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ArgumentError, "did you mean 'linear'", {"method": "liner"}),
        (ArgumentError, "no such parameter; did you mean 'normalize'", {"normalise": True}),
        (ArgumentError, "lambda: method 'linear' has no such parameter", {"lambda_": 1.0}),
        (ArgumentError, "normalize: expected True or False, got 1", {"normalize": 1}),
        (ArgumentError, "weights: expected 2 values", {"weights": [1.0]}),
        (ArgumentError, "weights: expected a finite number", {"weights": [1.0, np.nan]}),
        (ArgumentError, "weights: expected a finite number", {"weights": [1.0, 10**400]}),
        (ArgumentError, "weights: expected a real number", {"weights": np.array(0.5)}),
        (ArgumentError, "method: expected one of", {"method": ["linear"]}),
        (ArgumentTypeError, "seed: expected an integer, got 'x'", {"seed": "x"}),
        (ArgumentTypeError, "seed: expected an integer, got None", {"seed": None}),
        (ArgumentTypeError, "seed: expected an integer, got True", {"seed": True}),
        (ArgumentError, "weights: expected a real number", {"weights": [1.0, 1j]}),
        (ArgumentError, "weights: expected a real number", {"weights": [1.0, "2"]}),
        (ArgumentError, "sum to zero", {"weights": [1.0, -1.0]}),
        (ArgumentError, "takes no base model", {"base": ONES}),
        (ArgumentError, "needs a base model", {"method": "task_arithmetic"}),
        (ArgumentError, "give the weights as the argument weights", {"weight": 1.0}),
        (ArgumentError, "expected at least one model", {"models": []}),
        (ArgumentTypeError, "put the models into a list", {"models": {"w": ONES}}),
        (ShapeError, "ragged", {"models": [[[1.0], [1.0, 2.0]]]}),
        (ElementError, "got complex128", {"models": [ONES + 1j]}),
        (ElementError, "got object", {"models": [np.array([None])]}),
        (ElementError, "got int64", {"models": [np.arange(2), np.arange(2)]}),
        (ElementError, "has dtypes", {"models": [{"w": ONES}, {"w": np.arange(2)}]}),
        (
            ArgumentError,
            "differs between",
            {"models": [{"i": np.arange(2)}, {"i": np.ones(2, int)}]},
        ),
        (NamesError, "lacks ['w']", {"models": [{"w": ONES}, {"v": ONES}]}),
        (ShapeError, "expected shape (2,), got (3,)", {"models": [ONES, np.ones(3)]}),
    ],
)
def test_bad_arguments_are_refused(
    error: type[Exception], message: str, arguments: dict[str, Any]
) -> None:
    """The message says which argument, what was expected and what came."""
    with pytest.raises(error) as caught:
        ws.merge(**{"models": [ONES, ONES], **arguments})
    assert message in str(caught.value)


def test_numpy_scalars_and_views_of_a_mapping_are_taken() -> None:
    """One number stands for all models, whatever its type; models need not be in a list."""
    named = {"a": np.ones(2), "b": np.full(2, 3.0)}
    for weight in (2, np.float32(2), np.int64(2)):
        found = ws.merge(named.values(), weight, seed=np.int64(1))  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, [2.0, 2.0])


def test_the_registry_describes_every_method() -> None:
    """Each entry has a formula, a paper, and parameters that are documented."""
    known = ws.methods()
    assert len(known) >= 25
    for name, method in known.items():
        assert method.name == name
        assert method.source
        assert all(parameter.summary for parameter in method.parameters)
    known.clear()
    assert ws.methods()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(dtype: Any, bad: float) -> None:
    """NaN and infinity of either sign are found at any place; the largest numbers are not."""
    largest = float(ml_dtypes.finfo(dtype).max)
    values = np.array([largest, -largest, 0.0, -0.0, 1e-7], dtype)
    assert find_flaws(values, [values], 7) == SOUND
    assert find_flaws(values[:0], [], 7) == SOUND
    for place in range(values.size):
        spoiled = values.copy()
        spoiled[place] = bad
        if np.signbit(bad):
            spoiled[place] = np.copysign(spoiled[place], dtype(-1))
        assert find_flaws(spoiled, [values], 7) == Flaws(1, 7 + place, 0)
        assert find_flaws(spoiled, [values, spoiled], 7) == Flaws(0, -1, 1, 1)


def test_findings_tell_what_was_made_from_what_was_there() -> None:
    """Only elements that finite inputs made are an error, counted over all tiles."""
    findings = Findings("error")
    sound, spoiled = np.ones(3), np.array([1.0, np.nan, 1.0])
    there = find_flaws(spoiled, [sound, spoiled], 0)
    findings.check("a", 3, there)
    findings.tell("a", 3, there)
    assert list(findings.warnings) == ["a: 1 of 3 elements are NaN or infinite in the inputs"]
    made = find_flaws(spoiled, [sound], 3).joined(find_flaws(spoiled, [sound], 0))
    assert made.joined(there) == Flaws(made=2, first=1, inherited=1, unsound=1)
    with pytest.raises(NonFiniteError, match="b: 2 of 6") as caught:
        findings.check("b", 6, made)
    assert (caught.value.tensor, caught.value.count, caught.value.first) == ("b", 2, 1)


def test_promotion_and_sizes() -> None:
    """Elements promote to what holds them; sizes read and write as people do."""
    assert promoted(["F16", "F32"]) == "F32"
    with pytest.raises(ElementError, match="got I64"):
        promoted(["F32", "I64"])
    assert parse_bytes(" 1.5 kB", "memory") == 1500
    assert format_bytes(1.5e12) == "1.5 TB"
    for wrong in ("", "0", "-5", "5 parsecs", 0, -1, True, None, 1.5e400):
        with pytest.raises(ArgumentError, match="memory: expected a number of bytes"):
            parse_bytes(wrong, "memory")  # type: ignore[arg-type]

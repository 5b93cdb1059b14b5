"""Methods that a user adds in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from tiling import fixed_array, in_tiles, settings_of
from weightshare.errors import ArgumentError, ArgumentTypeError, ElementError, ShapeError
from weightshare.merging import Parameter
from weightshare.merging import registry as registered
from weightshare.merging.register import register_method
from weightshare.merging.registry import forget_method

MakeModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = dict(registered._METHODS)
    yield
    registered._METHODS.clear()
    registered._METHODS.update(before)


def median(models: list[np.ndarray], base: Any, lean: float = 0.0) -> np.ndarray:
    """Median by element."""
    return np.median(np.array(models), axis=0) + lean


def test_a_registered_method_merges_in_memory_and_by_recipe(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """With its parameters and the same bytes, however small the tiles."""
    register_method("median", median, min_models=3)
    tensors = [fixed_array((300, 1000), ml_dtypes.bfloat16, k) for k in range(3)]
    paths = [make_model(f"m{k}", {"w": each}) for k, each in enumerate(tensors)]
    found = ws.merge(tensors, method="median", lean=0.25)
    exact = np.median(np.array(tensors, np.float32), axis=0) + np.float32(0.25)
    assert found.tobytes() == exact.astype(ml_dtypes.bfloat16).tobytes()
    recipe = {
        "merge_method": "median",
        "models": [{"model": str(path)} for path in paths],
        "parameters": {"lean": 0.25},
    }
    report = ws.merge_checkpoints(recipe, tmp_path / "out", memory="160MB", threads=2)
    with ws.open_checkpoint(report.out) as merged:
        assert merged["w"].tobytes() == found.tobytes()


def test_rows_and_tensors_are_seen_whole_when_asked_for() -> None:
    """Arrays have the shape that was asked for; results do not depend on the tiles."""
    shapes: list[tuple[int, ...]] = []

    def centre(models: list[np.ndarray], base: Any) -> np.ndarray:
        shapes.append(models[0].shape)
        return models[0] - models[0].mean(axis=-1, keepdims=True)

    model = fixed_array((6, 10, 7), np.float32, 1)
    for sees, shape, many in (("rows", (30, 7), True), ("tensor", (6, 10, 7), False)):
        method = register_method("centre", centre, sees=sees, replace=True)
        shapes.clear()
        whole = ws.merge([model], method="centre")
        assert shapes[-1] == ((60, 7) if many else shape)
        found, cut = in_tiles(method, [model], None, settings_of(method, 1, {}), 2)
        assert (cut > 1) == many
        assert shapes[-1] == shape
        assert found.tobytes() == whole.tobytes()
        np.testing.assert_allclose(found.mean(axis=-1), 0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_arrays_are_float32_unless_something_is_float64(dtype: Any) -> None:
    """Of the models and of the base alike; what comes back is rounded once to the base's element."""

    def towards(models: list[np.ndarray], base: Any, t: float) -> np.ndarray:
        work = np.float64 if dtype == np.float64 else np.float32
        assert {array.dtype for array in (*models, base)} == {np.dtype(work)}
        return np.float64(base) + t * (models[0].astype(np.float64) - base)

    register_method("towards", towards, base="required", max_models=1)
    base, model = fixed_array((9,), dtype, 1), fixed_array((9,), dtype, 2)
    found = ws.merge([model], method="towards", base=base, t=0.5)
    middle = (base.astype(np.float64) + model.astype(np.float64)) / 2
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, middle.astype(dtype))


def test_parameters_come_from_the_arguments_or_are_given() -> None:
    """Kinds by the defaults; per-model ones as lists, weights among them."""

    def rule(models: Any, base: Any, a: float, b: float = 2, c: bool = True, d: int = 3) -> Any:
        assert (type(a), type(b), type(c), type(d)) == (float, float, bool, int)
        return models[0] * a

    kinds = {p.name: (p.kind, p.default) for p in register_method("rule", rule).parameters}
    assert kinds == {
        "a": ("float", None),
        "b": ("float", 2.0),
        "c": ("bool", True),
        "d": ("int", 3),
    }
    np.testing.assert_array_equal(ws.merge([np.ones(1)], method="rule", a=4), [4.0])
    with pytest.raises(ArgumentError, match="a: is missing"):
        ws.merge([np.ones(1)], method="rule")

    def weighted(models: Any, base: Any, weight: list[float]) -> Any:
        return sum(w * model for w, model in zip(weight, models, strict=True))

    share = Parameter("weight", "share", per_model=True)
    for parameters in (None, [share]):
        register_method("weighted", weighted, parameters=parameters, replace=True)
        found = ws.merge([np.ones(1), np.ones(1)], [2, 3], method="weighted")
        np.testing.assert_array_equal(found, [5.0])


def test_lambda_is_the_word_of_recipes_and_lambda_with_a_dash_that_of_python() -> None:
    """A function cannot have an argument of the name that mergekit's methods use."""
    method = register_method("scaled", lambda models, base, lambda_=1.0: models[0] * lambda_)
    assert [parameter.name for parameter in method.parameters] == ["lambda"]
    for word in ("lambda", "lambda_"):
        found = ws.merge([np.ones(1)], method="scaled", **{word: 3})
        np.testing.assert_array_equal(found, [3.0])


def test_a_whole_method_can_be_added_and_built_ins_come_back() -> None:
    """A name that is taken needs replace; forgetting restores what was replaced."""
    linear = ws.methods()["linear"]
    copy = type(linear)(**{**vars(linear), "name": "mine"})
    assert register_method(copy) is copy
    assert ws.methods()["mine"] is copy
    for more in ({"function": median}, {"base": "required"}, {"summary": "mine"}):
        with pytest.raises(ArgumentError, match="a whole Method is given alone"):
            register_method(copy, replace=True, **more)
    for again in (copy, linear):
        with pytest.raises(ArgumentError, match="exists already"):
            register_method(again)
    register_method("linear", median, replace=True)
    assert ws.methods()["linear"] is not linear
    forget_method("linear")
    forget_method("mine")
    assert ws.methods()["linear"] is linear
    assert "mine" not in ws.methods()
    for name in ("linear", "mine"):
        with pytest.raises(ArgumentError, match="was not registered"):
            forget_method(name)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ArgumentError, "expected a name of letters", {"method": ""}),
        (ArgumentError, "expected a name of letters", {"method": "my method"}),
        (ArgumentTypeError, "expected a name or a Method", {"method": 3}),
        (ArgumentTypeError, "function: expected a callable", {"function": None}),
        (ArgumentError, "sees: expected one of elements, rows, tensor", {"sees": "all"}),
        (ArgumentError, "base: expected one of", {"base": "maybe"}),
        (ArgumentError, "min_models, max_models", {"min_models": 3, "max_models": 2}),
        (ArgumentError, "(models, base, ...)", {"function": lambda models: models[0]}),
        (ArgumentError, "'seed' is an argument", {"function": lambda models, base, seed=0: 0}),
        (ArgumentError, "name it weight", {"function": lambda models, base, weights: 0}),
        (ArgumentError, "wrap it in a Python", {"function": min}),
        (ArgumentError, "must be per_model", {"parameters": [Parameter("weight", "share")]}),
        (ArgumentError, "is there 2 times", {"parameters": [Parameter("a", "one", 1.0)] * 2}),
        (ArgumentError, "numbers or switches", {"function": lambda models, base, mode="a": 0}),
        (
            ArgumentError,
            "pass a whole Method",
            {"parameters": [Parameter("f", "information", per_model=True, kind="checkpoint")]},
        ),
    ],
)
def test_what_cannot_be_a_method_is_refused(
    error: type[Exception], message: str, arguments: dict[str, Any]
) -> None:
    """When it is registered, not when it is used."""
    with pytest.raises(error) as caught:
        register_method(**{"method": "new", "function": median, **arguments})
    assert message in str(caught.value)
    assert "new" not in ws.methods()


def test_what_a_function_returns_is_checked() -> None:
    """Shape and element; whole numbers are taken."""
    returns: dict[str, Any] = {
        "scalar": lambda models, base: 1.0,
        "longer": lambda models, base: np.ones(5),
        "wider": lambda models, base: models[0][None],
    }
    for name, function in returns.items():
        register_method(name, function)
        with pytest.raises(ShapeError, match=f"{name}: its function returned shape"):
            ws.merge([np.ones(4)], method=name)
    register_method("text", lambda models, base: np.array(["a"] * 4))
    with pytest.raises(ElementError, match="expected real numbers"):
        ws.merge([np.ones(4)], method="text")
    register_method("signs", lambda models, base: np.sign(models[0]).astype(int))
    np.testing.assert_array_equal(ws.merge([np.float32([-2, 3])], method="signs"), [-1, 1])

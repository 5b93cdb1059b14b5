"""The value of a parameter, from every level of a recipe, against rules written out anew."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import weightshare as ws
from weightshare.errors import RecipeError

PARTS = ("attn.weight", "mlp.weight")
OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
WORDS = (
    "attn",
    "mlp",
    "layers.1.",
    "layers.2.attn",
    "embed",
    "norm",
    "nothing",
    "*",
    "",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of five layers."""
    folder = tmp_path_factory.mktemp("models")
    names = [f"model.layers.{layer}.{part}" for layer in range(5) for part in PARTS]
    for name in ("a", "b", "base"):
        ws.save_checkpoint(folder / name, dict.fromkeys([*names, *OUTSIDE], np.ones(2, np.float32)))
    return folder


def interpolate(gradient: list[float], t: float) -> float:
    """p = t (n - 1), i = floor(p), (1 - (p - i)) g[i] + (p - i) g[min(i + 1, n - 1)]."""
    p = t * (len(gradient) - 1)
    i = math.floor(p)
    return (1 - (p - i)) * gradient[i] + (p - i) * gradient[min(i + 1, len(gradient) - 1)]


def look_up(setting: Any, name: str, t: float) -> float | None:
    """The first rule whose filter is in the name; a list of numbers is a gradient."""
    rules = setting if isinstance(setting, list) and _has_rules(setting) else [setting]
    for rule in rules:
        value = rule
        if isinstance(rule, dict):
            if rule.get("filter", "*") not in (None, "*") and rule["filter"] not in name:
                continue
            value = rule["value"]
        numbers = [float(item) for item in (value if isinstance(value, list) else [value])]
        if numbers:
            return interpolate(numbers, t)
    return None


def _has_rules(setting: list[Any]) -> bool:
    return any(isinstance(item, dict) for item in setting)


def oracle(levels: list[dict[str, Any]], key: str, name: str, t: float) -> float | None:
    for level in levels:
        if key in level:
            value = look_up(level[key], name, t)
            if value is not None:
                return value
    return None


number = st.integers(-4, 4).map(float) | st.booleans() | st.sampled_from(["5e-1", "2"])
plain = number | st.lists(number, max_size=4)
rule = st.builds(
    lambda word, value: {"value": value} if word is None else {"filter": word, "value": value},
    st.none() | st.sampled_from(WORDS),
    plain,
)
setting = plain | rule | st.lists(rule, min_size=1, max_size=3)
level = st.fixed_dictionaries({}, optional={"weight": setting, "lambda": setting})
own_level = st.fixed_dictionaries({}, optional={"weight": setting})
first_layers = st.integers(0, 3)


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    slices = []
    for _ in range(draw(st.integers(1, 3))):
        depth = draw(st.integers(1, 2))
        sources = []
        for name in ("a", "b", "base"):
            first = draw(first_layers)
            source: dict[str, Any] = {
                "model": name,
                "layer_range": [first, first + depth],
            }
            if name != "base":
                source["parameters"] = draw(own_level)
            sources.append(source)
        slices.append({"sources": sources, "parameters": draw(level)})
    module = {"slices": slices, "parameters": draw(level)}
    return {"modules": {"default": module}, "parameters": draw(level)}


def expected(
    recipe: dict[str, Any],
) -> dict[str, tuple[list[float | None], float | None]]:
    """For each output tensor the weights of a and b, and lambda."""
    module = recipe["modules"]["default"]
    slices = module["slices"]

    def values(piece: dict[str, Any], inputs: list[str], output: str, t: float) -> Any:
        shared = [piece["parameters"], module["parameters"], recipe["parameters"]]
        weights = [
            oracle([source["parameters"], *shared], "weight", name, t)
            for source, name in zip(piece["sources"], inputs, strict=False)
        ]
        whole = oracle(shared, "lambda", output, t)
        return weights, 1.0 if whole is None else whole

    found = {OUTSIDE[0]: values(slices[0], [OUTSIDE[0]] * 2, OUTSIDE[0], 0.0)}
    for name in OUTSIDE[1:]:
        found[name] = values(slices[-1], [name] * 2, name, 0.0)
    number = 0
    for piece in slices:
        firsts = [source["layer_range"][0] for source in piece["sources"]]
        depth = piece["sources"][0]["layer_range"][1] - firsts[0]
        for k in range(depth):
            t = 1.0 if depth == 1 else k / (depth - 1)
            for part in PARTS:
                inputs = [f"model.layers.{first + k}.{part}" for first in firsts[:2]]
                output = f"model.layers.{number}.{part}"
                found[output] = values(piece, inputs, output, t)
            number += 1
    return found


@given(recipe=recipes())
def test_levels_filters_and_gradients_give_the_values_of_the_rules(
    recipe: dict[str, Any], models: Path
) -> None:
    """Source, slice, module, recipe, default; per-model filters see the model's own name."""
    wanted = expected(recipe)
    for piece in recipe["modules"]["default"]["slices"]:
        for source in piece["sources"]:
            source["model"] = str(models / Path(source["model"]).name)
    recipe |= {"merge_method": "task_arithmetic", "base_model": str(models / "base")}
    if any(None in weights for weights, _ in wanted.values()):
        with pytest.raises(RecipeError, match=r"weight of .*: is missing"):
            ws.plan_merge(recipe)
        return
    plan = ws.plan_merge(recipe)
    assert {tensor.name for tensor in plan.tensors} == set(wanted)
    for tensor in plan.tensors:
        assert tensor.settings is not None
        weights, whole = wanted[tensor.name]
        assert tensor.settings.of_models("weight") == weights
        assert tensor.settings.shared["lambda"] == whole


def test_a_gradient_lies_within_its_slice_and_final_tensors_take_its_first_value(
    models: Path,
) -> None:
    """As mergekit has it: lm_head gets what the embeddings get."""
    slices = [
        {
            "sources": [
                {"model": str(models / name), "layer_range": [first, first + 3]}
                for name in ("a", "b")
            ],
            "parameters": {"weight": [first, first + 1]},
        }
        for first in (1, 2)
    ]
    plan = ws.plan_merge({"merge_method": "linear", "slices": slices})
    found = {
        tensor.name: tensor.settings.of_models("weight")[0]
        for tensor in plan.tensors
        if tensor.settings is not None
    }
    layers = [found[f"model.layers.{layer}.attn.weight"] for layer in range(6)]
    assert layers == [1.0, 1.5, 2.0, 2.0, 2.5, 3.0]
    assert [found[name] for name in OUTSIDE] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (2, "density: expected 0 to 1, got 2"),
        ([0.5, -1], "density: expected 0 to 1, got -1"),
        (
            [{"filter": "attn", "value": "1e9"}],
            r"density\[0\]: expected 0 to 1, got 1e\+09",
        ),
    ],
)
def test_values_outside_of_their_range_are_refused_where_they_stand(
    density: Any, message: str, models: Path
) -> None:
    """Range and place are told."""
    recipe = {
        "merge_method": "ties",
        "base_model": str(models / "base"),
        "models": [
            {
                "model": str(models / "a"),
                "parameters": {"density": density, "weight": 1},
            }
        ],
    }
    with pytest.raises(RecipeError, match=message):
        ws.plan_merge(recipe)


def test_a_gradient_of_whole_numbers_has_no_values_between_them(models: Path) -> None:
    """max_iter counts steps; halfway between 10 and 11 there is none."""
    recipe: dict[str, Any] = {
        "merge_method": "karcher",
        "models": [{"model": str(models / name)} for name in ("a", "b")],
        "parameters": {"max_iter": [10, 11]},
    }
    with pytest.raises(RecipeError, match=r"max_iter: expected a whole number, got 10\.25"):
        ws.plan_merge(recipe)
    recipe["parameters"]["max_iter"] = [10, 14]
    plan = ws.plan_merge(recipe)
    assert {t.settings.shared["max_iter"] for t in plan.tensors if t.settings} == set(range(10, 15))

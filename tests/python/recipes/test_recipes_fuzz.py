"""Recipes made at random: each is refused by name, or gives a plan whose every source is legal."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import weightshare as ws
from weightshare.errors import ArgumentError, RecipeError
from weightshare.recipes.layout import layer_of

METHODS = sorted(ws.methods())
KEYS = (
    "weight",
    "density",
    "t",
    "normalize",
    "lambda",
    "scale",
    "gamma",
    "wieght",
    "max_iter",
)


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, ws.Checkpoint]]:
    """Four models: two alike, one deeper and tied, one of two stacks."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)

    def layers(prefix: str, count: int) -> dict[str, Any]:
        names = [f"{prefix}.{i}.{part}" for i in range(count) for part in ("a.weight", "b.weight")]
        return {name: rng.normal(size=(2, 2)).astype(np.float32) for name in names}

    ends = {"embed_tokens.weight": np.ones((3, 2)), "lm_head.weight": np.ones((3, 2))}
    more = {"norm.weight": np.ones(2, ml_dtypes.bfloat16), "ids": np.arange(3)}
    held = {
        "a": layers("layers", 3) | ends | more,
        "b": layers("layers", 3) | ends | more,
        "c": layers("layers", 5) | {"embed_tokens.weight": np.ones((3, 2))} | more,
        "d": layers("vision.layers", 2) | layers("text.layers", 3) | ends,
    }
    with ExitStack() as opened:
        found = {}
        for name, tensors in held.items():
            ws.save_checkpoint(folder / name, tensors)
            said = {"num_hidden_layers": 3, "types": [1, 2, 3], "vocab_size": 3}
            (folder / name / "config.json").write_text(json.dumps(said))
            found[str(folder / name)] = opened.enter_context(ws.open_checkpoint(folder / name))
        yield found


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(("model", "value", "filter", "sources", "x")),
            inner,
            max_size=2,
        )
    ),
    max_leaves=4,
)
number = st.floats(-1, 2) | st.integers(0, 2) | st.booleans()
plain = number | st.lists(number, max_size=3)
rules = st.fixed_dictionaries({"value": plain}, optional={"filter": st.sampled_from("ab.1*")})
setting = plain | rules | st.lists(rules, max_size=2)
parameters = st.dictionaries(st.sampled_from(KEYS), setting, max_size=3)
name = st.sampled_from("aaabbbcccd")
entry = st.fixed_dictionaries({"model": name}, optional={"parameters": parameters})
layers = st.tuples(st.integers(0, 4), st.integers(1, 5)).map(list)
sliced = st.fixed_dictionaries(
    {"model": name, "layer_range": layers}, optional={"parameters": parameters}
)
alike = st.tuples(layers, st.lists(name, min_size=1, max_size=3, unique=True)).map(
    lambda pair: [{"model": model, "layer_range": pair[0]} for model in pair[1]]
)
piece = st.fixed_dictionaries(
    {"sources": st.lists(sliced, min_size=1, max_size=3) | alike},
    optional={"base_model": name, "parameters": parameters, "residual_weight": number},
)
inputs = st.fixed_dictionaries({"models": st.lists(entry, min_size=1, max_size=3)}) | (
    st.fixed_dictionaries({"slices": st.lists(piece, min_size=1, max_size=3)})
)
modules = st.dictionaries(st.sampled_from(["default", "text", "vision", "txt"]), inputs, max_size=2)
top = st.fixed_dictionaries(
    {
        "merge_method": st.sampled_from(METHODS),
        "parameters": st.fixed_dictionaries(
            {"weight": number, "t": number}, optional=dict.fromkeys(KEYS[3:], setting)
        ),
    },
    optional={
        "base_model": name,
        "dtype": st.sampled_from(["float32", "bfloat16", "float64", "int8"]),
        "out_dtype": st.sampled_from(["float16", None]),
        "name": st.text(max_size=3),
    },
)


def broken(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe in which anything may be wrong."""
    recipe = draw(top) | (draw(inputs) if draw(st.booleans()) else {"modules": draw(modules)})
    if draw(st.booleans()):
        recipe |= draw(
            st.dictionaries(st.sampled_from(["models", "base_model", "y"]), junk, max_size=1)
        )
    return recipe


def sound(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe in which little is wrong: enough models, layers that there are, values."""
    method = ws.methods()[draw(st.sampled_from([name for name in METHODS if name != "fisher"]))]
    most = 2 if method.max_models is None else method.max_models
    count = draw(st.integers(min(method.min_models, most), most))
    based = method.base == "required" or (method.base == "optional" and draw(st.booleans()))
    chosen = draw(st.permutations("ab" if count + based < 3 else "abc"))[: count + based]
    recipe: dict[str, Any] = {"merge_method": method.name}
    recipe["parameters"] = {
        parameter.name: True if parameter.kind == "bool" else min(1, parameter.high)
        for parameter in method.parameters
    }
    if based:
        recipe["base_model"] = chosen[-1]

    def source(depth: int | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{"model": name} for name in chosen]
        for item in found:
            if depth is not None:
                first = draw(st.integers(0, 3 - depth))
                item["layer_range"] = [first, first + depth]
            if draw(st.booleans()):
                item["parameters"] = draw(parameters)
        return found

    if draw(st.booleans()) and "c" not in chosen:
        found = {"models": source(None)}
    else:
        depths = draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
        found = {"slices": [{"sources": source(depth)} for depth in depths]}
    return recipe | (found if draw(st.booleans()) else {"modules": {"default": found}})


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    return sound(draw) if draw(st.integers(0, 2)) else broken(draw)


def with_paths(value: Any, folder: str) -> Any:
    if isinstance(value, list):
        return [with_paths(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    named = ("model", "base_model")
    return {
        key: f"{folder}/{item}"
        if key in named and item in list("abcd")
        else with_paths(item, folder)
        for key, item in value.items()
    }


def check_plan(plan: ws.MergePlan, models: dict[str, ws.Checkpoint]) -> None:
    """Every tensor once, with sources that are there and fit; every parameter has a value."""
    method = ws.methods()[plan.method]
    opened = [models[model.path] for model in plan.models]
    assert len({tensor.name for tensor in plan.tensors}) == len(plan.tensors)
    for tensor in plan.tensors:
        assert tensor.sources
        for source in tensor.reads:
            info = opened[source.model].info(source.name)
            assert (info.dtype, tuple(info.shape)) == (source.dtype, tensor.shape)
            found, wanted = layer_of(source.name), layer_of(tensor.name)
            assert (found and found[2]) == (wanted and wanted[2])
        if tensor.action == "copy":
            assert (tensor.settings, tensor.base) == (None, None)
            continue
        count, most = len(tensor.sources), method.max_models
        assert method.min_models <= count + (method.base == "joins")
        assert most is None or count <= most
        assert (tensor.base is not None) >= (method.base == "required")
        assert tensor.settings is not None
        assert method.check(tensor.settings) is None
        assert len(tensor.settings.per_model) == count
        for parameter in method.parameters:
            if parameter.required:
                each = (
                    tensor.settings.per_model if parameter.per_model else [tensor.settings.shared]
                )
                values = [row[parameter.name] for row in each]
                assert [parameter.problem(value) for value in values] == [None] * len(values)
    stacks: dict[str, set[int]] = {}
    for tensor in plan.tensors:
        found = layer_of(tensor.name)
        if found:
            stacks.setdefault(found[0], set()).add(found[1])
    assert all(numbers == set(range(len(numbers))) for numbers in stacks.values())


def planned(recipe: Any, **keys: Any) -> ws.MergePlan | None:
    """A plan, or None where an error of ours says what is wrong."""
    told = ""
    try:
        return ws.plan_merge(recipe, **keys)
    except (RecipeError, ArgumentError) as error:
        told = str(error)
    assert all(line.strip() for line in told.split("\n"))
    return None


@given(recipe=recipes(), lenient=st.booleans())
def test_a_recipe_is_refused_by_name_or_gives_a_legal_plan(
    recipe: dict[str, Any], lenient: bool, models: dict[str, ws.Checkpoint]
) -> None:
    """Nothing else than the errors of ours, and every problem is a sentence."""
    folder = str(Path(next(iter(models))).parent)
    plan = planned(with_paths(recipe, folder), lenient=lenient)
    if plan is None:
        return
    check_plan(plan, models)
    assert pickle.loads(pickle.dumps(plan)) == plan
    json.dumps(plan.to_json())


@given(documents=st.lists(recipes(), min_size=2, max_size=3), data=st.data())
def test_several_documents_are_refused_by_name_or_give_legal_plans(
    documents: list[dict[str, Any]],
    data: st.DataObject,
    models: dict[str, ws.Checkpoint],
) -> None:
    """Whatever uses whatever."""
    folder = str(Path(next(iter(models))).parent)
    names = ["one", "two", "three"]
    for recipe, own in zip(documents, names, strict=False):
        recipe["name"] = own
        listed = recipe.get("models")
        if isinstance(listed, list) and listed and isinstance(listed[0], dict):
            listed[0]["model"] = data.draw(st.sampled_from(["a", "b", *names]))
    text = yaml.safe_dump_all([with_paths(recipe, folder) for recipe in documents])
    plan = planned(text)
    if plan is not None:
        assert all(stage.tensors for _, stage in plan.stages)
        assert plan.recipe == text


@given(
    st.dictionaries(st.sampled_from(["merge_method", "models", "slices", "modules", "dtype"]), junk)
)
def test_junk_under_every_key_is_refused_by_name(recipe: dict[str, Any]) -> None:
    """Whatever stands there."""
    with pytest.raises((RecipeError, ArgumentError)):
        ws.plan_merge(recipe)

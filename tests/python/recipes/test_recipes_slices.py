"""Slices and modules: outputs that are put together from layers, without a table of architectures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import RecipeError

Make = Callable[..., Path]
Tensors = dict[str, np.ndarray]


def llama(seed: int, layers: int, *, prefix: str = "model.", head: bool = True) -> Tensors:
    """A tiny model: embeddings, layers of two tensors, a last norm, a head."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (6, 3)}
    for layer in range(layers):
        shapes[f"{prefix}layers.{layer}.mlp.weight"] = (3, 3)
        shapes[f"{prefix}layers.{layer}.norm.weight"] = (3,)
    shapes[f"{prefix}norm.weight"] = (3,)
    if head:
        shapes["lm_head.weight"] = (6, 3)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def config(layers: int, **more: Any) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "vocab_size": 6, **more}


def source(model: object, first: int, end: int, **parameters: Any) -> dict[str, Any]:
    return {"model": str(model), "layer_range": [first, end], "parameters": parameters}


def merged(recipe: Any, out: Path) -> Tensors:
    ws.merge_checkpoints(recipe, out)
    with ws.open_checkpoint(out) as model:
        return dict(model)


def problems(recipe: Any, **keys: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        ws.plan_merge(recipe, **keys)
    return "\n".join(caught.value.problems)


def test_a_stack_of_two_models_has_running_layers_and_both_ends(
    make_model: Make, tmp_path: Path
) -> None:
    """Embeddings of the first slice's model, norm and head of the last's, layers that run on."""
    one, two = llama(1, 4), llama(2, 3)
    a, b = (
        make_model("a", one, config=config(4)),
        make_model("b", two, config=config(3)),
    )
    slices = [{"sources": [source(a, 0, 3)]}, {"sources": [source(b, 1, 3)]}]
    slices.append({"sources": [source(b, 1, 2)]})
    found = merged({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    expected = {"model.embed_tokens.weight": one["model.embed_tokens.weight"]}
    for number, (model, layer) in enumerate(
        [(one, 0), (one, 1), (one, 2), (two, 1), (two, 2), (two, 1)]
    ):
        for part in ("mlp.weight", "norm.weight"):
            expected[f"model.layers.{number}.{part}"] = model[f"model.layers.{layer}.{part}"]
    expected |= {name: two[name] for name in ("model.norm.weight", "lm_head.weight")}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["num_hidden_layers"] == 6


def test_sources_of_a_slice_may_have_offsets_and_weights_of_their_own(
    make_model: Make, tmp_path: Path
) -> None:
    """Layer k of each source is merged with layer k of the others."""
    one, two = llama(1, 4), llama(2, 6)
    a, b = make_model("a", one), make_model("b", two)
    slices: list[dict[str, Any]] = [
        {"sources": [source(a, 0, 2, weight=[0, 1]), source(b, 3, 5, weight=1)]},
        {
            "sources": [source(b, 5, 6), source(a, 3, 4, weight=3)],
            "parameters": {"weight": 1},
        },
    ]
    recipe = {"merge_method": "linear", "slices": slices, "parameters": {"weight": 9}}
    found = merged(recipe, tmp_path / "out")
    part = "mlp.weight"
    for number, ((first, share), (second, other)) in enumerate(
        [
            ((one[f"model.layers.0.{part}"], 0), (two[f"model.layers.3.{part}"], 1)),
            ((one[f"model.layers.1.{part}"], 1), (two[f"model.layers.4.{part}"], 1)),
            ((two[f"model.layers.5.{part}"], 1), (one[f"model.layers.3.{part}"], 3)),
        ]
    ):
        wanted = (share * first + other * second) / (share + other)
        np.testing.assert_allclose(found[f"model.layers.{number}.{part}"], wanted, rtol=1e-6)
    head = (two["lm_head.weight"] + 3 * one["lm_head.weight"]) / 4
    np.testing.assert_allclose(found["lm_head.weight"], head, rtol=1e-6)


def test_a_slice_may_have_a_base_of_its_own(make_model: Make, tmp_path: Path) -> None:
    """It stands above the recipe's, which gives configuration and tokenizer."""
    tensors = [llama(seed, 2) for seed in range(3)]
    a, b, c = (
        make_model(name, t, config=config(2)) for name, t in zip("abc", tensors, strict=True)
    )
    slices: list[dict[str, Any]] = [
        {"sources": [source(model, layer, layer + 1, weight=0.5) for model in (a, b, c)]}
        for layer in range(2)
    ]
    slices[1] |= {"base_model": str(b)}
    recipe = {"merge_method": "task_arithmetic", "base_model": str(a), "slices": slices}
    plan = ws.plan_merge(recipe)
    bases = {t.name: t.base.model for t in plan.tensors if t.base is not None}
    assert bases["model.layers.0.mlp.weight"] == bases["model.embed_tokens.weight"] == 0
    assert bases["model.layers.1.mlp.weight"] == bases["lm_head.weight"] == 1
    found = merged(recipe, tmp_path / "out")
    x, y, z = (t["model.layers.1.mlp.weight"] for t in tensors)
    expected = y + 0.5 * (x - y) + 0.5 * (z - y)
    np.testing.assert_allclose(found["model.layers.1.mlp.weight"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([[3, 1]], "slices[0].sources[0].layer_range: is reversed: [3, 1]"),
        ([[1, 1]], "slices[0].sources[0].layer_range: is empty: [1, 1]"),
        ([[-1, 1]], "slices[0].sources[0].layer_range: begins below 0: [-1, 1]"),
        ([[0, 5]], "layer_range: MODEL has 4 layers, and no layer 4"),
        (
            [[0]],
            "expected the first layer and the one after the last, such as [0, 16], got [0]",
        ),
        (
            [None],
            "expected the first layer and the one after the last, such as [0, 16], got None",
        ),
        ([["0", 2]], "expected the first layer and the one after the last"),
        ([[True, 2]], "expected the first layer and the one after the last"),
        (
            [[0, 2], [0, 3]],
            "slices[0]: the sources have 2, 3 layers; all of a slice need",
        ),
        ([[0, 10**9]], "layer_range: ends above 100,000, the most layers that are expected"),
        ([[0, 10**29]], "layer_range: ends above 100,000, the most layers that are expected"),
    ],
)
def test_ranges_that_cannot_be_are_refused(
    ranges: list[Any], message: str, make_model: Make
) -> None:
    """Each with its place and what is wrong."""
    paths = [make_model(name, llama(1, 4)) for name in "ab"]
    sources = [
        {"model": str(path), "layer_range": pair, "parameters": {"weight": 1}}
        for path, pair in zip(paths, ranges, strict=False)
    ]
    found = problems({"merge_method": "linear", "slices": [{"sources": sources}]})
    assert message.replace("MODEL", str(paths[0])) in found


def test_more_layers_or_modules_than_any_model_has_are_refused(make_model: Make) -> None:
    """Before anything is counted out."""
    a = make_model("a", llama(1, 4))
    slices = [{"sources": [source(a, 0, 60_000)]}] * 2
    found = problems({"merge_method": "passthrough", "slices": slices})
    assert "slices: expected at most 100,000 layers, got 120,000" in found
    modules = {f"m{i}": {"models": [{"model": str(a)}]} for i in range(101)}
    found = problems({"merge_method": "passthrough", "modules": modules})
    assert "modules: expected at most 100 modules, got 101" in found


def test_the_same_model_twice_in_a_slice_is_refused_and_in_two_is_not(
    make_model: Make,
) -> None:
    """Layers may be repeated, and not averaged with themselves."""
    a = make_model("a", llama(1, 3))
    slices = [{"sources": [source(a, 0, 2, weight=1), source(a, 1, 3, weight=1)]}]
    found = problems({"merge_method": "linear", "slices": slices})
    assert "slices[0].sources[1].model" in found
    assert "is slices[0].sources[0] again" in found
    slices = [
        {"sources": [source(a, 0, 2, weight=1)]},
        {"sources": [source(a, 1, 3, weight=1)]},
    ]
    assert ws.plan_merge({"merge_method": "linear", "slices": slices}).counts["merge"] == 11


def test_a_slice_without_the_base_is_refused_where_the_method_needs_it(
    make_model: Make,
) -> None:
    """Which layers of the base would be meant is not written."""
    a, b = make_model("a", llama(1, 3)), make_model("b", llama(2, 3))
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(b),
        "slices": [{"sources": [source(a, 0, 2, weight=1)]}],
    }
    found = problems(recipe)
    assert "slices[0].sources: the base model" in found
    assert "list it with its layer_range" in found


def test_a_residual_weight_is_remarked(make_model: Make) -> None:
    """mergekit reads it and does nothing with it."""
    a = make_model("a", llama(1, 3))
    slices = [{"sources": [source(a, 0, 2)], "residual_weight": 0.5}]
    plan = ws.plan_merge({"merge_method": "passthrough", "slices": slices})
    assert plan.warnings == ("slices[0].residual_weight: has no effect, as in mergekit",)


def test_lists_with_an_entry_for_each_layer_are_cut_and_joined(
    make_model: Make,
) -> None:
    """From the configuration of the model that each layer is from; others stay as they are."""
    a = make_model("a", llama(1, 3), config=config(3, layer_types=["x", "y", "z"], other=[1, 2]))
    b = make_model("b", llama(2, 2), config=config(2, layer_types=["p", "q"]))
    slices = [{"sources": [source(a, 1, 3)]}, {"sources": [source(b, 0, 2)]}]
    plan = ws.plan_merge({"merge_method": "passthrough", "slices": slices})
    written = json.loads(plan.config or "")
    assert written["num_hidden_layers"] == 4
    assert written["layer_types"] == ["y", "z", "p", "q"]
    assert written["other"] == [1, 2]


@pytest.mark.parametrize("key", ["n_layer", "num_layers", "n_layers"])
def test_other_names_for_the_number_of_layers_are_known(key: str, make_model: Make) -> None:
    """GPT-2 and others have names of their own; a wrong number is told."""
    a = make_model("a", llama(1, 3), config={key: 3})
    slices = [{"sources": [source(a, 0, 3)]}, {"sources": [source(a, 0, 3)]}]
    plan = ws.plan_merge({"merge_method": "passthrough", "slices": slices})
    assert json.loads(plan.config or "")[key] == 6
    b = make_model("b", llama(1, 3), config={key: 99})
    slices = [{"sources": [source(b, 0, 2)]}]
    plan = ws.plan_merge({"merge_method": "passthrough", "slices": slices})
    assert "holds no number of layers that is 3" in plan.warnings[0]


T5 = {"num_layers": 3, "num_decoder_layers": 3}
BART = {"num_hidden_layers": 3, "encoder_layers": 3, "decoder_layers": 3}


@pytest.mark.parametrize(
    ("said", "written"),
    [
        (T5, {"num_layers": 5, "num_decoder_layers": 2}),
        (BART, {"num_hidden_layers": 5, "encoder_layers": 5, "decoder_layers": 2}),
    ],
    ids=["t5", "bart"],
)
@pytest.mark.parametrize("sides", [("encoder", "decoder"), ("decoder", "encoder")])
def test_encoder_and_decoder_have_numbers_of_layers_of_their_own(
    sides: tuple[str, ...], said: dict[str, int], written: dict[str, int], make_model: Make
) -> None:
    """One side that is put together anew does not change the other's."""
    weights = llama(1, 3, prefix="encoder.", head=False) | llama(
        2, 3, prefix="decoder.", head=False
    )
    a = make_model("a", weights, config=said)
    slices = {
        "encoder": [{"sources": [source(a, 0, 3)]}, {"sources": [source(a, 1, 3)]}],
        "decoder": [{"sources": [source(a, 0, 2)]}],
    }
    modules: dict[str, Any] = {side: {"slices": slices[side]} for side in sides}
    plan = ws.plan_merge({"merge_method": "passthrough", "modules": modules})
    assert json.loads(plan.config or "") | written == json.loads(plan.config or "")
    assert not [text for text in plan.warnings if text.startswith("config.json")]
    modules["decoder"] = {"models": [{"model": str(a)}]}
    plan = ws.plan_merge({"merge_method": "passthrough", "modules": modules})
    decoder = {key: 3 for key in written if "decoder" in key}
    assert json.loads(plan.config or "") | decoder == json.loads(plan.config or "")


def test_a_number_of_layers_that_two_stacks_share_is_told(make_model: Make) -> None:
    """No number fits both, so the person has to say it."""
    weights = llama(1, 3, prefix="encoder.", head=False) | llama(
        2, 3, prefix="decoder.", head=False
    )
    a = make_model("a", weights, config={"num_layers": 3})
    modules = {
        "encoder": {"slices": [{"sources": [source(a, 0, 2)]}]},
        "decoder": {"slices": [{"sources": [source(a, 0, 1)]}]},
    }
    plan = ws.plan_merge({"merge_method": "passthrough", "modules": modules})
    (told,) = [text for text in plan.warnings if text.startswith("config.json")]
    assert "num_layers is the number of layers of several stacks" in told


def vision_model(seed: int) -> Tensors:
    tower = llama(seed + 50, 2, prefix="vision_tower.", head=False)
    text = llama(seed, 3, prefix="language_model.model.", head=False)
    rng = np.random.default_rng(seed)
    more = {
        "language_model.lm_head.weight": rng.normal(size=(6, 3)).astype(np.float32),
        "multi_modal_projector.weight": rng.normal(size=(3, 3)).astype(np.float32),
    }
    return {**tower, **text, **more}


VISION = {
    "vision_config": {"num_hidden_layers": 2},
    "text_config": {"num_hidden_layers": 3},
}


def test_models_with_several_stacks_need_modules_for_slices(make_model: Make) -> None:
    """models merges them whole; slices says what to write."""
    a, b = (make_model(name, vision_model(i)) for i, name in enumerate("ab"))
    models = [{"model": str(path), "parameters": {"weight": [1, 2]}} for path in (a, b)]
    plan = ws.plan_merge({"merge_method": "linear", "models": models})
    assert plan.counts == {"merge": len(vision_model(0)), "copy": 0}
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source(a, 0, 2)]}]}
    found = problems(recipe)
    assert "has several stacks of layers: language_model.model.layers, vision_tower.layers" in found
    assert "give each its slices under modules" in found
    flat = make_model("flat", {"w": np.ones(3, np.float32)})
    recipe = {
        "merge_method": "passthrough",
        "slices": [{"sources": [source(flat, 0, 2)]}],
    }
    assert "has no layers: no tensor's name holds a number between dots" in problems(recipe)


@pytest.mark.parametrize("name", ["text_decoder", "language_model"])
def test_modules_are_merged_each_in_its_own_way(
    name: str, make_model: Make, tmp_path: Path
) -> None:
    """Prefixes of tensor names, or mergekit's words; what belongs to none is copied, and told."""
    one, two = vision_model(1), vision_model(2)
    a, b = make_model("a", one, config=VISION), make_model("b", two, config=VISION)
    recipe = {
        "merge_method": "linear",
        "modules": {
            name: {
                "slices": [
                    {"sources": [source(a, 0, 2), source(b, 1, 3, weight=3)]},
                    {"sources": [source(b, 2, 3)]},
                ],
                "parameters": {"weight": 1},
            },
            "vision_tower": {
                "models": [
                    {"model": str(a)},
                    {"model": str(b), "parameters": {"weight": 3}},
                ]
            },
        },
        "parameters": {"weight": 2},
    }
    plan = ws.plan_merge(recipe)
    assert plan.warnings[0].startswith("modules: what belongs to none is copied from ")
    found = merged(recipe, tmp_path / "out")
    part = "vision_tower.layers.1.mlp.weight"
    np.testing.assert_allclose(found[part], (2 * one[part] + 3 * two[part]) / 5, rtol=1e-5)
    part = "language_model.model.layers.{}.mlp.weight"
    wanted = (one[part.format(1)] + 3 * two[part.format(2)]) / 4
    np.testing.assert_allclose(found[part.format(1)], wanted, rtol=1e-5)
    np.testing.assert_array_equal(found[part.format(2)], two[part.format(2)])
    kept = "multi_modal_projector.weight"
    np.testing.assert_array_equal(found[kept], one[kept])
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["text_config"]["num_hidden_layers"] == 3
    assert written["vision_config"]["num_hidden_layers"] == 2


def test_the_part_of_a_configuration_is_that_of_the_stack(make_model: Make) -> None:
    """Where both have as many layers, the words of their names decide."""
    said = {part: {"num_hidden_layers": 2} for part in ("vision_config", "text_config")}
    tensors = llama(1, 2, prefix="vision_tower.") | llama(2, 2, prefix="language_model.")
    a = make_model("a", tensors, config=said)
    for module, part in (
        ("vision_tower", "vision_config"),
        ("language_model", "text_config"),
    ):
        slices = [{"sources": [source(a, 0, 2)]}, {"sources": [source(a, 1, 2)]}]
        plan = ws.plan_merge(
            {"merge_method": "passthrough", "modules": {module: {"slices": slices}}}
        )
        written = json.loads(plan.config or "")
        expected = {key: {"num_hidden_layers": 3 if key == part else 2} for key in said}
        assert {key: written[key] for key in said} == {
            key: value | {"torch_dtype": "float32"} if "torch_dtype" in written[key] else value
            for key, value in expected.items()
        }


def test_a_module_that_no_tensor_belongs_to_is_refused(make_model: Make) -> None:
    """With the nearest first part of a name."""
    a = make_model("a", vision_model(1))
    modules = {"vision_towr": {"models": [{"model": str(a)}]}}
    found = problems({"merge_method": "passthrough", "modules": modules})
    assert "modules.vision_towr: no tensor's name begins with 'vision_towr'" in found
    assert "did you mean 'vision_tower'?" in found


def test_mixtures_of_experts_and_plain_files_are_told_from_their_names(
    make_model: Make, tmp_path: Path
) -> None:
    """The first number is the layer, whatever numbers follow; a single file does as well."""
    names = [f"h.{layer}.experts.{i}.w" for layer in range(3) for i in range(2)]
    tensors = {name: np.full(2, i, np.float32) for i, name in enumerate(names)}
    path = tmp_path / "moe.safetensors"
    ws.save_checkpoint(path, tensors | {"wte.weight": np.zeros((4, 2), np.float32)})
    slices = [{"sources": [source(path, 2, 3)]}, {"sources": [source(path, 0, 1)]}]
    found = merged({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    values = {name: array[0] for name, array in found.items() if name.startswith("h.")}
    assert values == {
        "h.0.experts.0.w": 4,
        "h.0.experts.1.w": 5,
        "h.1.experts.0.w": 0,
        "h.1.experts.1.w": 1,
    }


def test_the_plan_shows_where_each_tensor_is_from(make_model: Make) -> None:
    """As JSON and as HTML: the models, and the tensors' names in them."""
    a = make_model("a", llama(1, 3))
    plan = ws.plan_merge(
        {"merge_method": "passthrough", "slices": [{"sources": [source(a, 2, 3)]}]}
    )
    rows: Any = {row["name"]: row for row in plan.to_json()["tensors"]}  # type: ignore[attr-defined]
    assert rows["model.layers.0.mlp.weight"]["reads"] == [
        {"model": 0, "name": "model.layers.2.mlp.weight"}
    ]
    assert "<td>0: model.layers.2.mlp.weight</td>" in plan._repr_html_()

"""Tensors that only some models have: tied heads, leniency, statistics; never dropped in silence."""

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
Recipe = Callable[..., dict[str, Any]]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tensors(seed: int, *names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(5, 3)).astype(np.float32) for name in names}


def problems(recipe: Any, **keys: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        ws.plan_merge(recipe, **keys)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize("tied", [0, 1])
def test_the_embeddings_stand_for_a_head_that_is_tied_to_them(
    tied: int, make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """Whichever model ties them, the output has a head, and says that it is not tied."""
    one, two = tensors(1, EMBED, HEAD), tensors(2, EMBED)
    paths = [
        make_model("a", one, config={"tie_word_embeddings": False}),
        make_model("b", two, config={"tie_word_embeddings": True}),
    ]
    ws.merge_checkpoints(linear(*(paths if tied else paths[::-1])), tmp_path / "out")
    with ws.open_checkpoint(tmp_path / "out") as merged:
        np.testing.assert_allclose(merged[HEAD], (one[HEAD] + two[EMBED]) / 2, rtol=1e-6)
        np.testing.assert_allclose(merged[EMBED], (one[EMBED] + two[EMBED]) / 2, rtol=1e-6)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False


def test_a_tie_that_is_said_in_a_part_of_the_configuration_is_undone_there(
    make_model: Make, linear: Recipe
) -> None:
    """And a configuration that does not say it ties them, as the library has it."""
    nested = {"text_config": {"tie_word_embeddings": True}}
    a = make_model("a", tensors(1, EMBED), config=nested)
    b = make_model("b", tensors(2, EMBED, HEAD), config={})
    written = json.loads(ws.plan_merge(linear(a, b)).config or "")
    assert written["tie_word_embeddings"] is False
    assert written["text_config"]["tie_word_embeddings"] is False


def test_models_that_all_tie_their_heads_stay_tied(make_model: Make, linear: Recipe) -> None:
    """Nothing is added."""
    said = {"tie_word_embeddings": True}
    paths = [make_model(name, tensors(1, EMBED), config=said) for name in "ab"]
    plan = ws.plan_merge(linear(*paths))
    assert [tensor.name for tensor in plan.tensors] == [EMBED]
    assert json.loads(plan.config or "")["tie_word_embeddings"] is True


def test_a_head_that_is_lacking_and_not_tied_is_refused(make_model: Make, linear: Recipe) -> None:
    """The configuration says no, or there is no embedding, or there are several."""
    a = make_model("a", tensors(1, EMBED, HEAD))
    for name, held, said in (
        ("b", (EMBED,), {"tie_word_embeddings": False}),
        ("c", ("w",), None),
        ("d", ("x.embed_tokens.weight", "y.embed_tokens.weight"), None),
    ):
        other = make_model(name, tensors(2, *held), config=said)
        assert f"{other} lacks" in problems(linear(a, other))


def test_positions_are_no_embeddings_of_tokens(make_model: Make, linear: Recipe) -> None:
    """GPT-2 has both, and ties its head to the first."""
    names = ("wte.weight", "wpe.weight")
    a = make_model("a", tensors(1, *names, HEAD))
    b = make_model("b", tensors(2, *names))
    plan = ws.plan_merge(linear(a, b))
    (head,) = (tensor for tensor in plan.tensors if tensor.name == HEAD)
    assert [source.name for source in head.sources] == [HEAD, "wte.weight"]


@pytest.mark.parametrize(
    ("names", "twin"),
    [
        (("gpt_neox.embed_in.weight", "w"), "gpt_neox.embed_in.weight"),
        (("tok_embeddings.weight",), "tok_embeddings.weight"),
        (("shared.weight", "w"), "shared.weight"),
        (("model.embed_tokens.weight", "model.visual.pos_embed.weight"), EMBED),
        (("model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"), EMBED),
        (("word_embeddings.weight", "more_embed.weight"), "word_embeddings.weight"),
    ],
)
def test_the_embeddings_of_tokens_are_told_from_names_and_rows(
    names: tuple[str, ...], twin: str, make_model: Make, linear: Recipe
) -> None:
    """Of several families of models, without a table of them."""
    said = {"text_config": {"vocab_size": 5}}
    own = tensors(2, *names)
    own |= {"w": np.ones((2, 2), np.float32)} if "w" in names else {}
    a = make_model("a", own | tensors(1, HEAD), config=said)
    plan = ws.plan_merge(linear(a, make_model("b", own, config=said)))
    (head,) = (tensor for tensor in plan.tensors if tensor.name == HEAD)
    assert [source.name for source in head.sources] == [HEAD, twin]


def test_lenient_copies_what_some_models_lack_and_tells(
    make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """From the base, else from the first model that has it; strict refuses with the list."""
    one, two, three = (
        tensors(1, "w", "only_a"),
        tensors(2, "w", "both"),
        tensors(3, "w", "both"),
    )
    a, b, base = (
        make_model(name, held) for name, held in (("a", one), ("b", two), ("base", three))
    )
    recipe = linear(a, b, base_model=str(base)) | {"merge_method": "task_arithmetic"}
    found = problems(recipe)
    assert f"{a} lacks 1 tensor that {b} has: both" in found
    assert "with lenient (--lenient) what some models lack is copied" in found
    report = ws.merge_checkpoints(recipe, tmp_path / "out", lenient=True)
    assert (report.merged, report.copied) == (1, 2)
    assert report.warnings == (
        f"1 tensor that not every model has, copied as in {base}: both",
        f"1 tensor that not every model has, copied as in {a}: only_a",
    )
    with ws.open_checkpoint(tmp_path / "out") as merged:
        np.testing.assert_array_equal(merged["both"], three["both"])
        np.testing.assert_array_equal(merged["only_a"], one["only_a"])


def test_lenient_makes_unknown_words_warnings(make_model: Make, linear: Recipe) -> None:
    """Keys and parameters; values that cannot be used stay problems."""
    recipe = linear(make_model("a"), make_model("b"), surprise=1, parameters={"normalise": True})
    recipe["models"][0] |= {"parametrs": {}}
    assert problems(recipe).count("unknown") == 3
    assert "tokenizer: unknown key 'sorce'" in problems(recipe | {"tokenizer": {"sorce": 1}})
    assert "sorce" not in problems(recipe | {"tokenizer": {"sorce": 1}}, lenient=True)
    warnings = ws.plan_merge(recipe, lenient=True).warnings
    assert [w.split(":")[0] for w in warnings] == [
        "surprise",
        "models[0]",
        "parameters.normalise",
    ]
    assert "expected a number" in problems(
        recipe | {"parameters": {"weight": "x"}, "models": recipe["models"]},
        lenient=True,
    )


def test_layers_that_lack_a_tensor_in_one_model_are_refused(make_model: Make) -> None:
    """In slices too, by the name in the model that lacks it."""
    a = make_model("a", tensors(1, "h.0.w", "h.1.w", "h.1.v"))
    b = make_model("b", tensors(2, "h.0.w", "h.0.v", "h.1.w"))
    sources = [
        {"model": str(path), "layer_range": pair, "parameters": {"weight": 1}}
        for path, pair in ((a, [0, 1]), (b, [1, 2]))
    ]
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "slices": [{"sources": sources}],
    }
    assert ws.plan_merge(recipe).counts == {"merge": 1, "copy": 0}
    sources[0]["layer_range"] = [1, 2]
    assert f"{b} lacks 1 tensor that {a} has: h.1.v" in problems(recipe)
    plan = ws.plan_merge(recipe, lenient=True)
    assert {tensor.name: tensor.action for tensor in plan.tensors} == {
        "h.0.w": "merge",
        "h.0.v": "copy",
    }


def test_statistics_are_read_from_files_of_the_same_names(make_model: Make) -> None:
    """One checkpoint for each model, found like a model; a wrong one is told."""
    models = [make_model(name, tensors(i, "w", "v")) for i, name in enumerate("ab")]
    held = [make_model(f"{name}-fisher", tensors(i + 9, "w", "v")) for i, name in enumerate("ab")]
    entries = [
        {"model": str(model), "parameters": {"weight": 1, "fisher": str(file)}}
        for model, file in zip(models, held, strict=True)
    ]
    recipe = {"merge_method": "fisher", "models": entries}
    plan = ws.plan_merge(recipe)
    assert [model.path for model in plan.models] == [str(path) for path in (*models, *held)]
    for tensor in plan.tensors:
        assert [(s.model, s.name) for s in tensor.statistics] == [
            (2, tensor.name),
            (3, tensor.name),
        ]
    entries[1]["parameters"] = {"fisher": 3}
    assert "models[1].parameters.fisher: expected the path of a model, got 3" in problems(recipe)
    entries[1]["parameters"] = {"fisher": str(models[0].parent / "nowhere")}
    assert "models[1].parameters.fisher: there is no folder or file" in problems(recipe)
    entries[1]["parameters"] = {}
    assert f"fisher of {models[1]}: is missing, and fisher needs it" in problems(recipe)
    other = make_model("other", {"w": np.ones((5, 3), np.float32), "v": np.ones(3, np.float32)})
    entries[1]["parameters"] = {"fisher": str(other)}
    assert "expected floating-point numbers of the model's own shapes: v" in problems(recipe)
    entries[1]["parameters"] = {"fisher": str(make_model("less", tensors(1, "w")))}
    assert "lacks 1 tensor that" in problems(recipe)


def test_a_tensor_of_a_vocabulary_says_what_to_add(make_model: Make, linear: Recipe) -> None:
    """Row counts differ: the recipe needs a tokenizer."""
    a = make_model("a", {EMBED: np.ones((5, 2), np.float32)})
    b = make_model("b", {EMBED: np.ones((6, 2), np.float32)})
    assert "add tokenizer_source: union (or base) to the recipe" in problems(linear(a, b))

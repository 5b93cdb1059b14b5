"""What users get wrong in recipes and paths: each is an error of ours that says what to do."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws
from weightshare.cli.exit_codes import exit_code
from weightshare.errors import ArgumentError, OutputError, RecipeError

Make = Callable[..., Path]
Recipe = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("method", [["linear"], {"linear": 1}, 3, True])
def test_a_method_that_is_no_name_is_a_problem(
    method: object, make_model: Make, linear: Recipe
) -> None:
    """A list or a mapping is told like any other wrong value."""
    recipe = linear(make_model("a")) | {"merge_method": method}
    with pytest.raises(RecipeError, match="merge_method: expected a name, got"):
        ws.plan_merge(recipe)


@pytest.mark.parametrize("name", ["~nouser123/x", "x" * 300, "a/" + "y" * 300, "a\0b"])
def test_a_model_that_cannot_exist_is_a_problem(name: str, linear: Recipe) -> None:
    """Unknown users and names that are too long are told as not found."""
    with pytest.raises(RecipeError, match="there is no folder or file"):
        ws.plan_merge(linear(Path(name)))


def test_a_model_in_a_closed_folder_is_a_bad_input(
    make_model: Make, linear: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not permitted is another thing than not there."""
    path, real = make_model("a"), os.stat

    def closed(name: Any, **keys: Any) -> os.stat_result:
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, **keys)

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(RecipeError, match=r"E102[\s\S]*Permission denied") as caught:
        ws.plan_merge(linear(path))
    assert exit_code(caught.value) == 3


def test_a_tokenizer_that_cannot_be_read_is_found_by_the_plan(
    make_model: Make, linear: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any weight is read, and as a bad input file."""
    path, real = make_model("a", files={"tokenizer.json": "{}"}), builtins.open

    def closed(name: Any, *arguments: Any, **keys: Any) -> Any:
        if str(name).endswith("tokenizer.json"):
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, *arguments, **keys)

    monkeypatch.setattr(builtins, "open", closed)
    with pytest.raises(RecipeError, match=r"E102[\s\S]*tokenizer.json") as caught:
        ws.plan_merge(linear(path))
    assert exit_code(caught.value) == 3
    assert ws.plan_merge(linear(path), copy_tokenizer=False).copies == ()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".safetensors"])
def test_an_output_with_too_long_a_name_is_an_output_error(
    name: str, make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """The folder and the single file alike, before anything is computed."""
    with pytest.raises(OutputError, match="too long"):
        ws.merge_checkpoints(linear(make_model("a")), tmp_path / name)


def test_an_empty_path_is_not_the_current_folder(
    make_model: Make, linear: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as the output nor as the recipe."""
    monkeypatch.chdir(tmp_path)
    recipe = linear(make_model("a"))
    with pytest.raises(ArgumentError, match="out: expected a path, got ''"):
        ws.merge_checkpoints(recipe, "", overwrite=True)
    with pytest.raises(RecipeError, match="recipe: expected a path"):
        ws.plan_merge("")
    assert os.listdir(tmp_path) == ["a"]


def test_a_gradient_of_booleans_is_refused(make_model: Make, linear: Recipe) -> None:
    """There is nothing between true and false."""
    recipe = linear(make_model("a"), parameters={"normalize": [True, False]})
    with pytest.raises(RecipeError, match="normalize: expected true or false, got the gradient"):
        ws.plan_merge(recipe)


def test_a_filter_that_matches_nothing_is_a_warning(make_model: Make, linear: Recipe) -> None:
    """It is probably a misspelt name."""
    recipe = linear(make_model("a"), make_model("b"))
    recipe["models"][0]["parameters"]["weight"] = [
        {"filter": "mpl", "value": 2},
        {"value": 1},
    ]
    (warning,) = ws.plan_merge(recipe).warnings
    assert warning.endswith("the filter 'mpl' matches no tensor")


def test_weights_whose_sum_overflows_are_told_so(make_model: Make, linear: Recipe) -> None:
    """They do not sum to zero."""
    recipe = linear(make_model("a"), make_model("b"), parameters={})
    for entry in recipe["models"]:
        entry["parameters"]["weight"] = 1e308
    with pytest.raises(RecipeError, match=r"sum of the weights 1e\+308, 1e\+308 overflows"):
        ws.plan_merge(recipe)


@pytest.mark.parametrize(
    ("name", "word"),
    [("lm_head.weight", "tie_word_embeddings"), ("w.lora_A.weight", "LoRA adapter")],
)
def test_tied_heads_and_adapters_are_told_with_a_remedy(
    name: str, word: str, make_model: Make, linear: Recipe
) -> None:
    """Both ways round: the first model has the tensor, or the second."""
    one, two = {"w": np.ones(2)}, {"w": np.ones(2), name: np.ones(2)}
    paths = make_model("a", one), make_model("b", two)
    for order in (paths, paths[::-1]):
        with pytest.raises(RecipeError, match=word):
            ws.plan_merge(linear(*order))


def test_a_file_that_is_too_large_to_copy_is_told(make_model: Make, linear: Recipe) -> None:
    """It is not left out in silence."""
    path = make_model("a")
    with open(path / "big.dat", "wb") as file:
        file.truncate(200_000_001)
    plan = ws.plan_merge(linear(path))
    assert plan.copies == ()
    assert "big.dat: is larger than 200 MB and not copied" in plan.warnings[0]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("```yaml\nmerge_method: linear\n```\n", "only what stands between the lines of ```"),
        ("merge_method: linear\nparameters:\n\tweight: 1\n", "indent with spaces"),
    ],
)
def test_text_that_is_no_yaml_is_told_with_a_remedy(text: str, remedy: str) -> None:
    """A model card's fence and a tab are what people paste."""
    with pytest.raises(RecipeError, match=r"line [13]") as caught:
        ws.plan_merge(text)
    assert remedy in str(caught.value)


def test_models_in_another_form_are_shown(make_model: Make) -> None:
    """Names without ``model:``, or as keys: the message shows what came."""
    a = str(make_model("a"))
    for models, got in (([a], f"got {a!r}; begin with model:"), ({a: 1}, f"got {{{a!r}: 1}}")):
        with pytest.raises(RecipeError) as caught:
            ws.plan_merge({"merge_method": "linear", "models": models})
        assert got in str(caught.value)


def test_a_missing_parameter_is_told_with_its_place(make_model: Make) -> None:
    """``t`` under a model is not where slerp looks; a weight may stand in both places."""
    a, b = ({"model": str(make_model(name)), "parameters": {"t": 0.5}} for name in "ab")
    recipe = {"merge_method": "slerp", "models": [a, b], "base_model": a["model"]}
    with pytest.raises(RecipeError, match=r"t: is missing, .*; set it under parameters of the rec"):
        ws.plan_merge(recipe)
    with pytest.raises(RecipeError, match="; set it under parameters or under the model"):
        ws.plan_merge({"merge_method": "linear", "models": [{"model": a["model"]}]})

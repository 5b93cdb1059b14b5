"""What a recipe cannot ask of vocabularies, and how it is told."""

from __future__ import annotations

import sys

import pytest

from vocabularies import A, B, model_maker, planned, told


@pytest.fixture
def model(make_model):
    return model_maker(make_model)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"tokenizer_source": "union", "tokenizer": {}}, "older form of tokenizer.source"),
        ({"tokenizer_source": "onion"}, "'onion' is none of the models: a, b"),
        ({"tokenizer_source": 5}, "tokenizer_source: expected the path of a model"),
        ({"tokenizer": "union"}, "tokenizer: expected the keys source, tokens"),
        ({"tokenizer": {"sauce": "union"}}, "unknown key 'sauce'; did you mean 'source'?"),
        ({"tokenizer": {"pad_to_multiple_of": 0}}, "pad_to_multiple_of: expected a whole number"),
        ({"tokenizer": {"pad_to_multiple_of": True}}, "pad_to_multiple_of: expected"),
        ({"tokenizer": {"pad_to_multiple_of": 10**9}}, "1,048,576"),
        ({"tokenizer": {"tokens": ["x"]}}, "tokenizer.tokens: expected tokens and"),
        ({"tokenizer": {"tokens": {5: {"source": "a"}}}}, "in quotation marks"),
        ({"tokenizer": {"tokens": {"": {"source": "a"}}}}, "expected a text as the token"),
        ({"tokenizer": {"tokens": {"x": "a"}}}, "tokens['x']: expected the keys source"),
        (
            {"tokenizer": {"tokens": {"x": {"source": "a", "forced": True}}}},
            "did you mean 'force'?",
        ),
        ({"tokenizer": {"tokens": {"x": {"source": "a", "force": 1}}}}, "force: expected true"),
        ({"tokenizer": {"tokens": {"x": {"force": True}}}}, "force needs a source"),
        (told(kind="zeros"), "expected zero or model_token, got 'zeros'"),
        (told(kind="zero", model="a"), "unknown key 'model'"),
        (told(kind="model_token", model="a"), "expected one of token and token_id"),
        (told(kind="model_token", model="a", token="no", token_id=1), "and not both"),
        (told(kind="model_token", token="no"), "model: is missing"),
        (told(kind="model_token", model="a", token=5), "token: expected a text"),
        (told(kind="model_token", model="a", token_id=-1), "token_id: expected a whole number"),
        (told(kind="model_token", model="a", token_id=4), "a has 4 rows, none of number 4"),
        (told(kind="model_token", model="a", token="both"), "a has no token 'both'; give a token"),
        (told(source="base"), "a has no token 'new'; tell a model that has it"),
        (told(source="b"), "b has no token 'new'"),
        (told(source="d"), "'d' is none of the models"),
    ],
)
def test_what_cannot_be_is_told_while_planning(model, recipe, said):
    paths = [model("a", A), model("b", B)]
    vocabulary, _, problems, _ = planned(recipe, *paths, base=0)
    assert vocabulary is None
    assert len(problems) == 1
    assert said in problems[0]
    assert problems[0].startswith("tokenizer")


def test_all_problems_are_told_together(model):
    recipe = {
        "tokenizer": {
            "tokens": {
                "p": {"source": "base"},
                "q": {"source": {"kind": "model_token", "model": "b", "token_id": 77}},
            }
        }
    }
    *_, problems, _ = planned(recipe, model("a", A), model("b", B), base=0)
    assert len(problems) == 2
    damaged = [model("c", A), model("d", B)]
    for path in damaged:
        (path / "tokenizer.json").write_bytes(b"\xff")
    *_, problems, _ = planned({"tokenizer_source": "union"}, *damaged)
    assert len(problems) == 2
    assert all("is not UTF-8" in problem for problem in problems)


def test_the_library_is_asked_for_only_when_a_tokenizer_changes(model, monkeypatch):
    paths = [model("a", A), model("b", B)]
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    *_, problems, _ = planned({"tokenizer_source": "base"}, *paths)
    assert problems == []
    *_, problems, _ = planned({"tokenizer_source": "union"}, *paths)
    assert "pip install 'weightshare[language]'" in problems[0]

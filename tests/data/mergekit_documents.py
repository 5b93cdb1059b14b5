"""What recipes can say beside a method: slices, dtypes, tokenizers, adapters; and what is refused."""

from __future__ import annotations

from typing import Any

from mergekit_recipes import BRIEF, LONG, Recipe, model, recipe, source, weighted


def _slices() -> dict[str, Recipe]:
    def sliced(method: str, *slices: Any, **keys: Any) -> Recipe:
        made = [s if isinstance(s, dict) else {"sources": s} for s in slices]
        return {"merge_method": method, "slices": made, **keys}

    both = [source("a32", 0, 2, weight=0.6), source("b32", 1, 3, weight=0.4)]
    return {
        "stack": sliced("passthrough", [source("a32", 0, 2)], [source("b32", 1, 3)]),
        "stack-again": sliced(
            "passthrough",
            [source("a32", 0, 2)],
            [source("a32", 1, 2, scale=[{"filter": "down_proj", "value": 0}, {"value": 1}])],
            [source("a32", 1, 3)],
        ),
        "slices-offset": sliced(
            "linear", both, [source("a32", 2, 3, weight=1), source("b32", 0, 1, weight=2)]
        ),
        "slices-gradient": sliced(
            "slerp",
            [source("farx", 0, 3), source("fary", 0, 3)],
            [source("farx", 0, 1), source("fary", 2, 3)],
            base_model="MODELS/farx",
            parameters={"t": [0.2, 0.4, 0.9]},
        ),
        "slices-levels": sliced(
            "linear",
            {"sources": both, "parameters": {"normalize": False}},
            {
                "sources": [source("a32", 2, 3), source("b32", 2, 3, weight=0.9)],
                "parameters": {"weight": [{"filter": "mlp", "value": 0.3}]},
            },
            parameters={"weight": 0.7},
        ),
        "slices-base": sliced(
            "ties",
            {
                "sources": [source("a32", 0, 2, weight=1), source("base32", 0, 2)],
                "base_model": "MODELS/base32",
            },
            {
                "sources": [source("b32", 2, 3, weight=0.5), source("c32", 2, 3)],
                "base_model": "MODELS/c32",
            },
            base_model="MODELS/base32",
            parameters={"density": 0.5},
        ),
        "slices-fewer": sliced("passthrough", [source("a32", 0, 1)]),
    }


def _short_methods() -> dict[str, Recipe]:
    fine = [model(f"{name}16") for name in "abc"]
    return {
        "linear": recipe("linear", *weighted(16)),
        "slerp": recipe("slerp", fine[0], base="base16", parameters={"t": 0.3}),
        "nuslerp": recipe("nuslerp", *weighted(16)[:2]),
        "nuslerp-rows": recipe(
            "nuslerp", *weighted(16)[:2], base="base16", parameters={"nuslerp_flatten": False}
        ),
        "multislerp": recipe("multislerp", *weighted(16)),
        "karcher": recipe("karcher", *fine),
        "model-stock": recipe("model_stock", *fine, base="base16"),
        "nearswap": recipe("nearswap", fine[0], base="base16", parameters={"t": 0.004}),
        "fusion": recipe("arcee_fusion", fine[0], base="base16"),
        "arithmetic": recipe("task_arithmetic", *weighted(16), base="base16"),
        "ties": recipe("ties", *weighted(16), base="base16", parameters={"density": 0.5}),
        "breadcrumbs": recipe(
            "breadcrumbs",
            *weighted(16),
            base="base16",
            parameters={"density": 0.6, "gamma": 0.2},
        ),
        "sce": recipe("sce", *fine, base="base16", parameters={"select_topk": 0.5}),
        "ram": recipe("ram", *fine, base="base16"),
        "ramplus": recipe("ramplus_tl", *fine, base="base16"),
        "passthrough": recipe("passthrough", fine[0]),
    }


def _elements() -> dict[str, Recipe]:
    far, made = [model("farx"), model("fary")], _short_methods()
    found = {}
    for name, told in made.items():
        found[f"{name}-16"] = {**told, **BRIEF}
        found[f"{name}-32-16"] = {**told, "dtype": "float32", "out_dtype": "bfloat16"}
    found["own-dtype-16"] = made["arithmetic"]
    found["own-dtype-fusion"] = made["fusion"]
    found["own-dtype-mixed"] = recipe("linear", model("a16", weight=1), model("b32", weight=1))
    found["own-dtype-mixed-base"] = recipe(
        "task_arithmetic", model("a32", weight=1), model("b16", weight=1), base="base16"
    )
    found["half"] = {
        **recipe("slerp", *far, base="farx", parameters={"t": 0.5}),
        "out_dtype": "float16",
    }
    found["half-torch"] = {**recipe("linear", *weighted(16)), "dtype": "torch.float16"}
    found["double"] = {
        **recipe("linear", *weighted(16)),
        "dtype": "float64",
        "out_dtype": "float32",
    }
    return found


def _words() -> dict[str, Recipe]:
    pair = [model("words-a", weight=1), model("words-b", weight=3)]
    told = {"base": "words", **LONG}
    every = [model("words", weight=1), *pair]

    def tokens(**asked: Any) -> Recipe:
        return recipe("linear", *every, tokenizer={"source": "union", "tokens": asked}, **told)

    return {
        "words-union": recipe("linear", *every, tokenizer_source="union", **told),
        "words-union-ties": recipe(
            "ties", *pair, tokenizer_source="union", parameters={"density": 0.5}, **told
        ),
        "words-base": recipe("linear", *every, tokenizer_source="base", **told),
        "words-model": recipe("linear", *every, tokenizer_source="MODELS/words-b", **told),
        "words-no-base": recipe("linear", *pair, tokenizer={"source": "union"}, **LONG),
        "words-padded": recipe(
            "linear", *every, tokenizer={"source": "union", "pad_to_multiple_of": 16}, **told
        ),
        "words-zero": tokens(green={"source": {"kind": "zero"}}),
        "words-donor": tokens(green={"source": "MODELS/words-a", "force": True}),
        "words-token": tokens(
            blue={"source": {"kind": "model_token", "model": "MODELS/words-a", "token": "red"}}
        ),
        "words-token-id": tokens(
            blue={
                "source": {"kind": "model_token", "model": "MODELS/words", "token_id": 5},
                "force": True,
            }
        ),
        "words-new": tokens(
            yellow={"source": {"kind": "model_token", "model": "MODELS/words", "token": "tok7"}}
        ),
        "words-copied": recipe(
            "linear", model("words", weight=1), model("words-a", weight=1), **told
        ),
        "chat-auto": recipe(
            "linear", *every, tokenizer_source="base", chat_template="auto", **told
        ),
        "chat-name": recipe(
            "linear", *every, tokenizer_source="base", chat_template="chatml", **told
        ),
        "chat-text": recipe(
            "linear",
            model("words", weight=1),
            chat_template="{% for message in messages %}[{{ message.content }}]{% endfor %}",
            **told,
        ),
    }


def _adapters() -> dict[str, Recipe]:
    first = {"model": "MODELS/base32+MODELS/lora", "parameters": {"weight": 0.75}}
    second = {"model": "MODELS/base32+MODELS/lora-rooted", "parameters": {"weight": 0.5}}
    return {
        "lora-alone": recipe("passthrough", {"model": first["model"]}, **LONG),
        "lora-two": recipe("task_arithmetic", first, second, base="base32", **LONG),
        "lora-brief": recipe("linear", first, model("a16", weight=1), **BRIEF),
    }


def exact() -> dict[str, Recipe]:
    """Recipes whose results are not drawn by chance."""
    made = {name: {**told, **LONG} for name, told in _slices().items()}
    made["tied"] = {**recipe("linear", model("tied", weight=1), model("tied-a", weight=1)), **LONG}
    return {**made, **_elements(), **_words(), **_adapters()}


def refused() -> dict[str, Recipe]:
    """Recipes to be refused; the released version accepts those whose names begin with silent."""
    pair = [model("a32", weight=1), model("b32", weight=1)]
    return {
        "no-such-method": recipe("liner", *pair),
        "no-weight": recipe("linear", model("a32"), model("b32", weight=1)),
        "twice": recipe("linear", model("a32", weight=1), model("a32", weight=1)),
        "no-base": recipe("ties", *pair),
        "three-of-two": recipe(
            "slerp", *[model(f"far{n}") for n in "xyz"], base="farx", parameters={"t": 0.5}
        ),
        "unequal-slices": {
            "merge_method": "linear",
            "slices": [{"sources": [source("a32", 0, 2, weight=1), source("b32", 0, 1, weight=1)]}],
        },
        "both-forms": {**recipe("linear", *pair), "slices": [{"sources": [source("a32", 0, 1)]}]},
        "rows-differ": recipe("linear", model("words", weight=1), model("words-b", weight=1)),
        "no-such-dtype": {**recipe("linear", *pair), "dtype": "int3"},
        "della-bounds": recipe(
            "della", model("a32", weight=1, density=0.9), base="base32", parameters={"epsilon": 0.3}
        ),
        "both-tokenizers": {
            **recipe("linear", *pair),
            "tokenizer_source": "union",
            "tokenizer": {"source": "union"},
        },
        **_silent(pair),
    }


def _silent(pair: list[dict[str, Any]]) -> dict[str, Recipe]:
    return {
        "silent-zero-sum": recipe("linear", model("a32", weight=1), model("b32", weight=-1)),
        "silent-key": recipe("linear", *pair, out_dtpe="float16"),
        "silent-parameter": recipe("linear", *pair, parameters={"normalise": False}),
        "silent-reversed": {
            "merge_method": "passthrough",
            "slices": [{"sources": [source("a32", 2, 1)]}, {"sources": [source("a32", 0, 1)]}],
        },
        "silent-two-tokens": recipe(
            "linear",
            model("words", weight=1),
            model("words-a", weight=1),
            base="words",
            tokenizer={
                "source": "union",
                "tokens": {
                    "red": {
                        "source": {
                            "kind": "model_token",
                            "model": "MODELS/words-a",
                            "token": "red",
                            "token_id": 3,
                        }
                    }
                },
            },
        ),
    }

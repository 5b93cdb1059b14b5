"""The recipes of the golden outputs: every method with a spread of parameters, and what recipes can say.

A model is named MODELS/name; the folder is put in when a recipe is run.
"""

from __future__ import annotations

from typing import Any

Recipe = dict[str, Any]
LONG = {"dtype": "float32"}
BRIEF = {"dtype": "bfloat16"}
SEEDS = (1, 2, 3, 4)


def model(name: str, **parameters: Any) -> dict[str, Any]:
    """One entry of models."""
    entry: dict[str, Any] = {"model": f"MODELS/{name}"}
    return {**entry, "parameters": parameters} if parameters else entry


def source(name: str, first: int, end: int, **parameters: Any) -> dict[str, Any]:
    """One source of a slice."""
    return {**model(name, **parameters), "layer_range": [first, end]}


def recipe(
    method: str, *models: dict[str, Any], base: str | None = None, **keys: Any
) -> dict[str, Any]:
    """A recipe over whole models."""
    made: Recipe = {"merge_method": method, "models": list(models)}
    if base is not None:
        made["base_model"] = f"MODELS/{base}"
    return {**made, **keys}


def weighted(code: int = 32) -> list[dict[str, Any]]:
    """Three fine-tunes of different weights."""
    weights = {"a": 0.5, "b": 0.3, "c": 0.4}
    return [model(f"{name}{code}", weight=weight) for name, weight in weights.items()]


def _averages() -> dict[str, Recipe]:
    a, b = model("a32", weight=0.7), model("b32", weight=0.4)
    layered = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.25},
    ]
    return {
        "linear": recipe("linear", a, b),
        "linear-three": recipe("linear", *weighted()),
        "linear-sum": recipe("linear", *weighted(), parameters={"normalize": False}),
        "linear-negative": recipe("linear", model("a32", weight=1.5), model("b32", weight=-0.5)),
        "linear-gradient": recipe(
            "linear", model("a32", weight=[0.1, 0.6, 0.9]), model("b32", weight=[1, 0.2])
        ),
        "linear-filters": recipe(
            "linear",
            model(
                "a32",
                weight=[
                    {"filter": "mlp.up", "value": [0.2, 0.9]},
                    {"filter": "norm", "value": 3},
                    {"filter": "layers.1.", "value": 0},
                ],
            ),
            model("b32", weight=1),
            parameters={"weight": 0.5},
        ),
        "slerp-near": recipe("slerp", model("a32"), base="base32", parameters={"t": 0.3}),
        "slerp-far": recipe(
            "slerp", model("farx"), model("fary"), base="farx", parameters={"t": 0.3}
        ),
        "slerp-second-is-base": recipe(
            "slerp", model("farx"), model("fary"), base="fary", parameters={"t": 0.3}
        ),
        "slerp-layers": recipe(
            "slerp", model("farx"), model("fary"), base="farx", parameters={"t": layered}
        ),
        "slerp-ends": recipe(
            "slerp", model("farx"), model("fary"), base="farx", parameters={"t": [0, 1]}
        ),
        "passthrough": recipe("passthrough", model("a32")),
        "passthrough-scale": recipe(
            "passthrough",
            model("a32", scale=[{"filter": "o_proj", "value": 0}, {"value": 1.5}]),
        ),
        "passthrough-half": recipe("passthrough", model("a32", scale=0.3)),
    }


def _spheres() -> dict[str, Recipe]:
    x, y = model("farx", weight=0.6), model("fary", weight=0.2)
    a, b = model("a32", weight=0.6), model("b32", weight=0.2)
    modes = {
        "flat": {"nuslerp_flatten": True},
        "rows": {"nuslerp_flatten": False, "nuslerp_row_wise": False},
        "columns": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    }
    made = {}
    for name, parameters in modes.items():
        made[f"nuslerp-{name}"] = recipe("nuslerp", x, y, parameters=parameters)
        made[f"nuslerp-{name}-base"] = recipe("nuslerp", a, b, base="base32", parameters=parameters)
    spheres = [
        model(f"far{name}", weight=w) for name, w in zip("xyz", (0.5, 0.3, 0.2), strict=True)
    ]
    plain = [model(f"far{name}") for name in "xyz"]
    fine = [model(f"{name}32") for name in "abc"]
    return {
        **made,
        "nuslerp-opposite": recipe("nuslerp", model("farx", weight=1), model("fary", weight=-1)),
        "multislerp": recipe("multislerp", *spheres),
        "multislerp-two": recipe("multislerp", *spheres[:2]),
        "multislerp-base": recipe("multislerp", *weighted(), base="base32"),
        "multislerp-sum": recipe(
            "multislerp", *spheres, parameters={"normalize_weights": False, "eps": 0.001}
        ),
        "karcher": recipe("karcher", *plain),
        "karcher-two": recipe("karcher", *plain[:2]),
        "karcher-near": recipe("karcher", *fine),
        "karcher-short": recipe("karcher", *plain, parameters={"max_iter": 1, "tol": 0.001}),
        "karcher-base": recipe("karcher", *fine[:2], base="base32"),
        "model-stock": recipe("model_stock", *fine[:2], base="base32"),
        "model-stock-three": recipe("model_stock", *fine, base="base32"),
        "model-stock-rows": recipe(
            "model_stock", *fine, base="base32", parameters={"filter_wise": True}
        ),
    }


def _task_vectors() -> dict[str, Recipe]:
    base = "base32"
    dense = [
        model(f"{n}32", weight=w, density=d)
        for n, w, d in zip("abc", (0.5, 0.3, 0.4), (0.3, 0.6, 1), strict=True)
    ]
    outliers = [{**m, "parameters": {**m["parameters"], "gamma": 0.1}} for m in dense]
    made: dict[str, Recipe] = {
        "arithmetic": recipe("task_arithmetic", *weighted(), base=base),
        "arithmetic-scaled": recipe(
            "task_arithmetic", *weighted(), base=base, parameters={"lambda": 0.7, "normalize": True}
        ),
        "arithmetic-listed-base": recipe(
            "task_arithmetic", model("base32"), *weighted(), base=base, parameters={"lambda": 1.25}
        ),
        "ties": recipe("ties", *weighted(), base=base, parameters={"density": 0.5}),
        "ties-each": recipe("ties", *dense, base=base),
        "ties-sum": recipe(
            "ties", *dense, base=base, parameters={"normalize": False, "lambda": 0.7}
        ),
        "ties-int8": recipe("ties", *dense, base=base, parameters={"int8_mask": True}),
        "ties-dense": recipe("ties", *weighted(), base=base),
        "ties-negative": recipe(
            "ties",
            model("a32", weight=-0.5, density=0.7),
            model("b32", weight=1, density=0.7),
            model("c32", weight=0.25, density=0.7),
            base=base,
        ),
        "ties-layers": recipe(
            "ties", *weighted(), base=base, parameters={"density": [1, 0.4], "weight": 0.9}
        ),
        "sce": recipe("sce", *weighted(), base=base),
        "sce-half": recipe(
            "sce", *[model(f"{n}32") for n in "abc"], base=base, parameters={"select_topk": 0.5}
        ),
        "sce-tenth": recipe(
            "sce", *[model(f"{n}32") for n in "abc"], base=base, parameters={"select_topk": 0.1}
        ),
    }
    for name in ("breadcrumbs", "breadcrumbs_ties"):
        made[name] = recipe(name, *outliers, base=base)
        made[f"{name}-few"] = recipe(
            name, *weighted(), base=base, parameters={"density": 0.5, "gamma": 0.3, "lambda": 0.8}
        )
        made[f"{name}-dense"] = recipe(name, *weighted(), base=base)
        made[f"{name}-no-outliers"] = recipe(
            name, *weighted(), base=base, parameters={"density": 0.6, "gamma": 0.0}
        )
    for name in ("dare_linear", "dare_ties", "della", "della_linear"):
        made[f"{name}-dense"] = recipe(name, *weighted(), base=base)
        made[f"{name}-dense-scaled"] = recipe(
            name,
            *weighted(),
            base=base,
            parameters={"lambda": 0.7, "normalize": True, "rescale": False},
        )
    return made


def _elementwise() -> dict[str, Recipe]:
    base, fine = "base32", [model(f"{name}32") for name in "abc"]
    return {
        "nearswap": recipe("nearswap", fine[0], base=base, parameters={"t": 0.004}),
        "nearswap-far": recipe(
            "nearswap", model("farx"), model("fary"), base="farx", parameters={"t": 0.05}
        ),
        "fusion": recipe("arcee_fusion", fine[0], base=base),
        "fusion-far": recipe("arcee_fusion", model("farx"), model("fary"), base="fary"),
        "ram": recipe("ram", *fine, base=base),
        "ram-epsilon": recipe("ram", *fine, base=base, parameters={"epsilon": 0.005}),
        "ramplus": recipe("ramplus_tl", *fine, base=base),
        "ramplus-strong": recipe(
            "ramplus_tl", *fine, base=base, parameters={"r": 0.5, "alpha": 0.9, "epsilon": 0.005}
        ),
    }


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


def _elements() -> dict[str, Recipe]:
    fine = [model(f"{name}16") for name in "abc"]
    far = [model("farx"), model("fary")]
    made: dict[str, Recipe] = {
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
    long = {
        **_averages(),
        **_spheres(),
        **_task_vectors(),
        **_elementwise(),
        **_slices(),
    }
    made = {name: {**told, **LONG} for name, told in long.items()}
    made["tied"] = {**recipe("linear", model("tied", weight=1), model("tied-a", weight=1)), **LONG}
    return {**made, **_elements(), **_words(), **_adapters()}


def drawn() -> dict[str, Recipe]:
    """Recipes of random methods over the larger models; one model, so that what is kept shows."""
    made: dict[str, Recipe] = {}
    for density in (0.3, 0.7):
        for method in ("dare_linear", "dare_ties", "della", "della_linear"):
            for rescale in (False, True):
                made[f"{method}-{density}{'-rescaled' if rescale else ''}"] = recipe(
                    method,
                    model("large-a", weight=1, density=density),
                    base="large",
                    parameters={"rescale": rescale, "normalize": False},
                    **LONG,
                )
    for method in ("dare_ties", "della"):
        made[f"{method}-two"] = recipe(
            method,
            model("large-a", weight=0.5, density=0.5),
            model("large-b", weight=0.7, density=0.4),
            base="large",
            **LONG,
        )
    return made


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

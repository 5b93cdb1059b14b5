"""Recipes of every merge method over whole models, with a spread of parameters."""

from __future__ import annotations

from typing import Any

from mergekit_recipes import LONG, Recipe, model, recipe, weighted


def _averages() -> dict[str, Recipe]:
    a, b = model("a32", weight=0.7), model("b32", weight=0.4)
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
    }


def _slerps() -> dict[str, Recipe]:
    layered = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.25},
    ]
    return {
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


def _thinned() -> list[dict[str, Any]]:
    return [
        model(f"{n}32", weight=w, density=d)
        for n, w, d in zip("abc", (0.5, 0.3, 0.4), (0.3, 0.6, 1), strict=True)
    ]


def _task_vectors() -> dict[str, Recipe]:
    base = "base32"
    dense = _thinned()
    return {
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


def _trimmed() -> dict[str, Recipe]:
    base = "base32"
    outliers = [{**m, "parameters": {**m["parameters"], "gamma": 0.1}} for m in _thinned()]
    made: dict[str, Recipe] = {}
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


def exact() -> dict[str, Recipe]:
    """Recipes over float32 models whose results are not drawn by chance."""
    long = {
        **{**_averages(), **_slerps(), **_spheres()},
        **{**_task_vectors(), **_trimmed(), **_elementwise()},
    }
    return {name: {**told, **LONG} for name, told in long.items()}


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

"""A recipe and its headers give the plan that is meant, or every problem in one report."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import ArgumentError, ArgumentTypeError, RecipeError
from weightshare.recipes.layout import Depths
from weightshare.recipes.settings import interpolated

Make = Callable[..., Path]
Recipe = Callable[..., dict[str, Any]]
ONE = np.ones((2, 3), np.float32)


def problems(recipe: Any) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        ws.plan_merge(recipe)
    return caught.value.problems


def weights(plan: ws.MergePlan, name: str) -> list[float]:
    tensor = next(tensor for tensor in plan.tensors if tensor.name == name)
    assert tensor.settings is not None
    return tensor.settings.of_models("weight")


def test_one_report_holds_every_problem(make_model: Make) -> None:
    """Keys, parameters, dtypes, folders, names and shapes are all told at once."""
    a = make_model("a", {"w": ONE, "v": ONE, "only_a": ONE})
    b = make_model("b", {"w": np.ones((3, 3), np.float32), "v": ONE.astype(np.int32)})
    found = problems(
        {
            "merge_methd": "linear",
            "merge_method": "linear",
            "dtype": "bfloat17",
            "models": [
                {"model": str(a), "parameters": {"wieght": 1}},
                {"model": str(b), "parameters": {"weight": float("nan")}},
                {"model": str(a) + "x", "parameters": {"weight": 1}},
                {"model": str(b), "parametrs": {}},
            ],
            "parameters": {"normalise": True},
            "slices": [{"sources": [{"model": str(a), "layer_range": [0, 1]}]}],
        }
    )
    report = "\n".join(found)
    for part in (
        "merge_methd: unknown key; did you mean 'merge_method'?",
        "dtype: expected one of float16, bfloat16, float32, float64, got 'bfloat17'"
        "; did you mean 'bfloat16'?",
        "models[0].parameters.wieght: unknown parameter; did you mean 'weight'?",
        "models[1].parameters.weight: expected a finite number, got nan",
        "models[2].model: there is no folder or file",
        "models[3]: unknown key 'parametrs'; did you mean 'parameters'?",
        "models[3].model:",
        "parameters.normalise: unknown parameter; did you mean 'normalize'?",
        "slices: is given beside models; exactly one of models, slices and modules is expected",
        "w: the shapes differ",
        "only_a",
        "dtypes F32, I32 of one tensor cannot be merged, convert the models to one: v",
        "weight of ",
    ):
        assert part in report, part
    assert all(problem for problem in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "tiess"}, "unknown method 'tiess'; did you mean 'ties'?"),
        ({"merge_method": None}, "merge_method: is missing; available are linear"),
        ({"models": []}, "models: expected a list of at least one model"),
        ({"models": [3]}, "models[0]: expected the keys model and parameters"),
        (
            {"models": [{"parameters": {}}]},
            "models[0].model: expected the path of a model",
        ),
        ({"tokenizer": {"sorce": "base"}}, "tokenizer: unknown key 'sorce'"),
        ({"chat_template": "chatlm"}, "chat_template: unknown name 'chatlm'"),
        ({"modules": {"a": {}}}, "modules: is given beside models"),
        (
            {"models": None, "modules": {"a": {}}},
            "modules.a.models: expected a list of at least",
        ),
        (
            {"models": None, "modules": {"a": 3}},
            "modules.a: expected the keys models or slices",
        ),
        (
            {"models": None, "modules": [1]},
            "modules: expected names of modules, got [1]",
        ),
        (
            {"models": None, "slices": [{}]},
            "slices[0].sources: expected a list of at least one",
        ),
        ({"parameters": [1]}, "parameters: expected names and values, got [1]"),
        (
            {"parameters": {"normalize": 3}},
            "parameters.normalize: expected true or false, got 3",
        ),
        ({"dtype": "int64"}, "dtype: expected one of"),
        ({"out_dtype": "floot32"}, "did you mean 'float32'?"),
        (
            {"merge_method": "task_arithmetic"},
            "base_model: is missing, and task_arithmetic needs",
        ),
        ({"base_model": "nowhere"}, "base_model: there is no folder or file 'nowhere'"),
        ({"surprise": 1}, "surprise: unknown key"),
    ],
)
def test_each_message_names_its_key(
    change: dict[str, Any], message: str, make_model: Make, linear: Recipe
) -> None:
    """A problem says where it is and what is expected."""
    recipe = linear(make_model("a"), make_model("b")) | change
    assert message in "\n".join(problems(recipe))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("much", "expected a number, got 'much'"),
        ([], "weight of "),
        (None, "expected a number, got None"),
        ([0.1, "x"], "expected a number, got 'x'"),
        ({"filter": "w"}, "has no value"),
        (
            {"filter": 3, "value": 1},
            "filter: expected a part of a tensor's name, got 3",
        ),
        (
            {"filtre": "w", "value": 1},
            "unknown key 'filtre'; expected filter and value",
        ),
        (
            [{"filter": "nothing", "value": 1}],
            "is missing, and linear needs it for every tensor: w",
        ),
    ],
)
def test_each_wrong_weight_is_told(
    weight: object, message: str, make_model: Make, linear: Recipe
) -> None:
    """Values of every wrong form are refused while planning."""
    recipe = linear(make_model("a"), make_model("b"))
    recipe["models"][0]["parameters"]["weight"] = weight
    assert message in "\n".join(problems(recipe))


def test_weights_that_sum_to_zero_are_refused_once(make_model: Make, linear: Recipe) -> None:
    """One problem lists the tensors, instead of one problem for each."""
    tensors = {f"w{i}": ONE for i in range(9)}
    recipe = linear(make_model("a", tensors), make_model("b", tensors))
    recipe["models"][1]["parameters"]["weight"] = -1
    (found,) = problems(recipe)
    assert "the weights 1, -1 sum to zero" in found
    assert "w0, w1, w2, w3, w4 and 4 more" in found
    recipe["parameters"] = {"normalize": False}
    assert ws.plan_merge(recipe).counts["merge"] == 9


def test_missing_and_extra_tensors_are_told_with_the_nearest(
    make_model: Make, linear: Recipe
) -> None:
    """Names that only one model has are problems in both directions, never dropped."""
    a = make_model("a", {"layer.weight": ONE, "w": ONE})
    b = make_model("b", {"layer.wieght": ONE, "w": ONE})
    of_b, of_a = problems(linear(a, b))
    assert of_b.startswith(f"{b} lacks 1 tensor that {a} has: layer.weight; did you mean")
    assert of_a.startswith(f"{a} lacks 1 tensor that {b} has: layer.wieght; did you mean")


def test_a_vocabulary_mismatch_says_what_it_needs(make_model: Make, linear: Recipe) -> None:
    """Embeddings of different row counts point to a tokenizer merge."""
    a = make_model("a", {"model.embed_tokens.weight": np.ones((5, 2), np.float32)})
    b = make_model("b", {"model.embed_tokens.weight": np.ones((6, 2), np.float32)})
    assert "needs a tokenizer merge" in problems(linear(a, b))[0]
    c = make_model("c", {"q.weight": np.ones((5, 2), np.float32)})
    d = make_model("d", {"q.weight": np.ones((5, 3), np.float32)})
    assert "tokenizer" not in problems(linear(c, d))[0]


def test_the_same_model_twice_is_refused(make_model: Make, linear: Recipe) -> None:
    """Two spellings of one folder are one model."""
    a = make_model("a")
    assert "is models[0] again" in problems(linear(a, a / ".." / "a"))[0]


def test_too_few_models_beside_the_base(make_model: Make, linear: Recipe) -> None:
    """A base alone cannot be merged with itself."""
    a = make_model("a")
    recipe = linear(a, base_model=str(a)) | {"merge_method": "task_arithmetic"}
    assert "models: task_arithmetic merges 1 or more beside the base, got 0" in problems(recipe)


def test_damaged_files_are_in_the_report_and_its_cause(make_model: Make, linear: Recipe) -> None:
    """A file that breaks the format is told with everything else, and can be told apart."""
    a, b = make_model("a"), make_model("b")
    (b / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0broken!!")
    with pytest.raises(RecipeError, match=r"models\[1\]\.model: E2") as caught:
        ws.plan_merge(linear(a, b, surprise=1))
    assert len(caught.value.problems) == 2
    assert isinstance(caught.value.__cause__, ws.errors.CheckpointError)


def test_parameters_of_other_methods_are_warnings(make_model: Make, linear: Recipe) -> None:
    """Real recipes carry them from one method to the next."""
    recipe = linear(make_model("a"), make_model("b"), parameters={"int8_mask": True})
    recipe["models"][0]["parameters"]["density"] = 0.5
    recipe["models"][0]["parameters"]["normalize"] = False
    assert ws.plan_merge(recipe).warnings == (
        "models[0].parameters.density: not used by linear",
        "models[0].parameters.normalize: not used, normalize is set once for all models under"
        " parameters",
        "parameters.int8_mask: not used by linear",
    )


def test_a_base_that_is_not_merged_is_a_remark(make_model: Make, linear: Recipe) -> None:
    """A base that linear does not average in, and weights of a base, are told."""
    a, b = make_model("a"), make_model("b")
    (warning,) = ws.plan_merge(linear(a, base_model=str(b))).warnings
    assert warning.startswith("base_model: linear does not merge ")
    recipe = linear(a, b, base_model=str(b)) | {"merge_method": "task_arithmetic"}
    (warning,) = ws.plan_merge(recipe).warnings
    assert warning.startswith("models[1].parameters: not used, ")


def test_a_key_of_anchors_is_a_remark(make_model: Make) -> None:
    """A top-level key that holds anchors is allowed, and used."""
    a, b = make_model("a"), make_model("b")
    plan = ws.plan_merge(
        f"defs: &half {{weight: 0.5}}\nmerge_method: linear\nmodels:\n"
        f"  - {{model: {a}, parameters: *half}}\n  - {{model: {b}, parameters: *half}}\n"
    )
    assert weights(plan, "w") == [0.5, 0.5]
    assert plan.warnings == ("defs: unknown key, taken to hold YAML anchors only",)


def test_precedence_filters_and_gradients(make_model: Make) -> None:
    """A model's own value wins, the first filter that matches holds, gradients follow layers."""
    names = [f"model.layers.{i}.{part}.weight" for i in range(3) for part in ("attn", "mlp")]
    tensors = dict.fromkeys([*names, "lm_head.weight"], ONE)
    recipe = {
        "merge_method": "linear",
        "parameters": {"weight": [0.0, 1.0], "normalize": "no"},
        "models": [
            {"model": str(make_model("a", tensors))},
            {
                "model": str(make_model("b", tensors)),
                "parameters": {
                    "weight": [
                        {"filter": "attn", "value": [2, 4, 8]},
                        {"filter": "lm_head", "value": "5e-1"},
                    ]
                },
            },
            {
                "model": str(make_model("c", tensors)),
                "parameters": {"weight": {"filter": "*", "value": 7}},
            },
        ],
    }
    plan = ws.plan_merge(recipe)
    assert weights(plan, "model.layers.0.attn.weight") == [0.0, 2.0, 7.0]
    assert weights(plan, "model.layers.1.attn.weight") == [0.5, 4.0, 7.0]
    assert weights(plan, "model.layers.2.attn.weight") == [1.0, 8.0, 7.0]
    assert weights(plan, "model.layers.1.mlp.weight") == [0.5, 0.5, 7.0]
    assert weights(plan, "lm_head.weight") == [0.0, 0.5, 7.0]
    assert plan.tensors[0].settings is not None
    assert plan.tensors[0].settings.shared == {"normalize": False}


def test_depths_and_gradients_follow_the_formula() -> None:
    """t = k / (L - 1), 1 for a single layer, 0 outside; the value lies on straight lines."""
    depths = Depths(["a.0.w", "a.4.w", "b.0.w", "x"])
    assert [depths[name] for name in ("a.1.w", "a.4.w", "b.0.w", "x")] == [
        0.25,
        1.0,
        1.0,
        0.0,
    ]
    assert interpolated((1.0, 3.0, 11.0), 0.75) == 7.0
    assert interpolated((4.0,), 1.0) == 4.0


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "F32"),
        ({"dtype": "bfloat16"}, "BF16"),
        ({"dtype": "torch.float16"}, "F16"),
        ({"dtype": "bfloat16", "out_dtype": "float64"}, "F64"),
    ],
)
def test_the_output_dtype(
    keys: dict[str, str], expected: str, make_model: Make, linear: Recipe
) -> None:
    """out_dtype, else dtype, else what holds the inputs."""
    a = make_model("a", {"w": ONE.astype(np.float16)})
    b = make_model("b", {"w": ONE.astype(ml_dtypes.bfloat16)})
    assert ws.plan_merge(linear(a, b, **keys)).tensors[0].dtype == expected


def test_without_dtype_what_holds_every_model_and_the_base_decides(
    make_model: Make, linear: Recipe
) -> None:
    """Nothing of a model is rounded away, whichever of them is the base."""
    a, base = make_model("a"), make_model("base", {"w": ONE.astype(ml_dtypes.bfloat16)})
    for first, second, held in ((a, base, "F32"), (base, a, "F32"), (base, base, "BF16")):
        recipe = linear(first, base_model=str(second)) | {"merge_method": "task_arithmetic"}
        if first == second:
            recipe = linear(first)
        (tensor,) = ws.plan_merge(recipe).tensors
        assert tensor.dtype == held


def test_integers_are_copied_from_the_base(make_model: Make, linear: Recipe) -> None:
    """The plan says which tensors are copied, and from where."""
    a = make_model("a", {"w": ONE, "ids": np.arange(3), "mask": np.array([True])})
    b = make_model("b", {"w": ONE, "ids": np.arange(3), "mask": np.array([False])})
    plan = ws.plan_merge(linear(a, b, base_model=str(b)))
    copied = {t.name: t.sources[0].model for t in plan.tensors if t.action == "copy"}
    assert copied == {"ids": 1, "mask": 1}
    assert plan.counts == {"merge": 1, "copy": 2}


def test_relative_paths_are_of_the_current_folder_then_of_the_recipe(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe can name its neighbours from anywhere."""
    make_model("a")
    make_model("b")
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
    (tmp_path / "r.yml").write_text(text)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    plan = ws.plan_merge(tmp_path / "r.yml")
    assert [model.path for model in plan.models] == [
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    ]
    make_model("elsewhere/a")
    again = ws.plan_merge(tmp_path / "r.yml")
    assert again.models[0].path == str(elsewhere / "a")


def test_a_plan_is_plain_data(make_model: Make, linear: Recipe) -> None:
    """It pickles, is JSON, and its texts are short and escaped."""
    hostile = "<script>alert(1)</script>"
    tensors = {hostile: ONE} | {f"w{i}": ONE for i in range(500)}
    plan = ws.plan_merge(linear(make_model("a", tensors), make_model("b", tensors)))
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert json.loads(json.dumps(plan.to_json()))["write_bytes"] == plan.nbytes == 501 * 24
    assert repr(plan).count("\n") < 20
    assert hostile not in plan._repr_html_()
    assert len(plan._repr_html_()) < 50_000


def test_planning_reads_headers_only(make_model: Make, linear: Recipe) -> None:
    """A plan of files whose data is a hole of 3 GB comes at once and touches none of it."""
    header = json.dumps(
        {
            "w": {
                "dtype": "BF16",
                "shape": [1_500_000_000],
                "data_offsets": [0, 3_000_000_000],
            }
        }
    ).encode()
    folders = [make_model("a"), make_model("b")]
    for folder in folders:
        with open(folder / "model.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 3_000_000_000)
    plan = ws.plan_merge(linear(*folders))
    assert plan.read_bytes == 6_000_000_000
    assert plan.peak_memory <= 512_000_000


def test_arguments_are_checked(make_model: Make, linear: Recipe) -> None:
    """Sizes and seeds that cannot be used are refused by name."""
    recipe = linear(make_model("a"), make_model("b"))
    with pytest.raises(ArgumentError, match="max_shard_size: expected"):
        ws.plan_merge(recipe, max_shard_size="big")
    with pytest.raises(ArgumentTypeError, match="seed: expected an integer"):
        ws.plan_merge(recipe, seed=1.5)  # type: ignore[arg-type]


def test_a_base_that_is_not_listed_joins_the_models_of_karcher(make_model: Make) -> None:
    """As the last; one that is listed stays in its place."""
    a, b, c = (make_model(name) for name in "abc")
    recipe = {"merge_method": "karcher", "models": [{"model": str(a)}, {"model": str(b)}]}
    for base, expected in ((c, [0, 1, 2]), (a, [0, 1])):
        (tensor,) = ws.plan_merge(recipe | {"base_model": str(base)}).tensors
        assert [source.model for source in tensor.sources] == expected
        assert tensor.base is None


def test_an_optional_base_is_not_one_of_the_models(make_model: Make, linear: Recipe) -> None:
    """nuslerp goes between two models, and from their base where there is one."""
    a, b, c = (make_model(name) for name in "abc")
    recipe = linear(a, b) | {"merge_method": "nuslerp"}
    for base, expected in ((None, None), (c, 2)):
        (tensor,) = ws.plan_merge(recipe | {"base_model": base and str(base)}).tensors
        assert [source.model for source in tensor.sources] == [0, 1]
        assert (tensor.base and tensor.base.model) == expected
    found = problems(recipe | {"base_model": str(b)})
    assert "models: nuslerp merges 2 beside the base, got 1" in found


def test_a_recipe_that_is_refused_downloads_nothing(
    make_model: Make, linear: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt word is told at once, not after the models have come."""

    def download(*_: Any, **__: Any) -> None:
        pytest.fail("a model was looked for in the hub")

    monkeypatch.setattr("weightshare.recipes.sources.find_in_hub", download)
    recipe = linear(make_model("a"), Path("org/model"), surprise=1)
    assert problems(recipe) == ("surprise: unknown key",)


@pytest.mark.parametrize("name", ["OdiaGenAI/mistral_hindi_7b", ".hidden", 7])
def test_the_name_of_a_lone_document_is_nobodys_business(
    name: object, make_model: Make, linear: Recipe
) -> None:
    """Published recipes have the hub's name of the model there; no folder is called so."""
    recipe = linear(make_model("a"), name=name)
    assert ws.plan_merge(recipe).warnings == ()


def test_words_of_published_recipes_without_effect_are_remarks(
    make_model: Make, linear: Recipe
) -> None:
    """mergekit passes over them; others that it does not know are still refused."""
    recipe = linear(make_model("a"), random_seed=0, parameters={"embed_slerp": True})
    warnings = ws.plan_merge(recipe).warnings
    assert [text.split(", as in mergekit")[0] for text in warnings] == [
        "random_seed: has no effect",
        "parameters.embed_slerp: has no effect",
    ]
    assert "--random-seed" in warnings[0]
    assert "random_sead: unknown key" in "\n".join(problems(recipe | {"random_sead": 0}))


def test_layers_of_models_are_told_where_they_belong(make_model: Make, linear: Recipe) -> None:
    """``layer_range`` under ``models`` is passed over by mergekit; slices have it."""
    recipe = linear(make_model("a"))
    recipe["models"][0]["layer_range"] = [0, 1]
    (found,) = problems(recipe)
    assert found.startswith("models[0]: unknown key 'layer_range'")
    assert found.endswith("for some of the layers write slices")

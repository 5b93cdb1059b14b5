"""LoRA adapters: matched with a model by name, added while its weights are read, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import weightshare as ws
from adapter_files import DOWN, EMBED, PREFIX, SHAPES, Q, drawn, low_rank, product, write_adapter
from weightshare.recipes.adapter_config import AdapterConfig, read_adapter_config
from weightshare.recipes.reference import Reference
from weightshare.recipes.sources import SourceModel, SourceOpener, place_models

BF16 = np.dtype(ml_dtypes.bfloat16)


class Opened:
    """A model with an adapter, opened as a recipe's model is."""

    def __init__(self, model: Path, adapter: Path | None) -> None:
        self.stack = ExitStack()
        self.opener = SourceOpener(None, self.stack)
        lora = None if adapter is None else str(adapter)
        found = self.opener.open(Reference(str(model), lora=lora), "models[0].model")
        self.problems = "\n".join(self.opener.problems)
        self.found = found

    @property
    def model(self) -> SourceModel:
        assert self.found is not None, self.problems
        return self.found

    def read(self, name: str) -> Any:
        """The tensor as a merge reads it."""
        planned = place_models([self.model])
        inputs = [self.stack.enter_context(ws.open_checkpoint(one.path)) for one in planned]
        source, info = self.model.source(0, name), self.model.info(name)
        dtype = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "BF16": BF16}[
            source.dtype
        ]
        out = np.empty(info.shape, dtype)
        raw = out.reshape(-1).view(np.uint8)
        if source.view is None:
            inputs[source.model].read_into(source.name, 0, raw)
        else:
            source.view.open(inputs).read_into(0, out.size, raw)
        return out


@pytest.fixture
def base(tmp_path: Path) -> Path:
    ws.save_checkpoint(tmp_path / "base", drawn(SHAPES, BF16))
    return tmp_path / "base"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=str)
@pytest.mark.parametrize("weight", [np.float32, np.float16, BF16, np.float64], ids=str)
def test_linear_layers_get_alpha_over_r_times_the_product(
    dtype: Any, weight: Any, tmp_path: Path
) -> None:
    """W' = W + alpha / r B A, whatever the files hold; other tensors are as they were."""
    tensors = drawn(SHAPES, weight)
    ws.save_checkpoint(tmp_path / "base", tensors)
    pairs = low_rank(Q, 8, 6, 2, dtype) | low_rank(DOWN, 6, 10, 3, dtype)
    opened = Opened(tmp_path / "base", write_adapter(tmp_path / "lora", pairs, lora_alpha=5))
    for module, rank in ((Q, 2), (DOWN, 3)):
        name = f"{module}.weight"
        expected = tensors[name].astype(np.float64) + 5 / rank * product(pairs, module)
        np.testing.assert_allclose(opened.read(name), expected, rtol=0, atol=2e-5)
        assert (
            opened.model.info(name).dtype == ws.open_checkpoint(tmp_path / "base").info(name).dtype
        )
    assert opened.model.source(0, "lm_head.weight").view is None
    np.testing.assert_array_equal(opened.read("lm_head.weight"), tensors["lm_head.weight"])
    assert opened.read(f"{Q}.weight").dtype == (np.float64 if weight == np.float64 else np.float32)


def test_the_root_of_the_rank_divides_when_the_adapter_is_stabilised() -> None:
    """use_rslora: alpha / sqrt(r)."""
    assert AdapterConfig(6.0, stabilised=True).scaling("q", 9) == 6.0 / math.sqrt(9)


@pytest.mark.parametrize(
    ("pattern", "module", "applies"),
    [
        ("q_proj", "model.layers.3.self_attn.q_proj", True),
        ("q_proj", "q_proj", True),
        ("q_proj", "model.layers.3.self_attn.big_q_proj", False),
        ("layers.1.mlp", "model.layers.1.mlp", True),
        ("layers.1.mlp", "model.layers.11.mlp", False),
        (r"layers\.[01]\..*q_proj", "model.layers.1.self_attn.q_proj", True),
        (r"layers\.[01]\..*q_proj", "model.layers.2.self_attn.q_proj", False),
    ],
)
def test_alpha_pattern_names_modules_or_patterns_of_them(
    pattern: str, module: str, applies: bool
) -> None:
    """A pattern is of the end of a module's name, from a dot on."""
    config = AdapterConfig(8.0, {pattern: 32.0})
    assert config.scaling(module, 4) == (8.0 if applies else 2.0)


def test_an_embedding_gets_the_transposed_product(base: Path, tmp_path: Path) -> None:
    """lora_embedding_A is (r, tokens) and lora_embedding_B (width, r)."""
    names = [f"{PREFIX}{EMBED}.lora_embedding_{x}" for x in "AB"]
    pair = drawn({names[0]: (4, 20), names[1]: (6, 4)}, np.float32)
    opened = Opened(base, write_adapter(tmp_path / "lora", pair))
    expected = drawn(SHAPES, BF16)[f"{EMBED}.weight"].astype(np.float64)
    expected += 16 / 4 * (pair[names[1]].astype(np.float64) @ pair[names[0]].astype(np.float64)).T
    np.testing.assert_allclose(opened.read(f"{EMBED}.weight"), expected, rtol=0, atol=2e-5)


def conv1d(tmp_path: Path, flag: bool, modules: Mapping[str, tuple[int, int]]) -> tuple[Any, ...]:
    """A model whose weights are stored as (inputs, outputs), and its adapter."""
    tensors = drawn({f"{m}.weight": (i, o) for m, (o, i) in modules.items()}, np.float32)
    ws.save_checkpoint(tmp_path / "base", tensors)
    pairs: dict[str, Any] = {}
    for module, (out, into) in modules.items():
        pairs |= low_rank(module, out, into, 2)
    lora = write_adapter(tmp_path / "lora", pairs, fan_in_fan_out=flag)
    return tensors, pairs, Opened(tmp_path / "base", lora)


@pytest.mark.parametrize("flag", [True, False])
def test_weights_stored_as_inputs_by_outputs_get_the_transposed_product(
    flag: bool, tmp_path: Path
) -> None:
    """Shapes decide where they can, also for square weights beside them; the flag may be wrong."""
    modules = {"h.0.attn.c_attn": (18, 6), "h.0.attn.c_proj": (6, 6)}
    tensors, pairs, opened = conv1d(tmp_path, flag, modules)
    for module in modules:
        expected = tensors[f"{module}.weight"] + 8 * product(pairs, module).T
        np.testing.assert_allclose(opened.read(f"{module}.weight"), expected, rtol=0, atol=2e-5)
    assert ("fan_in_fan_out is false" in "".join(opened.opener.warnings)) is not flag


@pytest.mark.parametrize("flag", [True, False])
def test_the_flag_decides_for_square_weights_alone(flag: bool, tmp_path: Path) -> None:
    """fan_in_fan_out is all there is to go by."""
    tensors, pairs, opened = conv1d(tmp_path, flag, {"h.0.attn.c_proj": (6, 6)})
    added = 8 * product(pairs, "h.0.attn.c_proj")
    expected = tensors["h.0.attn.c_proj.weight"] + (added.T if flag else added)
    np.testing.assert_allclose(opened.read("h.0.attn.c_proj.weight"), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "written",
    [f"{PREFIX}lm_head.weight", f"{PREFIX}lm_head.modules_to_save.default.weight"],
)
def test_modules_to_save_stand_for_the_models_own(written: str, base: Path, tmp_path: Path) -> None:
    """A weight that the adapter holds whole replaces the model's, in the adapter's own dtype."""
    own = drawn({written: (20, 6)}, np.float32, seed=5)
    opened = Opened(base, write_adapter(tmp_path / "lora", own | low_rank(Q, 8, 6, 2)))
    np.testing.assert_array_equal(opened.read("lm_head.weight"), own[written])
    assert opened.model.info("lm_head.weight").dtype == "BF16"


def test_an_adapter_may_hold_the_weight_that_it_adds_to(base: Path, tmp_path: Path) -> None:
    """base_layer.weight is the weight, to which the product is added."""
    name = f"{PREFIX}{Q}.base_layer.weight"
    pairs = low_rank(Q, 8, 6, 2)
    own = drawn({name: (8, 6)}, np.float32, seed=6)
    opened = Opened(base, write_adapter(tmp_path / "lora", own | pairs))
    expected = own[name] + 8 * product(pairs, Q)
    np.testing.assert_allclose(opened.read(f"{Q}.weight"), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("word", ["", "model.", "transformer."])
@pytest.mark.parametrize("other", ["", "transformer."])
def test_the_word_before_all_layers_may_be_missing_on_one_side(
    word: str, other: str, tmp_path: Path
) -> None:
    """Models are saved with and without it."""
    tensors = drawn({f"{other}h.0.q.weight": (8, 6)}, np.float32)
    ws.save_checkpoint(tmp_path / "base", tensors)
    pairs = low_rank(f"{word}h.0.q", 8, 6, 2)
    opened = Opened(tmp_path / "base", write_adapter(tmp_path / "lora", pairs))
    if word == "model." and other:
        assert "match nothing in the model" in opened.problems
        return
    expected = tensors[f"{other}h.0.q.weight"] + 8 * product(pairs, f"{word}h.0.q")
    np.testing.assert_allclose(opened.read(f"{other}h.0.q.weight"), expected, rtol=0, atol=2e-5)


def test_weights_that_match_nothing_are_refused_and_listed(base: Path, tmp_path: Path) -> None:
    """Nothing of an adapter is left out silently."""
    pairs = low_rank(Q, 8, 6, 2) | low_rank("model.layers.9.mlp.up_proj", 8, 6, 2)
    lora = write_adapter(tmp_path / "lora", pairs, base_model_name_or_path="org/other")
    problems = Opened(base, lora).problems
    assert "1 of its 2 weights match nothing" in problems
    assert "model.layers.9.mlp.up_proj.weight" in problems
    assert "it was made for org/other" in problems


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "it is a DoRA adapter"),
    ({"peft_type": "IA3"}, "it is an adapter of the kind IA3, not LORA"),
    ({"lora_bias": True}, "it uses lora_bias"),
    ({"layer_replication": [[0, 4]]}, "it uses layer_replication"),
    ({"target_parameters": ["experts.up"]}, "it uses target_parameters"),
    ({"init_lora_weights": "pissa_niter_4"}, "weights that PEFT changes before"),
    ({"init_lora_weights": {"a": 1}}, "weights that PEFT changes before"),
    ({"lora_alpha": "16"}, "lora_alpha: expected a number"),
    ({"lora_alpha": True}, "lora_alpha: expected a number"),
    ({"lora_alpha": 10**400}, "lora_alpha: expected a finite number"),
    ({"use_rslora": "yes"}, "use_rslora: expected true or false"),
    ({"alpha_pattern": [1]}, "alpha_pattern: expected an object"),
    ({"alpha_pattern": {"(a+)+b": 3}}, "is too involved"),
    ({"alpha_pattern": {"a*b*c*d*e*": 3}}, "is too involved"),
    ({"alpha_pattern": {"[": 3}}, "alpha_pattern: ["),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_adapters_of_other_kinds_are_refused(
    config: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    """Anything but a plain low-rank sum; the message says what it is."""
    opened = Opened(base, write_adapter(tmp_path / "lora", low_rank(Q, 8, 6, 2), **config))
    assert opened.found is None
    assert message in opened.problems
    assert "adapter_config.json" in opened.problems


@pytest.mark.parametrize("beginning", [True, False, None, "gaussian", "eva"])
def test_beginnings_that_leave_the_weights_alone_are_taken(beginning: Any, tmp_path: Path) -> None:
    """They only say how A and B were filled before training."""
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"lora_alpha": 4, "init_lora_weights": beginning}))
    assert read_adapter_config(file).alpha == 4


def named(**parts: tuple[int, ...]) -> dict[str, Any]:
    shapes = {PREFIX + key.replace("__", "."): shape for key, shape in parts.items()}
    return drawn(shapes, np.float32)


MISFITS: list[tuple[dict[str, Any], str]] = [
    (named(c__lora_A__weight=(2, 3, 3, 3), c__lora_B__weight=(8, 2, 1, 1)), "of convolutions"),
    (named(c__lora_A__weight=(2, 6)), "lora_A or lora_B is missing of c"),
    (named(c__lora_A__weight=(2, 6), c__lora_B__weight=(8, 3)), "A and B do not fit each other"),
    (named(c__lora_A__weight=(2, 7), c__lora_B__weight=(8, 2)), "does not fit the model's weights"),
    (
        named(c__lora_A__weight=(2, 6), c__lora_B__weight=(8, 2), c__lora_magnitude_vector=(8,)),
        "it is a DoRA adapter",
    ),
    (
        named(c__lora_A__weight=(2, 6), c__lora_B__weight=(8, 2), c__lora_B__bias=(8,)),
        "biases of lora_B",
    ),
    (
        named(
            c__lora_A__a__weight=(2, 6), c__lora_A__b__weight=(2, 6), c__lora_B__a__weight=(8, 2)
        ),
        "changes weights twice",
    ),
    (named(c__weight=(9, 6)), "weights of another shape or dtype"),
    ({f"{PREFIX}c.weight": np.zeros((8, 6), np.int32)}, "weights of another shape or dtype"),
    (
        {
            f"{PREFIX}c.lora_{x}.weight": np.zeros(s, np.int8)
            for x, s in (("A", (2, 6)), ("B", (8, 2)))
        },
        "expected dtypes of",
    ),
    ({}, "it holds no tensors"),
]


@pytest.mark.parametrize(("tensors", "message"), MISFITS, ids=[m[1] for m in MISFITS])
def test_tensors_that_do_not_fit_are_refused(
    tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The model has one weight, c.weight of shape (8, 6)."""
    ws.save_checkpoint(tmp_path / "base", {"c.weight": np.ones((8, 6), np.float32)})
    opened = Opened(tmp_path / "base", write_adapter(tmp_path / "lora", tensors))
    assert opened.found is None
    assert message in opened.problems


def test_an_adapter_over_integers_is_refused(tmp_path: Path) -> None:
    """Codes are not weights."""
    ws.save_checkpoint(tmp_path / "base", {f"{Q}.weight": np.ones((8, 6), np.int32)})
    opened = Opened(tmp_path / "base", write_adapter(tmp_path / "lora", low_rank(Q, 8, 6, 2)))
    assert "(of dtype I32)" in opened.problems


def test_an_adapter_named_as_a_model_is_told_so(tmp_path: Path) -> None:
    """The message says how it is written."""
    lora = write_adapter(tmp_path / "lora", low_rank(Q, 8, 6, 2))
    assert "is a LoRA adapter (adapter_config.json); write the model" in Opened(lora, None).problems


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            "pickle checkpoint",
        ),
        (lambda f: (f / "adapter_config.json").write_text("[1]"), "expected a JSON object"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x08"), "E201"),
    ],
)
def test_a_damaged_adapter_is_refused(spoil: Any, message: str, base: Path, tmp_path: Path) -> None:
    """Every file is checked before a weight is read."""
    lora = write_adapter(tmp_path / "lora", low_rank(Q, 8, 6, 2))
    spoil(lora)
    assert message in Opened(base, lora).problems


def test_a_model_with_and_without_an_adapter_are_two_models(base: Path, tmp_path: Path) -> None:
    """They share their files, and the adapter stands after all models of the plan."""
    lora = str(write_adapter(tmp_path / "lora", low_rank(Q, 8, 6, 2)))
    with ExitStack() as stack:
        opener = SourceOpener(None, stack)
        plain = opener.open(str(base), "a")
        adapted = opener.open(Reference(str(base), lora=lora), "b")
        assert plain is not None
        assert adapted is not None
        assert opener.open(Reference(str(base), lora=lora), "c") is adapted
        planned = place_models([adapted, plain])
        assert [one.label for one in planned] == [f"{base}+{lora}", str(base), lora]
        view = adapted.source(0, f"{Q}.weight").view
        assert view is not None
        assert [source.model for source in view.reads] == [0, 2, 2]
        assert plain.source(1, f"{Q}.weight").view is None


@given(
    st.dictionaries(
        st.sampled_from(
            ["r", "lora_alpha", "use_rslora", "alpha_pattern", "init_lora_weights", "x"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.text(max_size=5), inner, max_size=2)
            ),
            max_leaves=5,
        ),
    )
)
def test_any_configuration_is_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]
) -> None:
    """A configuration from anywhere never does more harm than a message."""
    file = tmp_path_factory.mktemp("lora") / "adapter_config.json"
    file.write_text(json.dumps(config))
    told = ""
    try:
        scaling = read_adapter_config(file).scaling("model.q_proj", 4)
    except ValueError as error:
        told, scaling = str(error), 0.0
    assert math.isfinite(scaling)
    assert not told or str(file) in told


def merged(tmp_path: Path, recipe: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The tensors of a merge from file to file."""
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    ws.merge_checkpoints(recipe, out, **options)
    with ws.open_checkpoint(out) as found:
        return {name: found[name] for name in found}


def in_recipe(model: Path, lora: Path | None = None, weight: float = 1.0) -> dict[str, Any]:
    name = str(model) if lora is None else f"{model}+{lora}"
    return {"model": name, "parameters": {"weight": weight}}


@pytest.mark.parametrize("weight", [np.float32, np.float16, BF16], ids=str)
def test_a_model_with_an_adapter_merges_as_the_model_it_makes(weight: Any, tmp_path: Path) -> None:
    """From file to file; the output's dtype is the model's own, not that of the sum."""
    tensors = drawn(SHAPES, weight)
    ws.save_checkpoint(tmp_path / "base", tensors)
    own = drawn({f"{PREFIX}lm_head.weight": (20, 6)}, np.float32, seed=7)
    pairs = low_rank(Q, 8, 6, 2, BF16) | low_rank(DOWN, 6, 10, 3, BF16)
    lora = write_adapter(tmp_path / "lora", own | pairs)
    models = [in_recipe(tmp_path / "base", lora, 0.25), in_recipe(tmp_path / "base", None, 0.75)]
    found = merged(tmp_path, {"merge_method": "linear", "models": models})
    expected = {name: value.astype(np.float64) for name, value in tensors.items()}
    for module, rank in ((Q, 2), (DOWN, 3)):
        expected[f"{module}.weight"] += 0.25 * 16 / rank * product(pairs, module)
    expected["lm_head.weight"] *= 0.75
    expected["lm_head.weight"] += 0.25 * own[f"{PREFIX}lm_head.weight"]
    for name, value in expected.items():
        assert found[name].dtype == weight
        step = float(ml_dtypes.finfo(weight).eps)
        np.testing.assert_allclose(
            found[name].astype(np.float64), value, rtol=0, atol=1.01 * step * np.abs(value).max()
        )


def test_an_adapter_is_a_task_vector_of_its_model(tmp_path: Path) -> None:
    """base + lambda (base + adapter - base): the adapter, scaled."""
    tensors = drawn(SHAPES, np.float32)
    ws.save_checkpoint(tmp_path / "base", tensors)
    pairs = low_rank(Q, 8, 6, 2)
    lora = write_adapter(tmp_path / "lora", pairs)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [in_recipe(tmp_path / "base", lora, 0.5)],
    }
    found = merged(tmp_path, recipe)
    expected = tensors[f"{Q}.weight"] + 0.5 * 8 * product(pairs, Q)
    np.testing.assert_allclose(found[f"{Q}.weight"], expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(found["lm_head.weight"], tensors["lm_head.weight"])


def test_the_bytes_of_an_adapted_merge_depend_neither_on_threads_nor_on_memory(
    tmp_path: Path,
) -> None:
    """Tiles begin and end anywhere in rows."""
    shapes = {"a.weight": (900, 701), "b.weight": (333, 2000)}
    ws.save_checkpoint(tmp_path / "base", drawn(shapes, BF16))
    pairs = low_rank("a", 900, 701, 5, BF16) | low_rank("b", 333, 2000, 9, BF16)
    lora = write_adapter(tmp_path / "lora", pairs)
    recipe = {
        "merge_method": "linear",
        "models": [in_recipe(tmp_path / "base", lora), in_recipe(tmp_path / "base")],
    }
    plan = ws.plan_merge(recipe)
    least, peak = plan.memory_floor + 1_000_000, plan.peak_memory
    first = merged(tmp_path, recipe, threads=1, memory="512MB")
    for options in ({"threads": 2}, {"threads": 1, "memory": least}, {"memory": peak}):
        for name, value in merged(tmp_path, recipe, **options).items():
            np.testing.assert_array_equal(value.view(np.uint16), first[name].view(np.uint16))


PEFT_CONFIGS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 12, "target_modules": ["up", "down"]},
    {"r": 4, "lora_alpha": 12, "target_modules": ["up", "down"], "use_rslora": True},
    {"r": 4, "lora_alpha": 8, "target_modules": ["table", "down"], "modules_to_save": ["head"]},
    {"r": 2, "target_modules": ["up"], "bias": "all"},
    {
        "r": 4,
        "target_modules": ["up", "down", "head"],
        "rank_pattern": {"up": 2},
        "alpha_pattern": {"up": 5, r"^he.d": 3},
    },
]


@pytest.mark.parametrize("config", PEFT_CONFIGS, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_a_merge_is_what_peft_makes_of_the_same_adapter(
    config: dict[str, Any], tmp_path: Path
) -> None:
    """merge_and_unload, in float32."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = {"table": torch.nn.Embedding(20, 6), "up": torch.nn.Linear(6, 10)}
    layers |= {"down": torch.nn.Linear(10, 6), "head": torch.nn.Linear(6, 20, bias=False)}
    model = torch.nn.ModuleDict(layers)

    def arrays() -> dict[str, Any]:
        return {name: value.numpy().copy() for name, value in model.state_dict().items()}

    ws.save_checkpoint(tmp_path / "base", arrays())
    adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
    for name, value in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(value, std=0.3)
    adapted.save_pretrained(tmp_path / "lora")
    expected = adapted.merge_and_unload().state_dict()
    recipe = {"merge_method": "linear", "models": [in_recipe(tmp_path / "base", tmp_path / "lora")]}
    found = merged(tmp_path, recipe)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=2e-6)

"""Our merges beside what the released mergekit wrote for the same recipes, made by tests/data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import RecipeError

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, tuple[str, Array]]

FOLDER = Path(__file__).resolve().parents[2] / "data" / "mergekit"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
DTYPES["BF16"] = np.dtype(ml_dtypes.bfloat16)
INDEX: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
CASES: dict[str, dict[str, Any]] = INDEX["cases"]

# The spacing of numbers just below one, of each element.
ULP = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}

# mergekit writes float32 here by mistake: every input is bfloat16.
WRITES_FLOAT32 = {"own-dtype-fusion", "fusion-16", "ramplus-16"}

# The same merge by float32 arithmetic, where its name does not tell.
PRECISE = {"own-dtype-fusion": "fusion-32-16", "own-dtype-16": "arithmetic-32-16"}


@cache
def stored(key: str, layout: int) -> Tensors:
    """Tensors of a model or of a case, as they were stored."""
    with np.load(FOLDER / "golden.npz") as archive:
        data = archive[key]
    found, place = {}, 0
    for name, (code, shape) in INDEX["layouts"][layout].items():
        count = int(np.prod(shape)) * DTYPES[code].itemsize
        found[name] = (code, data[place : place + count].view(DTYPES[code]).reshape(shape))
        place += count
    assert place == len(data)
    return found


def golden(case: str) -> Tensors:
    return stored(f"case/{case}", CASES[case]["layout"])


def model(name: str) -> Tensors:
    return stored(f"model/{name}", INDEX["models"][name]["layout"])


@dataclass
class Merged:
    """What one recipe gave."""

    folder: Path
    tensors: Tensors

    def config(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return told


MergeCase = Callable[[str], Merged]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all inputs."""
    folder = tmp_path_factory.mktemp("mergekit") / "models"
    for name, told in INDEX["models"].items():
        (folder / name).mkdir(parents=True)
        adapter = "adapter_config.json" in told["files"]
        weights = "adapter_model.safetensors" if adapter else "model.safetensors"
        arrays = {key: array for key, (_, array) in model(name).items()}
        ws.save_checkpoint(folder / name / weights, arrays)
        for file, content in told["files"].items():
            (folder / name / file).write_text(json.dumps(content), encoding="utf-8")
    return folder


def located(recipe: Mapping[str, Any], models: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(json.dumps(recipe).replace("MODELS/", f"{models}/"))
    return told


def merged(recipe: Mapping[str, Any], models: Path, out: Path, **keys: Any) -> Merged:
    if recipe.keys() & {"tokenizer", "tokenizer_source"}:
        pytest.importorskip("tokenizers")
    ws.merge_checkpoints(located(recipe, models), out, **keys)
    found = {}
    with ws.open_checkpoint(out) as checkpoint:
        for name in sorted(checkpoint):
            array = checkpoint[name].copy()
            code = next(code for code, dtype in DTYPES.items() if dtype == array.dtype)
            found[name] = (code, array)
    return Merged(out, found)


@pytest.fixture(scope="module")
def merge_case(models: Path, tmp_path_factory: pytest.TempPathFactory) -> MergeCase:
    """What we make of a case, made once."""
    folder = tmp_path_factory.mktemp("ours")
    return cache(lambda case: merged(CASES[case]["recipe"], models, folder / case))


def wide(array: Array) -> Array:
    return array.astype(np.float64)


def is_brief(case: str) -> bool:
    """Whether mergekit computed in a short element, which costs it accuracy and not us."""
    recipe = CASES[case]["recipe"]
    inputs = json.dumps(recipe)
    short = {"bfloat16", "torch.bfloat16", "torch.float16"}
    return recipe.get("dtype") in short or ("dtype" not in recipe and "16" in inputs)


def vocabulary_of(folder: Path) -> dict[str, int]:
    told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    known = dict(told["model"]["vocab"])
    return known | {token["content"]: token["id"] for token in told["added_tokens"]}


def by_word(array: Array, vocabulary: Mapping[str, int] | None, name: str) -> Array:
    """A table's rows in the order of the words' names, then the padding; other tensors as they are."""
    if vocabulary is None or name not in ("model.embed_tokens.weight", "lm_head.weight"):
        return array
    rows = [vocabulary[word] for word in sorted(vocabulary)]
    return array[[*rows, *sorted(set(range(len(array))) - set(rows))]]


def template_of(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    template: str | None = told.get("chat_template")
    return template


def free(case: str, name: str) -> Array | None:
    """Where either choice is right: magnitudes equal to others, importances next to the threshold."""
    recipe = CASES[case]["recipe"]
    method = recipe["merge_method"]
    if "slices" in recipe or "tokenizer_source" in recipe:
        return None
    if method not in ("ties", "breadcrumbs", "breadcrumbs_ties", "sce", "arcee_fusion"):
        return None
    base = wide(model(Path(recipe["base_model"]).name)[name][1])
    given = [Path(told["model"]).name for told in recipe["models"]]
    others = [
        wide(model(told)[name][1]) for told in given if f"MODELS/{told}" != recipe["base_model"]
    ]
    if method == "arcee_fusion":
        return beside_threshold(others[0], base)
    chosen = np.zeros(base.shape, bool)
    tasks = [other - base for other in others]
    keys = [np.var(np.stack(tasks), axis=0)] if method == "sce" else [np.abs(t) for t in tasks]
    for key, entry in zip(keys, recipe["models"], strict=method != "sce"):
        ranked = np.sort(key.round(12), axis=None)[::-1]
        for count in kept_counts(
            {**recipe.get("parameters", {}), **entry.get("parameters", {})}, method, key
        ):
            if 0 < count < key.size and ranked[count - 1] == ranked[count] > 0:
                chosen |= key.round(12) == ranked[count]
    return chosen


def kept_counts(parameters: Mapping[str, Any], method: str, key: Array) -> list[int]:
    """After how many of the largest magnitudes there is a threshold."""
    n, density = key.size, parameters.get("density", 1.0)
    if method == "sce":
        return [int(np.count_nonzero(key) * parameters.get("select_topk", 1.0))]
    if isinstance(density, list) or density == 1:
        return []
    if method == "ties":
        return [int(n * density)]
    top = int(parameters["gamma"] * n)
    bottom = n - int(density * n) - top
    return [top + min(0, bottom), n - max(0, bottom)]


def beside_threshold(other: Array, base: Array) -> Array:
    """Importances within one part in a hundred: float32 tells no finer what rows of near models are."""

    def chances(x: Array) -> Array:
        raised = np.exp(x - x.max(axis=-1, keepdims=True))
        return raised / raised.sum(axis=-1, keepdims=True) + 1e-8

    p, q = chances(other), chances(base)
    importance = np.abs(other - base) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ranked = np.sort(importance, axis=None)
    low, middle, high = (ranked[int(part * (ranked.size - 1))] for part in (0.25, 0.5, 0.75))
    threshold = middle + 1.5 * (high - low)
    return (np.abs(importance - threshold) <= 0.01 * threshold) & (other != base)


@pytest.mark.parametrize("case", [name for name in CASES if name not in WRITES_FLOAT32])
def test_names_shapes_and_dtypes_are_those_of_mergekit(case: str, merge_case: MergeCase) -> None:
    found = merge_case(case).tensors
    expected = {name: (code, array.shape) for name, (code, array) in golden(case).items()}
    assert {name: (code, array.shape) for name, (code, array) in found.items()} == expected


@pytest.mark.parametrize("case", [name for name in CASES if not is_brief(name)])
def test_values_are_those_of_mergekit(case: str, merge_case: MergeCase) -> None:
    """To the rounding of float32, and of the output's element, where mergekit computes in float32."""
    result = merge_case(case)
    theirs = CASES[case].get("vocabulary")
    ours = vocabulary_of(result.folder) if theirs else None
    left_out = 0
    for name, (_, expected) in golden(case).items():
        code, array = result.tensors[name]
        exact = wide(by_word(expected, theirs, name))
        wrong = np.abs(wide(by_word(array, ours, name)) - exact)
        choice = free(case, name)
        if choice is not None:
            left_out += int(choice.sum())
            wrong[choice] = 0
        largest = np.abs(exact).max()
        if code == "F32":
            assert (wrong <= 1e-5 * np.abs(exact) + 1e-6 * largest).all(), (name, wrong.max())
        else:
            # one unit in the last place: the exact number may lie where rounding turns
            spacing = 2 * ULP[code] * np.abs(exact) + 2.0**-24 * largest
            assert (wrong <= spacing).all(), (name, wrong.max())
    assert left_out <= 0.05 * sum(array.size for _, array in golden(case).values())


@pytest.mark.parametrize("case", [name for name in CASES if is_brief(name)])
def test_values_are_those_of_mergekit_but_for_what_bfloat16_arithmetic_costs_it(
    case: str, merge_case: MergeCase
) -> None:
    """The cost is the distance of its own two outputs, else one part in 128."""
    precise = PRECISE.get(case, f"{case.removesuffix('-16')}-32-16")
    found = merge_case(case).tensors
    wrong = cost = length = 0.0
    for name, (_, expected) in golden(case).items():
        exact = wide(expected)
        wrong += float(((wide(found[name][1]) - exact) ** 2).sum())
        length += float((exact**2).sum())
        if precise in CASES:
            cost += float(((wide(golden(precise)[name][1]) - exact) ** 2).sum())
    if precise in CASES:
        assert np.sqrt(wrong) <= np.sqrt(cost) + 2.0**-8 * np.sqrt(length)
    else:
        assert np.sqrt(wrong) <= 2.0**-7 * np.sqrt(length)


@pytest.mark.parametrize("case", [name for name in CASES if f"{name[:-3]}-32-16" in CASES])
def test_a_merge_of_bfloat16_is_within_two_units_of_the_float32_formula(
    case: str, merge_case: MergeCase
) -> None:
    """mergekit's own float32 arithmetic is the measure of what `dtype: bfloat16` gives here."""
    precise = f"{case[:-3]}-32-16"
    found = merge_case(case).tensors
    for name, (_, expected) in golden(precise).items():
        exact = wide(expected)
        wrong = np.abs(wide(found[name][1]) - exact)
        choice = free(precise, name)
        if choice is not None:
            wrong[choice] = 0
        assert (wrong <= 4 * ULP["BF16"] * np.abs(exact) + 2.0**-24 * np.abs(exact).max()).all(), (
            name
        )


@pytest.mark.parametrize("case", CASES)
def test_config_and_vocabulary_say_what_mergekits_say(
    case: str, models: Path, tmp_path: Path
) -> None:
    told = CASES[case]
    result = merged(told["recipe"], models, tmp_path / "out")
    config, expected = result.config(), told["config"]
    for key in ("num_hidden_layers", "vocab_size"):
        assert config[key] == expected[key], key
    if told["recipe"].get("dtype") or told["recipe"].get("out_dtype"):
        # mergekit writes "torch.float16" as it is in the recipe, which no library reads
        dtypes = {told.get("dtype") or told.get("torch_dtype") for told in (config, expected)}
        assert len({dtype.removeprefix("torch.") for dtype in dtypes}) == 1
    if "vocabulary" in told:
        assert set(vocabulary_of(result.folder)) == set(told["vocabulary"])
        found = template_of(result.folder)
        if case == "chat-name":
            # both wrote a template of their own of one public format
            assert "<|im_start|>" in (found or "")
            assert "<|im_start|>" in told["chat_template"]
        else:
            assert found == told["chat_template"]


@pytest.mark.parametrize("case", sorted(WRITES_FLOAT32))
def test_the_output_keeps_the_inputs_dtype_where_mergekit_writes_float32(
    case: str, merge_case: MergeCase
) -> None:
    assert {code for code, _ in golden(case).values()} == {"F32"}
    found = merge_case(case).tensors
    assert {code for code, _ in found.values()} == {"BF16"}


@pytest.mark.parametrize("case", INDEX["refused"])
def test_what_cannot_be_merged_is_refused_and_leaves_nothing(
    case: str, models: Path, tmp_path: Path
) -> None:
    """mergekit refuses these too, but for those whose names begin with silent."""
    told = INDEX["refused"][case]
    assert told["accepted"] == case.startswith("silent")
    with pytest.raises(RecipeError):
        ws.merge_checkpoints(located(told["recipe"], models), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def statistics(name: str, found: Tensors) -> list[float]:
    """The same sums and counts as the maker's, of one tensor of ours."""
    base, tuned = wide(model("large")[name][1]), wide(model("large-a")[name][1])
    task, kept = np.abs(tuned - base), np.abs(wide(found[name][1]) - base)
    order = np.argsort(np.argsort(task, axis=1, kind="stable"), axis=1, kind="stable")
    quarter = 4 * order // task.shape[1]
    alive = task > 0
    counts = [float((alive & (kept > 0) & (quarter == k)).sum()) for k in range(4)]
    totals = [float((alive & (quarter == k)).sum()) for k in range(4)]
    return [float(task.sum()), float(kept.sum()), *counts, *totals]


@pytest.mark.parametrize("case", INDEX["drawn"])
def test_random_methods_keep_as_much_as_mergekit_and_as_often_at_each_magnitude(
    case: str, models: Path, tmp_path: Path
) -> None:
    told = INDEX["drawn"][case]
    seeds = range(len(told["statistics"]))
    ours: list[Array] = []
    for seed in seeds:
        found = merged(told["recipe"], models, tmp_path / f"out{seed}", seed=seed + 11).tensors
        ours.append(np.array([statistics(name, found) for name in told["statistics"][seed]]))
    theirs = [np.array(list(each.values())) for each in told["statistics"]]
    mine, golden_ = np.sum(ours, axis=(0, 1)), np.sum(theirs, axis=(0, 1))
    assert (mine[6:] == golden_[6:]).all()
    for quarter in range(4):
        n = mine[6 + quarter]
        p, q = mine[2 + quarter] / n, golden_[2 + quarter] / n
        deviation = np.sqrt((p * (1 - p) + q * (1 - q)) / n)
        assert abs(p - q) <= 4.5 * deviation + 1e-12, (quarter, p, q)
    if case.endswith("rescaled"):
        for each in (*ours, *theirs):
            np.testing.assert_allclose(each[:, 1], each[:, 0], rtol=1e-4)
    else:
        assert abs(mine[1] / golden_[1] - 1) <= 0.03

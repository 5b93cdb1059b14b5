"""Where the models of a recipe come from: paths, the hub's cache, single files, plain folders."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weightshare as ws
from weightshare.recipes.hub import HubError
from weightshare.recipes.reference import Reference
from weightshare.recipes.sources import SourceModel, SourceOpener, place_models

COMMIT = "b" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache of the hub; nothing is downloaded."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


def save(path: Path, value: float = 1.0) -> Path:
    ws.save_checkpoint(path, {"w": np.full((2, 3), value, np.float32)})
    return path


def cached(cache: Path, name: str, value: float, ref: str = "main") -> None:
    repository = cache / f"models--{name.replace('/', '--')}"
    save(repository / "snapshots" / COMMIT, value)
    (repository / "refs").mkdir()
    (repository / "refs" / ref).write_text(COMMIT)


class Opening:
    """One opener, and what it said."""

    def __init__(self, folder: Path | None = None) -> None:
        self.opener = SourceOpener(folder, ExitStack())

    def value(self, reference: Reference | str) -> float:
        model = self.opener.open(reference, "models[0].model")
        assert model is not None, self.opener.problems
        return float(model.checkpoint["w"][0, 0])

    def problem(self, reference: Reference | str) -> str:
        assert self.opener.open(reference, "models[0].model") is None
        return self.opener.problems[-1]


def test_a_relative_path_is_looked_for_here_then_beside_the_recipe(tmp_path: Path) -> None:
    """And only then is it a name of the hub."""
    save(tmp_path / "recipes" / "org" / "model", 2.0)
    assert Opening(tmp_path / "recipes").value("org/model") == 2.0
    save(tmp_path / "here" / "org" / "model", 1.0)
    assert Opening(tmp_path / "recipes").value("org/model") == 1.0


def test_a_path_that_exists_goes_before_a_cached_model_of_that_name(
    cache: Path, tmp_path: Path
) -> None:
    """A name with a revision is never a path."""
    cached(cache, "org/model", 5.0)
    assert Opening().value("org/model") == 5.0
    save(tmp_path / "here" / "org" / "model", 1.0)
    assert Opening().value("org/model") == 1.0
    assert Opening().value(Reference("org/model", "main")) == 5.0


def test_one_word_is_a_name_of_the_hub_only_with_a_revision(cache: Path) -> None:
    """Without, it is a path that is not there."""
    cached(cache, "gpt2", 3.0)
    assert Opening().value(Reference("gpt2", "main")) == 3.0
    problem = Opening().problem("gpt2")
    assert problem.startswith("models[0].model: there is no folder or file 'gpt2' (looked in")


def test_an_adapter_is_found_by_its_name_too(cache: Path, tmp_path: Path) -> None:
    """In the cache, with a revision of its own."""
    cached(cache, "org/model", 1.0)
    repository = cache / "models--org--lora"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    factors = {"A": np.ones((1, 3), np.float32), "B": np.ones((2, 1), np.float32)}
    tensors = {f"base_model.model.m.lora_{name}.weight": value for name, value in factors.items()}
    ws.save_checkpoint(snapshot / "adapter_model.safetensors", tensors)
    (snapshot / "adapter_config.json").write_text('{"lora_alpha": 3}')
    ws.save_checkpoint(tmp_path / "m", {"m.weight": np.ones((2, 3), np.float32)})
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": f"{tmp_path / 'm'}+org/lora@{COMMIT[:7]}", "parameters": {"weight": 1}}
        ],
    }
    ws.merge_checkpoints(recipe, tmp_path / "out")
    with ws.open_checkpoint(tmp_path / "out") as merged:
        np.testing.assert_array_equal(merged["m.weight"], np.full((2, 3), 4.0, np.float32))


def test_a_name_that_is_nowhere_says_both_where_it_was_looked_for(
    cache: Path, tmp_path: Path
) -> None:
    """As a path, and in the cache."""
    save(tmp_path / "here" / "org" / "now_here")
    problem = Opening().problem("org/nowhere")
    assert f"there is no folder or file 'org/nowhere' (looked in {tmp_path / 'here'})" in problem
    assert "did you mean 'now_here'?; as a name: org/nowhere is not in the hub's cache" in problem
    assert str(cache) in problem


def test_a_path_has_no_revision(tmp_path: Path) -> None:
    """The message says to leave it out."""
    folder = save(tmp_path / "m")
    assert "is a path, which has no revisions; leave out '@v1'" in Opening().problem(
        Reference(str(folder), "v1")
    )
    assert "cannot be the name of a model" in Opening().problem(Reference("../x", "v1"))


def test_a_hostile_cache_is_a_problem_of_the_model_that_is_looked_for(cache: Path) -> None:
    """One line in the report."""
    cached(cache, "org/model", 1.0)
    (cache / "models--org--model" / "refs" / "main").write_text("../../x")
    problem = Opening().problem("org/model")
    assert problem.startswith("models[0].model: ")
    assert "is damaged" in problem


def test_what_would_have_to_be_downloaded_may_be_left_unopened(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the recipe is refused anyway; what is cached is opened."""

    def forbidden(*_: Any, **__: Any) -> Path:
        raise HubError("downloaded")

    monkeypatch.setattr("weightshare.recipes.sources.find_in_hub", forbidden)
    cached(cache, "org/model", 4.0)
    opening = Opening()
    opening.opener.download = False
    assert opening.value("org/model") == 4.0
    assert opening.opener.open("org/another", "models[1].model") is None
    assert opening.opener.problems == []
    opening.opener.download = True
    assert "downloaded" in opening.problem("org/another")


ANY_WORD = st.text(max_size=8) | st.from_regex(r"[a-c./@+~\\-]{1,12}", fullmatch=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY_WORD, st.none() | ANY_WORD, st.none() | ANY_WORD, st.none() | ANY_WORD)
def test_any_name_is_opened_or_refused_in_words(
    path: str, revision: str | None, lora: str | None, lora_revision: str | None
) -> None:
    """A recipe from anywhere never does more harm than a problem in the report."""
    with ExitStack() as opened:
        opener = SourceOpener(None, opened)
        if opener.open(Reference(path, revision, lora, lora_revision), "models[0].model") is None:
            assert opener.problems
            assert all(told.startswith("models[0].model: ") for told in opener.problems)


@pytest.mark.parametrize("name", ["m.safetensors", "unet.fp16.safetensors"])
def test_a_single_file_is_a_model(name: str, tmp_path: Path) -> None:
    """It has no configuration and no companions."""
    model = SourceOpener(None, ExitStack()).open(str(save(tmp_path / name)), "a")
    assert isinstance(model, SourceModel)
    assert model.config is None
    assert list(model) == ["w"]


def test_a_folder_without_a_configuration_is_a_model(tmp_path: Path) -> None:
    """Diffusion models, vision models, the state of a NumPy program."""
    model = SourceOpener(None, ExitStack()).open(str(save(tmp_path / "m")), "a")
    assert model is not None
    assert model.config is None


def test_single_files_and_folders_without_configurations_merge(tmp_path: Path) -> None:
    """One of each."""
    models = [save(tmp_path / "a.safetensors", 1.0), save(tmp_path / "b", 3.0)]
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(path), "parameters": {"weight": 1}} for path in models],
    }
    ws.merge_checkpoints(recipe, tmp_path / "out.safetensors")
    with ws.open_checkpoint(tmp_path / "out.safetensors") as merged:
        np.testing.assert_array_equal(merged["w"], np.full((2, 3), 2.0, np.float32))


def test_a_cached_model_merges_with_one_that_lies_here(cache: Path, tmp_path: Path) -> None:
    """By its name, whether with a revision or without."""
    cached(cache, "org/model", 5.0, ref="v1")
    save(tmp_path / "here" / "mine", 1.0)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": "org/model@v1"}, {"model": "mine"}],
        "parameters": {"weight": 1},
    }
    ws.merge_checkpoints(recipe, tmp_path / "out")
    with ws.open_checkpoint(tmp_path / "out") as merged:
        assert merged["w"][0, 0] == 3.0


def test_one_model_is_opened_once_whatever_leads_to_it(cache: Path, tmp_path: Path) -> None:
    """A link, a longer path, a name of the hub."""
    cached(cache, "org/model", 1.0)
    folder = cache / "models--org--model" / "snapshots" / COMMIT
    (tmp_path / "link").symlink_to(folder)
    opener = SourceOpener(None, ExitStack())
    names = ["org/model", str(folder), str(tmp_path / "link"), os.path.relpath(folder)]
    models = [opener.open(name, "a") for name in names]
    assert models[0] is not None
    assert all(model is models[0] for model in models)


def test_models_without_adapters_keep_their_order_in_the_plan(tmp_path: Path) -> None:
    """Their place is their index, and a tensor is read as it stands."""
    opener = SourceOpener(None, ExitStack())
    models = [opener.open(str(save(tmp_path / name)), "a") for name in ("b", "a")]
    opened = [model for model in models if model is not None]
    planned = place_models(opened)
    assert [Path(model.path).name for model in planned] == ["b", "a"]
    assert [model.files for model in planned] == [
        ((f"{model.path}/model.safetensors", os.stat(f"{model.path}/model.safetensors").st_size),)
        for model in planned
    ]
    source = opened[1].source(1, "w")
    assert (source.model, source.name, source.dtype, source.view) == (1, "w", "F32", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "is no configuration: expected a JSON object"),
        (b"{", "config.json cannot be read"),
        (b"\xff\xfe", "config.json cannot be read"),
        (b"[" * 100_000, "config.json cannot be read"),
        (b" " * 10_000_001, "larger than 10 MB"),
    ],
)
def test_a_damaged_configuration_is_a_problem(content: bytes, message: str, tmp_path: Path) -> None:
    """It is told, and the tensors are still checked."""
    (save(tmp_path / "m") / "config.json").write_bytes(content)
    opener = SourceOpener(None, ExitStack())
    assert opener.open(str(tmp_path / "m"), "models[0].model") is not None
    assert message in opener.problems[0]

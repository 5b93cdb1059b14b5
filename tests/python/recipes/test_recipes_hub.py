"""Models named as ``org/name``: the hub's local cache, and downloads from a server on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import weightshare as ws
from hub_server import MODEL, Server
from weightshare.errors import RecipeError
from weightshare.recipes import hub
from weightshare.recipes.hub import HubError, cached_snapshot, find_in_hub, is_name, wanted_files

NAME = MODEL
COMMIT, OTHER = "a" * 39 + "1", "a" * 39 + "2"
VARIABLES = (
    "HF_HOME",
    "HUGGINGFACE_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_ENDPOINT",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache, to which the variables point."""
    for variable in (*VARIABLES, "HF_TOKEN", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def weights(folder: Path, value: float = 1.0, **options: Any) -> dict[str, bytes]:
    """Return the files of a small model."""
    tensors = {"w": np.full((2, 3), value, np.float32), "v": np.ones(5, np.float32)}
    ws.save_checkpoint(folder / f"made-{value}", tensors, **options)
    files = {path.name: path.read_bytes() for path in (folder / f"made-{value}").iterdir()}
    return files | {"config.json": b"{}"}


def fill(
    cache: Path, files: dict[str, bytes], commit: str = COMMIT, refs: tuple[str, ...] = ("main",)
) -> Path:
    """Write a model into the cache as the library does: links into blobs; return its snapshot."""
    repository = cache / f"models--{NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    for ref in refs:
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return snapshot


def first_number(snapshot: Path | None) -> float:
    assert snapshot is not None
    with ws.open_checkpoint(snapshot) as model:
        return float(model["w"][0, 0])


def test_the_cache_is_where_the_variables_say() -> None:
    """In the order in which the library looks at them."""
    every = {"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}
    every |= {"XDG_CACHE_HOME": "/d", "HOME": "/e"}
    expected = ["/a", "/b", "/c/hub", "/d/huggingface/hub"]
    for variable, folder in zip(list(every)[:4], expected, strict=True):
        assert str(hub.cache_folder(every)) == folder
        del every[variable]
    home = os.path.expanduser("~")
    assert str(hub.cache_folder({})) == f"{home}/.cache/huggingface/hub"


@pytest.mark.parametrize(
    "revision", [None, "main", "v1.0", "refs/pr/1", COMMIT, COMMIT[:40], "aaaa"]
)
def test_a_cached_model_is_found_by_branch_tag_or_commit(
    revision: str | None, cache: Path, tmp_path: Path
) -> None:
    """No library is needed for that, and nothing is downloaded."""
    snapshot = fill(cache, weights(tmp_path), refs=("main", "v1.0", "refs/pr/1"))
    assert find_in_hub(NAME, revision) == snapshot
    assert first_number(snapshot) == 1.0


def test_revisions_are_told_apart(cache: Path, tmp_path: Path) -> None:
    """Each has a snapshot of its own."""
    fill(cache, weights(tmp_path, 1.0))
    fill(cache, weights(tmp_path, 2.0), OTHER, refs=("v2",))
    assert first_number(cached_snapshot(NAME, None)) == 1.0
    assert first_number(cached_snapshot(NAME, "v2")) == 2.0
    assert first_number(cached_snapshot(NAME, OTHER)) == 2.0
    assert cached_snapshot(NAME, "v3") is None
    assert cached_snapshot("org/another", None) is None
    with pytest.raises(HubError, match="is ambiguous"):
        cached_snapshot(NAME, "aaaa")


def test_a_cached_model_of_several_shards_is_read_through_its_links(
    cache: Path, tmp_path: Path
) -> None:
    """Links into blobs are what a cache is made of."""
    snapshot = fill(cache, weights(tmp_path, max_shard_size=24))
    assert len(list(snapshot.glob("*.safetensors"))) == 2
    assert first_number(cached_snapshot(NAME, None)) == 1.0


@pytest.mark.parametrize("size", [24, None], ids=["shards", "one file"])
def test_a_cache_whose_blobs_link_to_one_store_for_all_is_read(
    size: int | None, cache: Path, tmp_path: Path
) -> None:
    """Newer versions of the library keep equal files of several models once."""
    snapshot = fill(cache, weights(tmp_path, max_shard_size=size))
    for link in snapshot.glob("*.safetensors"):
        blob = link.resolve()
        stored = cache / "blobs" / blob.name[:2] / blob.name
        stored.parent.mkdir(parents=True)
        blob.rename(stored)
        blob.symlink_to(os.path.relpath(stored, blob.parent))
    assert first_number(cached_snapshot(NAME, None)) == 1.0


def test_a_cache_without_links_is_read(cache: Path, tmp_path: Path) -> None:
    """File systems that have none get copies."""
    snapshot = fill(cache, weights(tmp_path))
    for link in list(snapshot.iterdir()):
        content = link.read_bytes()
        link.unlink()
        link.write_bytes(content)
    assert first_number(cached_snapshot(NAME, None)) == 1.0


def test_a_cache_that_is_a_link_itself_is_read(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People keep it on another disk."""
    fill(cache, weights(tmp_path))
    (tmp_path / "elsewhere").symlink_to(cache)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert first_number(cached_snapshot(NAME, None)) == 1.0


def remove_blob(snapshot: Path) -> None:
    next(iter(snapshot.glob("*.safetensors"))).resolve().unlink()


def remove_link(snapshot: Path) -> None:
    next(iter(snapshot.glob("*.safetensors"))).unlink()


@pytest.mark.parametrize("size", [24, None], ids=["shards", "one file"])
@pytest.mark.parametrize("spoil", [remove_blob, remove_link])
def test_a_model_that_is_not_whole_in_the_cache_is_not_taken(
    spoil: Callable[[Path], None], size: int | None, cache: Path, tmp_path: Path
) -> None:
    """As after a download that was stopped, or when only the tokenizer was wanted."""
    snapshot = fill(cache, weights(tmp_path, max_shard_size=size))
    spoil(snapshot)
    assert cached_snapshot(NAME, None) is None


def test_shards_whose_index_was_not_downloaded_yet_are_not_taken(
    cache: Path, tmp_path: Path
) -> None:
    """So that a download that was stopped goes on, instead of failing at every opening."""
    snapshot = fill(cache, weights(tmp_path, max_shard_size=24))
    (snapshot / "model.safetensors.index.json").unlink()
    assert cached_snapshot(NAME, None) is None


def leads_out(snapshot: Path, secret: Path) -> None:
    (snapshot / "tokenizer.json").symlink_to(secret)


def leads_up(snapshot: Path, secret: Path) -> None:
    (snapshot / "tokenizer.json").symlink_to(os.path.relpath(secret, snapshot))


def leads_to_itself(snapshot: Path, _: Path) -> None:
    (snapshot / "tokenizer.json").symlink_to("tokenizer.json")


def leads_in_a_circle(snapshot: Path, _: Path) -> None:
    (snapshot / "a.json").symlink_to("b.json")
    (snapshot / "b.json").symlink_to("a.json")


def leads_to_another_model(snapshot: Path, _: Path) -> None:
    other = snapshot.parents[2] / "models--org--other" / "blobs" / "x"
    other.parent.mkdir(parents=True)
    other.write_text("x")
    (snapshot / "tokenizer.json").symlink_to(other)


def blob_leads_out(snapshot: Path, secret: Path) -> None:
    blob = (snapshot / "config.json").resolve()
    blob.unlink()
    blob.symlink_to(secret)


@pytest.mark.parametrize(
    "spoil",
    [
        leads_out,
        leads_up,
        leads_to_itself,
        leads_in_a_circle,
        leads_to_another_model,
        blob_leads_out,
    ],
)
def test_links_out_of_the_cache_are_refused(
    spoil: Callable[[Path, Path], None], cache: Path, tmp_path: Path
) -> None:
    """A cache may come from anywhere; its small files are copied beside the merged model."""
    (tmp_path / "secret").write_text("secret")
    spoil(fill(cache, weights(tmp_path)), tmp_path / "secret")
    with pytest.raises(HubError, match="is a link out of it, or to itself"):
        cached_snapshot(NAME, None)


def test_a_snapshot_that_is_a_link_out_of_the_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    """The folder itself may lead away as well."""
    snapshot = fill(cache, weights(tmp_path))
    snapshot.rename(tmp_path / "moved")
    snapshot.symlink_to(tmp_path / "moved")
    with pytest.raises(HubError, match="leads out of it"):
        cached_snapshot(NAME, None)


@pytest.mark.parametrize("content", ["../../../../etc", "", "main", "A" * 40, "a" * 41, "\0" * 40])
def test_a_reference_that_is_no_commit_is_refused(
    content: str, cache: Path, tmp_path: Path
) -> None:
    """It becomes a part of a path."""
    snapshot = fill(cache, weights(tmp_path))
    (snapshot.parents[1] / "refs" / "main").write_text(content)
    with pytest.raises(HubError, match="is damaged: expected a commit"):
        cached_snapshot(NAME, None)


def test_a_reference_that_is_a_link_out_of_the_cache_is_not_read(
    cache: Path, tmp_path: Path
) -> None:
    """Nor one that leads to itself."""
    snapshot = fill(cache, weights(tmp_path))
    (tmp_path / "outside").write_text(COMMIT)
    main = snapshot.parents[1] / "refs" / "main"
    for target in (tmp_path / "outside", main):
        main.unlink()
        main.symlink_to(target)
        assert cached_snapshot(NAME, None) is None


@pytest.mark.parametrize(
    "revision", ["../../secret", "/etc/passwd", "a/../b", ".", "", "a\nb", "a" * 301]
)
def test_revisions_that_are_paths_are_refused(revision: str, cache: Path, tmp_path: Path) -> None:
    """Before anything is looked up."""
    fill(cache, weights(tmp_path))
    with pytest.raises(HubError, match="is no revision"):
        find_in_hub(NAME, revision)


@given(st.text(max_size=12) | st.from_regex(r"[a./\\~@-]{0,6}", fullmatch=True))
def test_a_name_never_leads_out_of_the_cache(text: str) -> None:
    """A name is one word, or two with a stroke between them."""
    if is_name(text):
        assert text.count("/") <= 1
        assert not {"", ".", ".."} & set(text.split("/"))
        assert text.isascii()
        assert text.isprintable()


def test_without_the_library_the_message_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where it was looked for."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match="pip install 'weightshare\\[hub\\]'") as caught:
        find_in_hub(NAME, "v1")
    assert str(cache) in str(caught.value)
    assert "hf download org/model --revision v1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_variables_that_forbid_downloads_are_obeyed(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the library as well."""
    monkeypatch.setenv(variable, "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids"):
        find_in_hub(NAME, None)


def test_only_safetensors_and_small_files_are_downloaded() -> None:
    """Weights once, no pickles, no code, no folders."""
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index, small = "model.safetensors.index.json", ["config.json", "merges.txt", "tokenizer.model"]
    waste = ["pytorch_model.bin", "pytorch_model.bin.index.json", "README.md", "modeling.py"]
    waste += ["original/consolidated.safetensors", "consolidated.safetensors", "model.gguf"]
    assert wanted_files([*shards, index, *small, *waste], NAME) == sorted([*shards, index, *small])
    one = wanted_files(["model.safetensors", *shards, *small, *waste], NAME)
    assert one == sorted(["model.safetensors", *small])
    assert wanted_files(["unet.safetensors", "a.txt"], NAME) == ["a.txt", "unet.safetensors"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pytorch_model.bin", "config.json"], "has no safetensors among its 2 files"),
        (["a/model.safetensors"], "has no safetensors among its 0 files"),
        (["m.gguf"], "is a GGUF file of llama.cpp"),
    ],
)
def test_models_without_safetensors_are_refused_before_they_are_downloaded(
    files: list[str], message: str
) -> None:
    """The list of files tells."""
    with pytest.raises(HubError, match=message):
        wanted_files(files, NAME)


def test_an_adapter_that_is_pickled_is_refused_before_it_is_downloaded() -> None:
    """The list of files tells."""
    every = ["adapter_config.json", "adapter_model.bin"]
    with pytest.raises(HubError, match=r"no adapter_model.safetensors .*adapter_model\.bin\)"):
        wanted_files(every, NAME, hub.ADAPTER_FILES)


needs_library = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed"
)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a running hub with one model of two shards, beside pickles and code."""
    files = weights(tmp_path, 3.0, max_shard_size=24) | {"pytorch_model.bin": b"PK", "run.py": b""}
    running = Server(files | {"tokenizer.json": b"{}"})
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@needs_library
@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_model_that_is_not_cached_is_downloaded_once(
    revision: str | None, server: Server, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Into the cache, without pickles, without code, without a word; the next time it is there."""
    snapshot = find_in_hub(NAME, revision)
    assert snapshot.is_relative_to(cache)
    assert first_number(snapshot) == 3.0
    names = {path.name for path in snapshot.iterdir()}
    assert names == server.files.keys() - {"pytorch_model.bin", "run.py"}
    assert not any(name in asked for asked in server.asked for name in (".bin", ".py"))
    asked = len(server.asked)
    assert find_in_hub(NAME, revision) == snapshot
    assert len(server.asked) == asked
    assert capfd.readouterr() == ("", "")


@needs_library
def test_a_recipe_that_names_a_model_of_the_hub_merges_it(server: Server, tmp_path: Path) -> None:
    """Downloaded while planning; the merge reads the cache."""
    ws.save_checkpoint(
        tmp_path / "mine", {"w": np.ones((2, 3), np.float32), "v": np.zeros(5, np.float32)}
    )
    recipe = {
        "merge_method": "linear",
        "models": [{"model": f"{NAME}@v1"}, {"model": str(tmp_path / "mine")}],
        "parameters": {"weight": 1},
    }
    plan = ws.plan_merge(recipe)
    asked = len(server.asked)
    ws.merge_checkpoints(recipe, tmp_path / "out")
    assert [model.label for model in plan.models] == [f"{NAME}@v1", str(tmp_path / "mine")]
    assert len(server.asked) == asked
    assert first_number(tmp_path / "out") == 2.0
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == b"{}"


@needs_library
def test_nothing_is_downloaded_for_a_recipe_that_is_wrong(server: Server) -> None:
    """A misspelling is told at once, not after the download."""
    models = [{"model": NAME, "parameters": {"wieght": 1}}]
    with pytest.raises(RecipeError, match="did you mean 'weight'"):
        ws.plan_merge({"merge_method": "linear", "models": models})
    assert server.asked == []


@needs_library
def test_an_adapter_is_downloaded_without_what_lies_beside_it(server: Server) -> None:
    """Its two files, and nothing else."""
    server.files = {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": b"x",
        "b.json": b"{}",
    }
    files = ("adapter_config.json", "adapter_model.safetensors")
    snapshot = find_in_hub(NAME, None, files)
    assert sorted(path.name for path in snapshot.iterdir()) == sorted(files)


@needs_library
def test_what_is_missing_in_the_cache_is_downloaded_and_nothing_else(
    server: Server, cache: Path
) -> None:
    """A download that was stopped goes on."""
    snapshot = find_in_hub(NAME, None)
    remove_link(snapshot)
    blobs = {path.resolve().name for path in snapshot.iterdir()}
    for blob in (snapshot.parents[1] / "blobs").iterdir():
        if blob.name not in blobs:
            blob.unlink()
    server.asked.clear()
    assert first_number(find_in_hub(NAME, None)) == 3.0
    assert len([asked for asked in server.asked if asked.startswith(f"GET /{NAME}/resolve")]) == 1


@needs_library
@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("org/nowhere", None, "there is no model org/nowhere, or it is private"),
        (NAME, "v9", "has no revision v9"),
        ("org/gated", None, "is gated"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    name: str, revision: str | None, message: str, server: Server, cache: Path
) -> None:
    """The message says what to do, and where it was looked for."""
    with pytest.raises(HubError, match=message) as caught:
        find_in_hub(name, revision)
    assert "\n" not in str(caught.value)
    assert str(cache) in str(caught.value)


@needs_library
@pytest.mark.parametrize("way", ["broken", "gone"])
def test_a_hub_that_does_not_answer_is_told_in_one_line(
    way: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback of a library, and nothing half done."""
    server.broken = True
    if way == "gone":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="it could not be downloaded: ") as caught:
        find_in_hub(NAME, None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


@needs_library
def test_bars_are_shown_when_they_are_asked_for(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the library's own setting is as it was before."""
    utils = importlib.import_module("huggingface_hub.utils")
    before = utils.are_progress_bars_disabled()
    find_in_hub(NAME, None, progress=True)
    assert "%" in capfd.readouterr().err
    assert utils.are_progress_bars_disabled() == before

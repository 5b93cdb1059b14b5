"""A model merged here, loaded by transformers, gives the logits of the same merge of state dicts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightshare as ws

torch = pytest.importorskip("torch")
# A failing import of transformers is a missing peer too: it wants versions of others.
transformers = pytest.importorskip("transformers", exc_type=ImportError)

State = dict[str, Any]
WORDS = 64


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, one thread of torch's, and its random numbers as before."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


def tiny(seed: int, *, tied: bool = False, layers: int = 2) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=layers,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any, str], Path]:
    def write(model: Any, name: str) -> Path:
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return write


def loaded(folder: Path) -> Any:
    """Load, and insist that no weight was missing, left over or made anew."""
    model, told = transformers.LlamaForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype="auto", local_files_only=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not told[kind], (kind, told[kind])
    return model.eval()


def logits(model: Any) -> Any:
    ids = torch.tensor([[1, 5, 9, 33, 63, 2, 17], [4, 4, 60, 3, 2, 1, 0]])
    with torch.no_grad():
        return model(ids).logits.float().numpy()


def averaged(states: list[State], weights: list[float]) -> State:
    total = sum(weights)
    return {
        name: sum(w * state[name] for w, state in zip(weights, states, strict=True)) / total
        for name in states[0]
    }


def moved(base: State, states: list[State], weights: list[float]) -> State:
    return {
        name: base[name]
        + sum(w * (s[name] - base[name]) for w, s in zip(weights, states, strict=True))
        for name in base
    }


def recipe(method: str, weights: dict[Path, float], **keys: Any) -> dict[str, Any]:
    models = [
        {"model": str(path), "parameters": {"weight": weight}} for path, weight in weights.items()
    ]
    return {"merge_method": method, "models": models, **keys}


def expected_logits(model: Any, state: State) -> Any:
    model.load_state_dict(state)
    return logits(model)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_a_linear_merge_gives_the_logits_of_averaged_state_dicts(
    tied: bool, save: Callable[[Any, str], Path], tmp_path: Path
) -> None:
    models = [tiny(seed, tied=tied) for seed in (1, 2)]
    paths = [save(model, f"m{k}") for k, model in enumerate(models)]
    told = recipe("linear", dict(zip(paths, [0.7, 0.4], strict=True)))
    ws.merge_checkpoints(told, tmp_path / "out")
    merged = loaded(tmp_path / "out")
    assert merged.config.tie_word_embeddings == tied
    state = averaged([model.state_dict() for model in models], [0.7, 0.4])
    found, expected = logits(merged), expected_logits(models[0], state)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_task_arithmetic_in_shards_gives_the_logits_of_state_dicts(
    save: Callable[[Any, str], Path], tmp_path: Path
) -> None:
    base, first, second = (tiny(seed) for seed in (1, 2, 3))
    paths = [save(model, name) for model, name in ((base, "base"), (first, "a"), (second, "b"))]
    told = recipe(
        "task_arithmetic",
        dict(zip(paths[1:], [0.3, -0.2], strict=True)),
        base_model=str(paths[0]),
    )
    ws.merge_checkpoints(told, tmp_path / "out", max_shard_size="20kB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    state = moved(base.state_dict(), [first.state_dict(), second.state_dict()], [0.3, -0.2])
    found, expected = logits(loaded(tmp_path / "out")), expected_logits(base, state)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_stacked_layers_give_the_logits_of_a_deeper_state_dict(
    save: Callable[[Any, str], Path], tmp_path: Path
) -> None:
    """Layers 0 and 1 of one model, then layers 0 and 1 of another: four layers in all."""
    first, second = tiny(1), tiny(2)
    paths = [save(first, "a"), save(second, "b")]
    slices = [{"sources": [{"model": str(path), "layer_range": [0, 2]}]} for path in paths]
    told = {"merge_method": "passthrough", "slices": slices}
    ws.merge_checkpoints(told, tmp_path / "out")
    deep = tiny(3, layers=4)
    ends = {"model.embed_tokens.weight": first, "model.norm.weight": second}
    ends["lm_head.weight"] = second
    state = {}
    for name in deep.state_dict():
        if name in ends:
            state[name] = ends[name].state_dict()[name]
            continue
        layer = int(name.split(".")[2])
        own = name.replace(f"layers.{layer}.", f"layers.{layer % 2}.")
        state[name] = (first, second)[layer // 2].state_dict()[own]
    merged = loaded(tmp_path / "out")
    assert merged.config.num_hidden_layers == 4
    np.testing.assert_array_equal(logits(merged), expected_logits(deep, state))


def test_a_merge_to_bfloat16_loads_as_bfloat16(
    save: Callable[[Any, str], Path], tmp_path: Path
) -> None:
    models = [tiny(seed) for seed in (1, 2)]
    paths = [save(model, f"m{k}") for k, model in enumerate(models)]
    told = recipe("linear", dict.fromkeys(paths, 1.0), out_dtype="bfloat16")
    ws.merge_checkpoints(told, tmp_path / "out")
    merged = loaded(tmp_path / "out")
    assert merged.dtype == torch.bfloat16
    state = averaged([model.state_dict() for model in models], [1.0, 1.0])
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, state[name].to(torch.bfloat16)), name


def test_a_merged_folder_is_saved_again_by_transformers_unchanged(
    save: Callable[[Any, str], Path], tmp_path: Path
) -> None:
    """What transformers writes of a merge it has loaded is what the merge wrote."""
    paths = [save(tiny(seed), f"m{seed}") for seed in (1, 2)]
    ws.merge_checkpoints(recipe("linear", dict.fromkeys(paths, 1.0)), tmp_path / "out")
    loaded(tmp_path / "out").save_pretrained(tmp_path / "again")
    with (
        ws.open_checkpoint(tmp_path / "out") as first,
        ws.open_checkpoint(tmp_path / "again") as second,
    ):
        assert sorted(first) == sorted(second)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["architectures"] == ["LlamaForCausalLM"]
    assert not os.path.exists(tmp_path / "out" / "model.safetensors.index.json")

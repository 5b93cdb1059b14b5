"""Tensors that are copied and not merged: they get the output's dtype and vocabulary as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from vocabularies import A, B, model_maker
from weightshare.merging import NonFiniteError

Make = Callable[..., Path]
Recipe = Callable[..., dict[str, Any]]
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
DTYPES["float64"] = np.float64
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def drawn(size: int, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(dtype)


def merged(recipe: Any, out: Path, **keys: Any) -> dict[str, np.ndarray]:
    ws.merge_checkpoints(recipe, out, **keys)
    with ws.open_checkpoint(out) as found:
        return {name: np.array(found[name]) for name in found}


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
@pytest.mark.parametrize("kept", sorted(DTYPES))
@pytest.mark.parametrize("asked", sorted(DTYPES))
def test_copies_are_rounded_to_the_dtype_that_is_asked_for(
    asked: str, kept: str, key: str, make_model: Make, linear: Recipe, tmp_path: Path, threads: int
) -> None:
    """As if merged alone; integers stay as they are, and so do all without a dtype."""
    only = drawn(70_001, DTYPES[kept])
    held = {"w": np.ones(3, np.float32)}
    a = make_model("a", held | {"only": only, "ids": np.arange(4)})
    recipe = linear(a, make_model("b", held))
    found = merged(recipe | {key: asked}, tmp_path / "out", lenient=True, threads=threads)
    assert found["only"].dtype == found["w"].dtype == DTYPES[asked]
    np.testing.assert_array_equal(found["only"], only.astype(DTYPES[asked]))
    np.testing.assert_array_equal(found["ids"], np.arange(4))
    plain = merged(recipe, tmp_path / "plain", lenient=True, threads=threads)
    assert plain["only"].dtype == DTYPES[kept]


def test_quantised_tensors_are_copied_as_what_they_stand_for(
    make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """8-bit floats with a scale become bfloat16, or what the recipe asks for."""
    codes = drawn(64, ml_dtypes.float8_e4m3fn).reshape(8, 8)
    held = {"w": np.ones(3, np.float32)}
    quantised = {"only.weight": codes, "only.weight_scale_inv": np.float32([[0.5]])}
    said = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]}}
    recipe = linear(make_model("a", held | quantised, config=said), make_model("b", held))
    for asked, dtype in ((None, ml_dtypes.bfloat16), ("float16", np.float16)):
        more = {} if asked is None else {"out_dtype": asked}
        out = tmp_path / str(asked)
        found = merged(recipe | more, out, lenient=True)["only.weight"]
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, (codes.astype(np.float32) / 2).astype(dtype))


def test_what_belongs_to_no_module_has_the_dtype_of_the_rest(
    make_model: Make, tmp_path: Path
) -> None:
    """A projector between two modules is copied, and not left in another dtype."""
    weights = {name: drawn(6, ml_dtypes.bfloat16) for name in ("text.w", "eyes.w", "between.w")}
    a = make_model("a", weights, config={"torch_dtype": "bfloat16"})
    one = {"models": [{"model": str(a)}]}
    recipe = {"merge_method": "passthrough", "modules": {"text": one, "eyes": one}}
    found = merged(recipe | {"dtype": "float16"}, tmp_path / "out")
    assert {value.dtype for value in found.values()} == {np.dtype(np.float16)}
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["torch_dtype"] == "float16"


def test_a_copy_that_is_too_large_for_its_dtype_is_refused(
    make_model: Make, linear: Recipe, tmp_path: Path
) -> None:
    """Infinity never comes in silence; one that the file holds stays."""
    only = np.ones(40_000, np.float32)
    only[7] = np.inf
    held = {"w": np.ones(3, np.float32)}
    for place, name in ((None, "a"), (39_000, "b")):
        if place is not None:
            only[place] = 1e6
        recipe = linear(make_model(name, held | {"only": only}), make_model(f"{name}2", held))
        recipe |= {"out_dtype": "float16"}
        if place is None:
            found = merged(recipe, tmp_path / "out", lenient=True)["only"]
            assert np.flatnonzero(np.isinf(found)).tolist() == [7]
            continue
        with pytest.raises(NonFiniteError, match=r"element 39000 is too large for float16") as told:
            ws.merge_checkpoints(recipe, tmp_path / "no", lenient=True)
        assert (told.value.tensor, told.value.count, told.value.first) == ("only", 1, 39_000)
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copied_tables_have_the_rows_of_the_new_vocabulary(
    dtype: str, make_model: Make, tmp_path: Path
) -> None:
    """Left out of all modules, embeddings are copied; their rows follow the tokens all the same."""
    make = model_maker(make_model)
    a, b = make("a", A), make("b", B)
    models = [{"model": str(path), "parameters": {"weight": 1}} for path in (a, b)]
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "modules": {"model": {"models": models}},
        "base_model": str(a),
        "tokenizer": {"source": "union"},
        "out_dtype": dtype,
    }
    for path in (a, b):
        with ws.open_checkpoint(path) as opened:
            held = dict(opened.items())
        held["model.layers.0.mlp.up_proj.weight"] = np.ones((2, 2), np.float32)
        ws.save_checkpoint(path, held, overwrite=True)
    found = merged(recipe, tmp_path / "out")
    with ws.open_checkpoint(a) as one, ws.open_checkpoint(b) as two:
        heads = np.array(one[HEAD]), np.array(two[HEAD])
    order = [*A, *(token for token in B if token not in A)]
    expected = [heads[0][A.index(t)] if t in A else heads[1][B.index(t)] for t in order]
    assert found[HEAD].shape == found[EMBED].shape
    np.testing.assert_array_equal(found[HEAD], np.array(expected).astype(DTYPES[dtype]))


def test_a_lenient_copy_of_a_table_has_the_rows_of_the_new_vocabulary(
    make_model: Make, tmp_path: Path
) -> None:
    """A head that one model lacks comes with rows for all tokens, or not at all."""
    make = model_maker(make_model)
    a, b = make("a", A), make("b", B)
    for path, gone in ((a, ()), (b, (HEAD,))):
        with ws.open_checkpoint(path) as opened:
            held = {name: np.array(opened[name]) for name in opened if name not in gone}
        held["model.layers.0.mlp.up_proj.weight"] = np.ones((2, 2), np.float32)
        ws.save_checkpoint(path, held, overwrite=True)
    config = json.loads((b / "config.json").read_text()) if (b / "config.json").exists() else {}
    (b / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(path), "parameters": {"weight": 1}} for path in (a, b)],
        "base_model": str(a),
        "tokenizer": {"source": "union"},
    }
    found = merged(recipe, tmp_path / "out", lenient=True)
    assert found[HEAD].shape == found[EMBED].shape

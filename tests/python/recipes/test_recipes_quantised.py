"""Quantised models: 8-bit floats are made floats again, all others are refused with a remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare.recipes.packed import foreign_file
from weightshare.recipes.quantised import without_quantisation
from weightshare.recipes.sources import SourceModel, SourceOpener, place_models

BF16 = np.dtype(ml_dtypes.bfloat16)
F8 = np.dtype(ml_dtypes.float8_e4m3fn)
F8_RANGE = np.dtype(ml_dtypes.float8_e5m2)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
FP8 = {"quant_method": "fp8", "weight_block_size": [4, 4]}
W = "model.layers.0.mlp.up_proj.weight"


class Opened:
    """A model folder, opened as a recipe's model is."""

    def __init__(
        self, folder: Path, tensors: Mapping[str, Any], quantisation: dict[str, Any] | None = None
    ) -> None:
        ws.save_checkpoint(folder / "m", tensors)
        config: dict[str, Any] = {"model_type": "toy", "text_config": {"layers": 1}}
        if quantisation is not None:
            config["quantization_config"] = quantisation
        (folder / "m" / "config.json").write_text(json.dumps(config))
        self.stack = ExitStack()
        self.opener = SourceOpener(None, self.stack)
        self.found = self.opener.open(str(folder / "m"), "models[0].model")
        self.problems = "\n".join(self.opener.problems)
        self.warnings = "\n".join(self.opener.warnings)

    @property
    def model(self) -> SourceModel:
        assert self.found is not None, self.problems
        return self.found

    def read(self, name: str) -> Any:
        """The tensor as a merge reads it."""
        place_models([self.model])
        source, info = self.model.source(0, name), self.model.info(name)
        assert source.view is not None
        assert (source.dtype, info.dtype) == ("F32", "BF16")
        out = np.empty(info.shape, np.float32)
        source.view.open([self.model.checkpoint]).read_into(0, out.size, out.reshape(-1))
        return out


def codes(shape: tuple[int, ...], dtype: Any = F8, seed: int = 0) -> Any:
    return (4 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def scales(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    drawn = np.random.default_rng(1).uniform(0.001, 0.1, shape)
    return np.asarray(drawn).astype(dtype)


def grown(scale: Any, shape: tuple[int, ...], block: tuple[int, ...]) -> Any:
    """One scale for each element, by repeating those of blocks."""
    full = scale.astype(np.float64)
    if not block:
        return np.full(shape, full.item())
    for axis, side in enumerate(block):
        full = np.repeat(full, side, axis=axis)
    return full[tuple(slice(length) for length in shape)]


# shape of the weight, shape of the scales, block, what the scales' name adds, the configuration
LAYOUTS: list[
    tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], str, dict[str, Any] | None]
] = [
    ((10, 7), (3, 2), (4, 4), "_scale_inv", FP8),
    ((130, 260), (2, 3), (128, 128), "_scale_inv", {"quant_method": "fp8"}),
    ((10, 7), (), (), "_scale", {"quant_method": "compressed-tensors"}),
    ((10, 7), (1,), (), "_scale", {"quant_method": "modelopt"}),
    ((10, 7), (10, 1), (1, 7), "_scale", {"quant_method": "fbgemm_fp8"}),
    ((10, 7), (10,), (1, 7), "_scale", {"quant_method": "compressed-tensors"}),
    ((3, 10, 7), (3, 3, 2), (1, 4, 4), "_scale_inv", FP8),
    ((3, 10, 7), (3, 1, 7), (1, 10, 1), "_scale", {"quant_method": "fbgemm_fp8"}),
    ((3, 10, 7), (3,), (1, 10, 7), "_scale", {"quant_method": "modelopt"}),
    (
        (10, 8),
        (10, 2),
        (1, 4),
        "_scale",
        {"config_groups": {"a": {"weights": {"group_size": 4}}}},
    ),
    (
        (10, 8),
        (5, 3),
        (2, 3),
        "_scale",
        {"config_groups": {"a": {"weights": {"block_structure": "2x3"}}}},
    ),
]


@pytest.mark.parametrize(("shape", "scale_shape", "block", "adds", "said"), LAYOUTS)
@pytest.mark.parametrize("dtype", [F8, F8_RANGE], ids=str)
def test_codes_times_the_scales_of_their_blocks(
    shape: Any, scale_shape: Any, block: Any, adds: str, said: Any, dtype: Any, tmp_path: Path
) -> None:
    """The value is code times scale; the scales are no tensors of the merged model."""
    weight, scale = codes(shape, dtype), scales(scale_shape)
    plain = np.ones(5, np.float32)
    opened = Opened(tmp_path, {W: weight, f"{W}{adds}": scale, "model.norm.weight": plain}, said)
    assert sorted(opened.model) == [W, "model.norm.weight"]
    assert len(opened.model) == 2
    assert f"{W}{adds}" not in opened.model
    full = scale.reshape(scale.shape + (1,) * (len(block) - scale.ndim)) if block else scale
    expected = weight.astype(np.float64) * grown(full, shape, block)
    np.testing.assert_allclose(opened.read(W), expected, rtol=1e-7)
    assert opened.model.source(0, "model.norm.weight").view is None


@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float64, np.float32], ids=str)
def test_scales_may_be_of_any_float(dtype: Any, tmp_path: Path) -> None:
    """They are rounded to float32 once."""
    weight, scale = codes((10, 7)), scales((3, 2), dtype)
    opened = Opened(tmp_path, {W: weight, f"{W}_scale_inv": scale}, FP8)
    expected = weight.astype(np.float64) * grown(scale, (10, 7), (4, 4))
    np.testing.assert_allclose(opened.read(W), expected, rtol=2e-7)


def test_scales_that_are_powers_of_two_are_read_as_such(tmp_path: Path) -> None:
    """F8_E8M0 holds the exponent, 127 standing for 0."""
    exponents = np.array([[127, 120], [130, 127], [1, 200]], np.uint8)
    weight = codes((10, 7))
    opened = Opened(tmp_path, {W: weight, f"{W}_scale_inv": exponents.view(E8M0)}, FP8)
    scale = np.exp2(exponents.astype(np.float64) - 127)
    expected = weight.astype(np.float64) * grown(scale, (10, 7), (4, 4))
    np.testing.assert_allclose(opened.read(W), expected, rtol=1e-7)


def test_scales_beside_a_marker_are_those_of_its_tool(tmp_path: Path) -> None:
    """A diffusion model: one scale_weight for each weight, and a tensor that marks the file."""
    tensors = {
        "block.to_q.weight": codes((6, 4)),
        "block.to_q.scale_weight": np.float32([0.25]),
        "block.to_q.scale_input": np.float32([3.0]),
        "scaled_fp8": np.zeros(2, F8),
    }
    opened = Opened(tmp_path, tensors)
    assert "without their scales: scaled_fp8" not in opened.problems
    np.testing.assert_array_equal(
        opened.read("block.to_q.weight"), 0.25 * tensors["block.to_q.weight"].astype(np.float32)
    )
    assert list(opened.model) == ["block.to_q.weight"]
    assert "left out: block.to_q.scale_input" in opened.warnings


def test_codes_that_were_only_cast_stand_for_themselves(tmp_path: Path) -> None:
    """No scale in the file, and no word of quantisation: taken for the weights, with a warning."""
    opened = Opened(tmp_path, {W: codes((6, 4))})
    np.testing.assert_array_equal(opened.read(W), codes((6, 4)).astype(np.float32))
    assert f"taken for the weights themselves: {W}" in opened.warnings
    models = [{"model": str(tmp_path / "m"), "parameters": {"weight": 1}}]
    plan = ws.plan_merge({"merge_method": "linear", "models": models})
    assert plan.warnings == (opened.warnings,)


def test_codes_whose_scales_are_missing_are_refused(tmp_path: Path) -> None:
    """The configuration says that there are some."""
    assert (
        f"8-bit floats without their scales: {W}"
        in Opened(tmp_path, {W: codes((6, 4))}, FP8).problems
    )


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (scales((5, 2)), "[5, 2] of a weight of shape [10, 7]"),
        (scales((3, 2, 1)), "[3, 2, 1] of a weight of shape [10, 7]"),
        (scales((0, 2)), "[0, 2] of a weight of shape [10, 7]"),
        (np.ones((3, 2), np.int32), "_scale_inv is I32"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scale: Any, message: str, tmp_path: Path) -> None:
    """No block of whole sides gives so many."""
    problems = Opened(tmp_path, {W: codes((10, 7)), f"{W}_scale_inv": scale}, FP8).problems
    assert "scales that do not fit" in problems
    assert message in problems


def test_scales_of_caches_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """They serve the quantised model only; in a model of floats the same name is a tensor."""
    tensors = {W: codes((6, 4)), f"{W}_scale": scales(()), "a.k_scale": np.float32([2])}
    opened = Opened(tmp_path, tensors, {"quant_method": "fp8"})
    assert list(opened.model) == [W]
    assert "left out: a.k_scale" in opened.warnings
    (tmp_path / "plain").mkdir()
    assert "a.k_scale" in Opened(tmp_path / "plain", {"a.k_scale": np.float32([2])}).model


def test_a_tensor_with_a_scales_name_stays_where_no_weight_is_scaled(tmp_path: Path) -> None:
    """Attention with a learnt scale of the queries, in a file that was only cast."""
    opened = Opened(tmp_path, {W: codes((6, 4)), "a.q_scale": np.ones(4, np.float32)})
    assert list(opened.model) == ["a.q_scale", W]
    assert "left out" not in opened.warnings


def test_the_configuration_no_longer_says_that_the_model_is_quantised(tmp_path: Path) -> None:
    """Neither at its top nor inside; everything else stays."""
    opened = Opened(tmp_path, {W: codes((10, 7)), f"{W}_scale_inv": scales((3, 2))}, FP8)
    assert opened.model.config == {"model_type": "toy", "text_config": {"layers": 1}}
    nested = {"text_config": {"a": 1, "quantization_config": FP8}, "compression_config": FP8}
    assert without_quantisation(nested) == {"text_config": {"a": 1}}


def test_a_configuration_that_says_it_of_plain_floats_is_a_warning(tmp_path: Path) -> None:
    """The weights tell, not the configuration."""
    opened = Opened(tmp_path, {W: np.ones((2, 2), np.float32)}, {"quant_method": "gptq"})
    assert opened.model.source(0, W).view is None
    assert "quantization_config (gptq) is left out: no weight" in opened.warnings


def ints(*shape: int) -> Any:
    return np.ones(shape, np.int32)


def some_bytes(*shape: int) -> Any:
    return np.ones(shape, np.uint8)


PACKED: list[tuple[str, dict[str, Any], dict[str, Any] | None, str, str]] = [
    (
        "gptq",
        {
            "q.qweight": ints(4, 4),
            "q.qzeros": ints(1, 1),
            "q.scales": scales((1, 4)),
            "q.g_idx": ints(4),
        },
        None,
        "GPTQ",
        "merge the model that it was made from",
    ),
    (
        "awq",
        {"q.qweight": ints(4, 4), "q.qzeros": ints(1, 1), "q.scales": scales((1, 4))},
        {"quant_method": "awq"},
        "AWQ",
        "merge the model that it was made from",
    ),
    (
        "either",
        {"q.qweight": ints(4), "q.scales": scales((4,))},
        None,
        "GPTQ or AWQ",
        "merge the model",
    ),
    (
        "bnb4",
        {
            "q.weight": some_bytes(8, 1),
            "q.weight.absmax": scales((1,)),
            "q.weight.quant_map": scales((16,)),
        },
        {"quant_method": "bitsandbytes"},
        "bitsandbytes (4-bit)",
        "model.dequantize()",
    ),
    (
        "bnb8",
        {"q.weight": np.ones((2, 2), np.int8), "q.SCB": scales((2,))},
        None,
        "bitsandbytes (8-bit)",
        "dequantize",
    ),
    ("hqq", {"q.W_q": some_bytes(4, 4), "q.scale": scales((4,))}, None, "HQQ", "dequantize"),
    (
        "aqlm",
        {"q.codes": ints(2, 2), "q.codebooks": scales((2, 2))},
        None,
        "AQLM",
        "merge the model",
    ),
    (
        "mxfp4",
        {"e.up_blocks": some_bytes(2, 2, 4), "e.up_scales": some_bytes(2, 2)},
        None,
        "MXFP4",
        "Mxfp4Config",
    ),
    (
        "packed",
        {"q.weight_packed": ints(4), "q.weight_scale": scales((4,))},
        None,
        "compressed-tensors (packed)",
        "dequantize",
    ),
    (
        "nvfp4",
        {"q.weight": some_bytes(4), "q.weight_scale": scales((4,)), "q.weight_scale_2": scales(())},
        None,
        "NVFP4",
        "merge",
    ),
    (
        "int8",
        {"q.weight": np.ones(4, np.int8), "q.weight_scale": scales((4,))},
        None,
        "8-bit integers",
        "merge the model",
    ),
    (
        "quanto",
        {"q.weight._data": codes((4,)), "q.weight._scale": scales((4,))},
        None,
        "Quanto",
        "merge the model",
    ),
]


@pytest.mark.parametrize(
    ("tensors", "said", "name", "remedy"), [p[1:] for p in PACKED], ids=[p[0] for p in PACKED]
)
def test_codes_are_never_averaged(
    tensors: dict[str, Any], said: Any, name: str, remedy: str, tmp_path: Path
) -> None:
    """The message names the format, some tensors, and what to do."""
    opened = Opened(tmp_path, tensors, said)
    assert opened.found is None
    assert f"it is quantised by {name}" in opened.problems
    assert remedy in opened.problems
    assert len(opened.opener.problems) == 1


def test_four_bit_floats_are_refused(tmp_path: Path) -> None:
    """NumPy has none, so the file is written by hand."""
    head = json.dumps({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    file = tmp_path / "m.safetensors"
    file.write_bytes(len(head).to_bytes(8, "little") + head + b"\0")
    with ExitStack() as stack:
        opener = SourceOpener(None, stack)
        assert opener.open(str(file), "models[0].model") is None
    assert "quantised by 4-bit or 6-bit floats" in opener.problems[0]


def test_buffers_of_integers_and_booleans_are_no_quantisation(tmp_path: Path) -> None:
    """Positions and masks stand beside float weights in many models."""
    tensors = {"w": np.ones(3, np.float32), "position_ids": np.arange(4), "mask": np.ones(2, bool)}
    opened = Opened(tmp_path, tensors)
    assert sorted(opened.model) == sorted(tensors)
    assert opened.warnings == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.Q4_K_M.gguf", b"GGUF\x03\0\0\0", "is a GGUF file of llama.cpp"),
        ("weights", b"GGUF\x03\0\0\0", "is a GGUF file of llama.cpp"),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("flax_model.msgpack", b"\x81", "weights of Flax"),
        ("model.onnx", b"\x08", "an ONNX graph"),
        ("weights.npz", b"PK\x03\x04", "weightshare.save_checkpoint"),
        ("pytorch_model.bin", b"PK\x03\x04", "pickle checkpoint"),
        ("weights.ckpt", b"\x80\x04", "pickle checkpoint"),
    ],
)
def test_files_of_other_formats_are_refused_with_the_way_to_convert_them(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    """They are told by how they begin, else by what they are called, and never unpickled."""
    (tmp_path / "m").mkdir()
    file = tmp_path / "m" / name
    file.write_bytes(content)
    with ExitStack() as stack:
        opener = SourceOpener(None, stack)
        # Of a folder no file is opened: what lies there is told by its name.
        for path in (file, file.parent) if "." in name else (file,):
            assert opener.open(str(path), "models[0].model") is None
    assert all(message in told for told in opener.problems)
    assert opener.problems


def test_safetensors_beside_files_of_other_formats_are_read(tmp_path: Path) -> None:
    """Many repositories hold both."""
    ws.save_checkpoint(tmp_path, {"w": np.ones(2, np.float32)})
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with ExitStack() as stack:
        assert SourceOpener(None, stack).open(str(tmp_path), "a") is not None
    assert foreign_file("model.safetensors", b"\x10\0\0\0\0\0\0\0{") is None


def test_a_quantised_model_merges_as_the_model_it_stands_for(tmp_path: Path) -> None:
    """From file to file, in bfloat16, and the output is no quantised model."""
    weight, scale = codes((300, 260)), scales((3, 3))
    other, norm = np.ones((300, 260), BF16), np.full(9, 2, BF16)
    quantised = {W: weight, f"{W}_scale_inv": scale, "model.norm.weight": norm}
    said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    opened = Opened(tmp_path, quantised, said)
    opened.stack.close()
    ws.save_checkpoint(tmp_path / "other", {W: other, "model.norm.weight": norm})
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(tmp_path / name)} for name in ("m", "other")],
        "parameters": {"weight": 0.5},
    }
    expected = 0.5 * weight.astype(np.float64) * grown(scale, (300, 260), (128, 128)) + 0.5
    for dtype, step in (("bfloat16", 2**-8), ("float32", 2**-23)):
        out = tmp_path / dtype
        ws.merge_checkpoints(recipe | ({} if dtype == "bfloat16" else {"out_dtype": dtype}), out)
        with ws.open_checkpoint(out) as found:
            assert sorted(found) == sorted([W, "model.norm.weight"])
            assert str(found[W].dtype) == dtype
            np.testing.assert_allclose(found[W].astype(np.float64), expected, rtol=step, atol=1e-7)
        config = json.loads((out / "config.json").read_text())
        assert "quantization_config" not in config
        assert config["model_type"] == "toy"

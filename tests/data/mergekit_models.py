"""Pico models in Llama's shape, made of integers only, so that they are the same bytes everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
CODES = {"F32": "float32", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    words: int = 24
    width: int = 8
    inner: int = 12
    layers: int = 3
    heads: int = 2
    tied: bool = False

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape, as Llama's checkpoints have them."""
        yield "model.embed_tokens.weight", (self.words, self.width)
        for layer in range(self.layers):
            stem = f"model.layers.{layer}"
            for part in "qkvo":
                yield f"{stem}.self_attn.{part}_proj.weight", (self.width, self.width)
            yield f"{stem}.mlp.gate_proj.weight", (self.inner, self.width)
            yield f"{stem}.mlp.up_proj.weight", (self.inner, self.width)
            yield f"{stem}.mlp.down_proj.weight", (self.width, self.inner)
            yield f"{stem}.input_layernorm.weight", (self.width,)
            yield f"{stem}.post_attention_layernorm.weight", (self.width,)
        yield "model.norm.weight", (self.width,)
        if not self.tied:
            yield "lm_head.weight", (self.words, self.width)

    def config(self, code: str) -> dict[str, Any]:
        """What config.json says."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.words,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.width // self.heads,
            "hidden_act": "silu",
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": self.tied,
            "torch_dtype": CODES[code],
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


@dataclass(frozen=True)
class Maker:
    """How a model's numbers are made: from a base of its own, plus a change.

    `stem` names the base weights, `change` the task vector; no change is the base itself.
    """

    stem: str
    change: str = ""
    size: float = 2.0**-6
    code: str = "F32"
    shape: Shape = field(default_factory=Shape)
    words: tuple[str, ...] = ()
    template: str = ""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter for a model of a shape, as PEFT writes it."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    rooted: bool = False
    shape: Shape = field(default_factory=Shape)

    def config(self) -> dict[str, Any]:
        """What adapter_config.json says."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "base",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "use_rslora": self.rooted,
            "target_modules": list(self.targets),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }

    def arrays(self) -> dict[str, tuple[str, Array]]:
        """Both factors of each module."""
        made = {}
        for name, shape in self.shape.tensors():
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] not in self.targets:
                continue
            for part, sizes in (("A", (self.rank, shape[1])), ("B", (shape[0], self.rank))):
                values = bells(f"lora{part}/{name}", sizes[0] * sizes[1]).reshape(sizes) * 0.125
                made[f"base_model.model.{module}.lora_{part}.weight"] = (
                    "F32",
                    encode(values, "F32"),
                )
        return made


def words64(key: str, count: int) -> Array:
    """So many 64-bit words of a counter-based stream (splitmix64) that the key names."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def bells(key: str, count: int) -> Array:
    """Exact float64 numbers, bell-shaped in (-2, 2) with a deviation of 0.58."""
    drawn = words64(key, count)
    parts = sum(((drawn >> np.uint64(16 * k)) & np.uint64(0xFFFF)) for k in range(4))
    return (parts.astype(np.int64) - 131070).astype(np.float64) * 2.0**-16


def tensors(maker: Maker) -> dict[str, Array]:
    """The float64 values of every tensor; a quarter of a change's elements is zero."""
    made = {}
    for name, shape in maker.shape.tensors():
        count = int(np.prod(shape))
        values = bells(f"{maker.stem}/{name}", count) * 0.125
        if len(shape) == 1:
            values = 1.0 + values
        if maker.change:
            change = bells(f"{maker.change}/{name}", count) * maker.size
            kept = words64(f"{maker.change}/kept/{name}", count) % np.uint64(4) != 0
            values = values + change * kept
        made[name] = values.reshape(shape)
    return made


def encode(values: Array, code: str) -> Array:
    """Round to the element of a file, to nearest, ties to even; bfloat16 as its 16 bits."""
    single = np.ascontiguousarray(values, np.float32)
    if code == "F32":
        return single
    bits = single.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16).astype(
        np.uint16
    )


def write_safetensors(path: Path, arrays: dict[str, tuple[str, Array]]) -> None:
    """Write a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (code, array) in arrays.items():
        end = place + array.nbytes
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(array.tobytes() for _, array in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def read_safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor's dtype code, shape and bytes, by name."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    found = {}
    for name in sorted(header):
        told = header[name]
        first, end = told["data_offsets"]
        found[name] = (told["dtype"], tuple(told["shape"]), data[begin + first : begin + end])
    return found


def tokenizer_json(words: tuple[str, ...]) -> dict[str, Any]:
    """A tokenizer of whole words, the first three special."""
    special = [
        {
            "id": k,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for k, word in enumerate(words[:3])
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {word: k for k, word in enumerate(words)},
            "merges": [],
        },
    }


def tokenizer_config(template: str) -> dict[str, Any]:
    """What tokenizer_config.json says."""
    told: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 64,
        "clean_up_tokenization_spaces": False,
    }
    return {**told, "chat_template": template} if template else told


def vocabulary(count: int, *more: str) -> tuple[str, ...]:
    """Three special words, then so many in all, then others."""
    return ("<unk>", "<s>", "</s>", *(f"tok{k}" for k in range(count - 3)), *more)


def write_model(folder: Path, maker: Maker | Adapter) -> None:
    """Write a model's folder."""
    folder.mkdir(parents=True)
    if isinstance(maker, Adapter):
        write_safetensors(folder / "adapter_model.safetensors", maker.arrays())
        text = json.dumps(maker.config(), indent=1)
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
        return
    arrays = {
        name: (maker.code, encode(values, maker.code)) for name, values in tensors(maker).items()
    }
    write_safetensors(folder / "model.safetensors", arrays)
    files: dict[str, Any] = {"config.json": maker.shape.config(maker.code)}
    if maker.words:
        files["tokenizer.json"] = tokenizer_json(maker.words)
        files["tokenizer_config.json"] = tokenizer_config(maker.template)
        files["special_tokens_map.json"] = {
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
        }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


_FINE = {name: Maker("base", name) for name in "abc"}
_LARGE = Shape(words=64, width=32, inner=48, layers=1)
_TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
_DONOR = Shape(words=28)

MODELS: dict[str, Maker | Adapter] = {
    # One base and three fine-tunes, in both dtypes.
    "base32": Maker("base"),
    **{f"{name}32": maker for name, maker in _FINE.items()},
    "base16": Maker("base", code="BF16"),
    **{f"{name}16": Maker("base", name, code="BF16") for name in "abc"},
    # Models that share nothing: wide angles.
    **{f"far{name}": Maker(f"far{name}") for name in "xyz"},
    # Random methods: larger tensors.
    "large": Maker("large", shape=_LARGE, code="BF16"),
    "large-a": Maker("large", "la", 2.0**-3, "BF16", _LARGE),
    "large-b": Maker("large", "lb", 2.0**-3, "BF16", _LARGE),
    # Tokenizers: two vocabularies of one size, one of another, words in other places.
    "words": Maker("base", words=vocabulary(24), template=_TEMPLATE),
    "words-a": Maker("base", "a", words=(*vocabulary(22), "red", "green"), template=_TEMPLATE),
    "words-b": Maker(
        "base", "b", shape=_DONOR, words=(*vocabulary(5), "green", "blue", *vocabulary(24)[5:])
    ),
    "lora": Adapter(4, 8, ("q_proj", "v_proj", "down_proj")),
    "lora-rooted": Adapter(2, 3, ("o_proj", "gate_proj"), rooted=True),
    "tied": Maker("base", shape=Shape(tied=True)),
    "tied-a": Maker("base", "a", shape=Shape(tied=True)),
}

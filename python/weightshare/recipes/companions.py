"""What lies beside the weights of a merged model: its configuration and its small files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightshare.merging.elements import NAME_OF_CODE
from weightshare.merging.plan import FileCopy, PlannedTensor

_LARGEST_COPY = 200_000_000
_TOKENIZER_NAMES = (
    *("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges"),
    *("chat_template", "spiece", "sentencepiece"),
)
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".ggml", ".h5"),
    *(".msgpack", ".onnx", ".npz", ".npy", ".ot", ".index.json", ".tflite", ".data"),
)
# Written anew, about another model, or of a download rather than of the model.
_OWN = {"config.json", "readme.md", "mergekit_config.yml", "provenance.json"}


def files_to_copy(model: Path, *, tokenizer: bool) -> tuple[FileCopy, ...]:
    """Return the small files of a model's folder that go along with its weights.

    Everything but weights, hidden files, folders, and what a merge writes itself.

    Parameters
    ----------
    model : Path
        A folder; a single file has no companions.
    tokenizer : bool
        Whether those of the tokenizer are among them.

    Returns
    -------
    tuple of FileCopy
        By name.
    """
    if not model.is_dir():
        return ()
    found = []
    for entry in sorted(os.scandir(model), key=lambda entry: entry.name):
        name = entry.name.lower()
        if name.startswith(".") or name in _OWN or name.endswith(_WEIGHTS) or not entry.is_file():
            continue
        if name.startswith(_TOKENIZER_NAMES) and not tokenizer:
            continue
        size = entry.stat().st_size
        if size <= _LARGEST_COPY:
            found.append(FileCopy(entry.path, entry.name, size))
    return tuple(found)


def output_config(config: dict[str, Any] | None, tensors: Sequence[PlannedTensor]) -> str | None:
    """Return the text of the output's ``config.json``: the donor's, with the output's dtype.

    Parameters
    ----------
    config : dict or None
        The donor's configuration.
    tensors : sequence of PlannedTensor
        The output.

    Returns
    -------
    str or None
        None when the donor has none.
    """
    if config is None:
        return None
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.action == "merge":
            sizes[tensor.dtype] += tensor.nbytes
    if sizes:
        name = NAME_OF_CODE[sizes.most_common(1)[0][0]]
        config = _with_dtype(config, name)
        if not config.keys() & {"torch_dtype", "dtype"}:
            config["torch_dtype"] = name
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("torch_dtype", "dtype") and (value is None or isinstance(value, str)):
            changed[key] = name
        elif isinstance(value, dict) and key.endswith("_config"):
            changed[key] = _with_dtype(value, name)
        else:
            changed[key] = value
    return changed

"""What an earlier model left in an output folder: removed if it was ours, else told by name."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from weightshare.merging.files import is_plain_name

PROVENANCE_NAME = "provenance.json"
TOKENIZER_NAMES = (
    *("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges"),
    *("chat_template", "spiece", "sentencepiece"),
)
WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".ggml", ".h5"),
    *(".msgpack", ".onnx", ".npz", ".npy", ".ot", ".index.json", ".tflite", ".data"),
)
_LARGEST_RECORD = 100_000_000


def stale_files(folder: Path, written: Collection[str]) -> list[str]:
    """Return the small files that an earlier merge wrote here and this one does not.

    Parameters
    ----------
    folder : Path
        The output folder.
    written : collection of str
        Names that this merge writes.

    Returns
    -------
    list of str
        From the earlier ``provenance.json``; plain names only. Weights are not among them: their
        writer removes them when the new ones are in place.
    """
    path = folder / PROVENANCE_NAME
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        if path.stat().st_size <= _LARGEST_RECORD:
            record = json.loads(path.read_bytes())
            listed = record["files"] if "weightshare" in record["versions"] else []
            return sorted({name for name in listed if _is_small(folder, name)} - set(written))
    return []


def _is_small(folder: Path, name: object) -> bool:
    if not is_plain_name(name) or str(name).startswith(".") or str(name).endswith(WEIGHTS):
        return False
    return (folder / str(name)).is_file()


def strangers(folder: Path, written: Collection[str]) -> tuple[str, ...]:
    """Return a warning that names what another model left beside the new one, or nothing."""
    found = [
        name
        for name in sorted(os.listdir(folder))
        if name.lower().startswith((*TOKENIZER_NAMES, "adapter_")) or name.lower().endswith(WEIGHTS)
        if name not in written and not name.startswith(".")
    ]
    if not found:
        return ()
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return (
        f"{folder}: files that this merge did not write stay beside it: {', '.join(found[:10])}"
        f"{more}; remove those that belong to another model",
    )

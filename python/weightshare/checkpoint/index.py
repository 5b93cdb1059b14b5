"""The shard index ``model.safetensors.index.json``: which file of a folder holds which tensor.

Source: the sharded checkpoints of the Hugging Face hub (`huggingface_hub.serialization`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightshare.checkpoint import strict_json
from weightshare.checkpoint.codes import problem, shown
from weightshare.checkpoint.header import Limits, TensorInfo

INDEX_NAME = "model.safetensors.index.json"
_LISTED = 8


@dataclass(frozen=True, slots=True)
class Index:
    """A shard index that was read: the file of each tensor, and the index's own metadata.

    Attributes
    ----------
    path : str
    weight_map : dict of str to str
        Tensor name to the bare name of a file in the folder of the index.
    metadata : dict
        As it stands in the file; ``total_size`` is among it.
    """

    path: str
    weight_map: dict[str, str]
    metadata: dict[str, Any]

    @property
    def shards(self) -> list[str]:
        """The bare names of the shards, each once, sorted."""
        return sorted(set(self.weight_map.values()))


def read_index(path: str, limits: Limits | None = None) -> Index:
    """Read a shard index and check its own form; the shards are not opened.

    Parameters
    ----------
    path : str
    limits : Limits, optional
        ``max_header_bytes`` also bounds the size of the index.

    Returns
    -------
    Index

    Raises
    ------
    CheckpointError
        E102, E301, E302, E303 or E304.

    Examples
    --------
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, INDEX_NAME)
    ...     with open(path, "wb") as file:
    ...         _ = file.write(index_bytes({"w": "a.safetensors"}, {"total_size": 8}))
    ...     read_index(path).shards
    ['a.safetensors']
    """
    limits = limits or Limits()
    found = _load(path, limits)
    weight_map, metadata = found.get("weight_map"), found.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map:
        raise problem("E303", path=path, detail="weight_map must be a non-empty object")
    if len(weight_map) > limits.max_tensors:
        raise problem("E303", path=path, detail=f"{len(weight_map)} tensors; raise max_tensors=")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not strict_json.is_text(name):
            raise problem("E303", path=path, tensor=name, detail="its shard must be a file name")
        _check_shard_name(shard, path)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise problem("E301", path=path, detail="metadata must be an object")
    return Index(path, weight_map, metadata)


def _load(path: str, limits: Limits) -> dict[str, Any]:
    try:
        if not os.path.isfile(path):
            raise problem("E102", path=path, detail="an index must be a plain file")
        with open(path, "rb") as file:
            raw = file.read(limits.max_header_bytes + 1)
    except OSError as error:
        raise problem("E102", path=path, detail=str(error.strerror)) from None
    if len(raw) > limits.max_header_bytes:
        raise problem("E301", path=path, detail=f"above {limits.max_header_bytes} bytes")
    too_many = strict_json.too_many_parts(raw, limits.max_tensors)
    if too_many:
        raise problem("E301", path=path, detail=too_many)
    try:
        found = strict_json.parse(raw.decode())
    except strict_json.DuplicateKeyError as error:
        raise problem("E302", path=path, tensor=str(error)) from None
    except (strict_json.BadJsonError, UnicodeDecodeError) as error:
        raise problem("E301", path=path, detail=str(error)) from None
    if not isinstance(found, dict):
        raise problem("E301", path=path, detail="an object was expected")
    return found


def _check_shard_name(shard: str, path: str) -> None:
    plain = shard not in ("", ".", "..") and not any(sign in shard for sign in "/\\\0")
    if not (plain and strict_json.is_text(shard) and len(os.fsencode(shard)) <= 255):
        detail = f"{shown(shard)!r} is not the bare name of a file in the folder of the index"
        raise problem("E304", path=path, detail=detail)


def shard_path(folder: str, shard: str, index_path: str) -> str:
    """Return the real path of a shard, which must lie in `folder` or in its hub cache's blobs.

    Raises
    ------
    CheckpointError
        E304 when a link leads elsewhere, E305 when there is no such file.
    """
    home = Path(os.path.realpath(folder))
    found = os.path.join(folder, shard)
    try:
        real = Path(os.path.realpath(found, strict=True))
    except OSError as error:
        detail = f"{shown(shard)}: {error.strerror}"
        raise problem("E305", path=index_path, detail=detail) from None
    if not any(real.is_relative_to(place) for place in (home, *_blob_folders(home))):
        raise problem("E304", path=index_path, detail=f"{shown(shard)} leads to {real}")
    return str(real)


def _blob_folders(home: Path) -> Iterable[Path]:
    # A hub cache has models--x--y/snapshots/<revision>/... whose files link to models--x--y/blobs.
    for parent in home.parents:
        if parent.name == "snapshots":
            yield parent.parent / "blobs"
            # Newer caches keep one store for all repositories; their blobs link to it.
            if parent.parent.name.startswith("models--"):
                yield parent.parent.parent / "blobs"


def check_against_shards(
    index: Index, shards: Mapping[str, Mapping[str, TensorInfo]], *, strict: bool = False
) -> None:
    """Check an index against the headers of its shards, in both directions, in one report.

    Parameters
    ----------
    index : Index
    shards : mapping of shard name to its tensors
    strict : bool, default False
        Also check ``total_size``.

    Raises
    ------
    CheckpointError
        E306 or E307.
    """
    wrong = [
        f"{shown(name)} should be in {shown(shard)}, which does not hold it"
        for name, shard in index.weight_map.items()
        if name not in shards[shard]
    ]
    for shard, tensors in shards.items():
        for name in tensors:
            mapped = index.weight_map.get(name)
            if mapped is None:
                wrong.append(f"{shown(name)} is in {shown(shard)} but not in the index")
            elif mapped != shard:
                wrong.append(f"{shown(name)} is in {shown(shard)}; the index says {shown(mapped)}")
    if wrong:
        more = [f"and {len(wrong) - _LISTED} more"] if len(wrong) > _LISTED else []
        detail = "\n          ".join(wrong[:_LISTED] + more)
        raise problem("E306", path=index.path, detail=detail)
    if strict:
        _check_total(index, sum(t.nbytes for part in shards.values() for t in part.values()))


def _check_total(index: Index, total: int) -> None:
    stated = index.metadata.get("total_size", total)
    if stated != total:
        detail = f"the shards hold {total} bytes; total_size says {shown(str(stated))}"
        raise problem("E307", path=index.path, detail=detail)


def index_bytes(weight_map: Mapping[str, str], metadata: Mapping[str, object]) -> bytes:
    """Return the text of an index file: ``metadata``, then ``weight_map``, indented by two."""
    found = {"metadata": dict(metadata), "weight_map": dict(weight_map)}
    return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()

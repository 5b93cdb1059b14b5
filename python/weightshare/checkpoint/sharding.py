"""Which tensor goes to which file, and how large a file may be."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from weightshare.checkpoint import strict_json
from weightshare.checkpoint.codes import shown
from weightshare.checkpoint.header import (
    MAX_NAME_BYTES,
    MAX_RANK,
    METADATA_KEY,
    TensorInfo,
    is_code,
    layout,
    tensor_nbytes,
)
from weightshare.errors import ArgumentError, ArgumentTypeError, ElementError, ShapeError

DEFAULT_SHARD_BYTES = 5_000_000_000
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b\s*", re.IGNORECASE | re.ASCII)

Spec = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file as planned: its name, its first bytes, and where its tensors go."""

    name: str
    first: bytes
    tensors: dict[str, TensorInfo]

    @property
    def data_nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.first) + self.data_nbytes


def shard_bytes(size: int | str | None) -> int:
    """Return a shard size in bytes: ``"5GB"`` is decimal, ``"5GiB"`` binary, None is 5 GB.

    Raises
    ------
    ArgumentTypeError, ArgumentError
        It is no size, or not positive.

    Examples
    --------
    >>> shard_bytes("5GB"), shard_bytes("1.5 GiB"), shard_bytes(100)
    (5000000000, 1610612736, 100)
    """
    if size is None:
        return DEFAULT_SHARD_BYTES
    if isinstance(size, str):
        found = _SIZE.fullmatch(size)
        if not found:
            raise ArgumentError(
                f"max_shard_size: expected like '5GB' or '5GiB', got {shown(size)!r}"
            )
        base = 1024 if found[3] else 1000
        value = int(Fraction(found[1]) * base ** " kmgt".index(found[2].lower() or " "))
    else:
        try:
            value = operator.index(size)
        except TypeError:
            got = type(size).__name__
            raise ArgumentTypeError(
                f"max_shard_size: expected bytes or a text like '5GB', got {got}"
            ) from None
    if isinstance(size, bool) or value < 1:
        raise ArgumentError(f"max_shard_size: expected a positive size, got {size!r}")
    return value


def checked_specs(specs: Iterable[Spec]) -> list[Spec]:
    """Return the specs of tensors to be written, once each of them is legal.

    Raises
    ------
    ArgumentTypeError, ArgumentError, ElementError, ShapeError
        A name, dtype or shape cannot be written, or a name stands twice.
    """
    found: dict[str, Spec] = {}
    for name, code, shape in specs:
        _check_name(name)
        if name in found:
            raise ArgumentError(f"tensors: the name {shown(name)!r} stands twice")
        if not is_code(code):
            raise ElementError(f"tensors[{shown(name)!r}]: unknown dtype code {code!r}")
        sizes = tuple(operator.index(size) for size in shape)
        nbytes = tensor_nbytes(code, sizes) if min(sizes, default=0) >= 0 else None
        if nbytes is None or nbytes < 0 or nbytes >= 2**63 or len(sizes) > MAX_RANK:
            raise ShapeError(f"tensors[{shown(name)!r}]: {code} {list(sizes)} cannot be stored")
        found[name] = (name, code, sizes)
    return list(found.values())


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"tensors: names must be str, got {type(name).__name__}: {name!r}")
    if name == METADATA_KEY:
        raise ArgumentError(f"tensors: the name {METADATA_KEY} is reserved")
    if not strict_json.is_text(name) or len(name.encode()) > MAX_NAME_BYTES:
        raise ArgumentError(f"tensors: the name {shown(name)!r} is not Unicode, or above 64 KiB")


def checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return the metadata to be written: that of the user, and ``format`` always ``pt``.

    Raises
    ------
    ArgumentTypeError
        It is not a mapping from str to str.
    """
    if metadata is None:
        return {"format": "pt"}
    if not isinstance(metadata, Mapping):
        got = type(metadata).__name__
        raise ArgumentTypeError(f"metadata: expected a mapping of str to str, got {got}")
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            got = f"{type(key).__name__} to {type(value).__name__}"
            raise ArgumentTypeError(f"metadata: expected str to str, got {got} at {key!r}")
        if not (strict_json.is_text(key) and strict_json.is_text(value)):
            raise ArgumentError(f"metadata: {shown(key)!r} is not valid Unicode")
    # Older versions of transformers cannot open a file without this entry.
    return {**metadata, "format": "pt"}


def plan_shards(
    specs: list[Spec], limit: int | None, metadata: Mapping[str, str], file_name: str
) -> list[Shard]:
    """Return the files to write, filled in the order of `specs`.

    Parameters
    ----------
    specs : list of (name, dtype code, shape)
    limit : int or None
        Bytes of tensors in one file; None for a single file.
    metadata : mapping of str to str
        For the file when it is one; shards only say ``{"format": "pt"}``.
    file_name : str
        When it is one file, such as ``model.safetensors``; shards are ``model-00001-of-0000N``.

    Returns
    -------
    list of Shard
    """
    groups = _fill(specs, limit)
    if len(groups) <= 1:
        return [Shard(file_name, *layout(specs, metadata, file_name))]
    stem = file_name.removesuffix(".safetensors")
    names = [
        f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
        for number in range(1, len(groups) + 1)
    ]
    return [
        Shard(name, *layout(group, {"format": "pt"}, name))
        for name, group in zip(names, groups, strict=True)
    ]


def _fill(specs: list[Spec], limit: int | None) -> list[list[Spec]]:
    groups: list[list[Spec]] = []
    held = 0
    for spec in specs:
        nbytes = tensor_nbytes(spec[1], spec[2]) or 0
        if not groups or (limit is not None and held and held + nbytes > limit):
            groups.append([])
            held = 0
        groups[-1].append(spec)
        held += nbytes
    return groups

"""The header of a safetensors file: its element types, reading with every check, and layout.

Source: the format section of the safetensors README (https://github.com/safetensors/safetensors).
A file is ``N`` (8 bytes, little-endian), ``N`` bytes of JSON, then the data, without gaps.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from weightshare.checkpoint import strict_json
from weightshare.checkpoint.codes import problem, shown

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 1_000_000
MAX_RANK = 64
MAX_NAME_BYTES = 64 * 1024
METADATA_KEY = "__metadata__"

_U64 = 2**64 - 1
_FIELDS = frozenset(("dtype", "shape", "data_offsets"))

# Code -> (bits, NumPy type). The order is the reference writer's rank, lowest first.
_ELEMENTS: dict[str, tuple[int, Any]] = {
    "BOOL": (8, np.bool_),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "U8": (8, np.uint8),
    "I8": (8, np.int8),
    "F8_E5M2": (8, ml_dtypes.float8_e5m2),
    "F8_E4M3": (8, ml_dtypes.float8_e4m3fn),
    "F8_E8M0": (8, ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": (8, ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (8, ml_dtypes.float8_e5m2fnuz),
    "I16": (16, np.int16),
    "U16": (16, np.uint16),
    "F16": (16, np.float16),
    "BF16": (16, ml_dtypes.bfloat16),
    "I32": (32, np.int32),
    "U32": (32, np.uint32),
    "F32": (32, np.float32),
    "C64": (64, np.complex64),
    "F64": (64, np.float64),
    "I64": (64, np.int64),
    "U64": (64, np.uint64),
}
_RANK = {code: rank for rank, code in enumerate(_ELEMENTS)}


def is_code(code: object) -> bool:
    """Say whether `code` is one of the element types of the format."""
    return isinstance(code, str) and code in _ELEMENTS


@cache
def numpy_dtype(code: str) -> np.dtype[Any] | None:
    """Return the NumPy type of a safetensors dtype code; None for 4-bit and 6-bit floats."""
    element = _ELEMENTS[code][1]
    return None if element is None else np.dtype(element)


@cache
def _code_table() -> dict[np.dtype[Any], str]:
    return {np.dtype(element): code for code, (_, element) in _ELEMENTS.items() if element}


def dtype_code(dtype: npt.DTypeLike) -> str | None:
    """Return the safetensors code of a NumPy type in any byte order, or None if it has none."""
    native = np.dtype(dtype).newbyteorder("=")
    if native.kind in "iu":
        native = np.dtype(f"{native.kind}{native.itemsize}")
    return _code_table().get(native)


def tensor_nbytes(code: str, shape: Iterable[int]) -> int | None:
    """Return the bytes of a tensor, None if they overflow 64 bits, -1 if they are not whole."""
    bits = 1
    for size in (*shape, _ELEMENTS[code][0]):
        bits *= size
        if bits > _U64:
            return None
    return -1 if bits % 8 else bits // 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and what it is; nothing of its data.

    Attributes
    ----------
    name : str
    dtype : str
        The safetensors code, such as ``"BF16"``.
    shape : tuple of int
    file : str
        The file that holds it.
    offset : int
        Of its first byte, from the start of the file.
    nbytes : int
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy type of the elements.

        Raises
        ------
        CheckpointError
            E107, for the 4-bit and 6-bit floats, which NumPy does not have.
        """
        found = numpy_dtype(self.dtype)
        if found is None:
            raise problem("E107", path=self.file, tensor=self.name, detail=f"dtype {self.dtype}")
        return found


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of one file says: its metadata, and its tensors in the header's order."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a header is read before it is refused."""

    strict: bool = False
    max_header_bytes: int = MAX_HEADER_BYTES
    max_tensors: int = MAX_TENSORS


def header_length(first: bytes, file_size: int, path: str, limits: Limits) -> int:
    """Return the length of the header from a file's first 8 bytes, checked against its size.

    Raises
    ------
    CheckpointError
        E201, E202 or E203.
    """
    if len(first) < 8 or file_size < 8:
        raise problem("E201", path=path, detail=f"{file_size} bytes; at least 10 are needed")
    length = int.from_bytes(first[:8], "little")
    sizes = f"the first 8 bytes announce {length} bytes of header; the file has {file_size} bytes"
    if 8 + length > file_size:
        raise problem("E203", path=path, detail=sizes)
    if length > limits.max_header_bytes:
        detail = f"{sizes}; the limit is {limits.max_header_bytes}"
        raise problem("E202", path=path, detail=detail)
    return length


def parse_header(
    raw: bytes, file_size: int, path: str = "", limits: Limits | None = None
) -> Header:
    """Read a header and check every number of it against the size of the file.

    Parameters
    ----------
    raw : bytes
        The JSON, without the 8 bytes of its length.
    file_size : int
        Bytes of the whole file.
    path : str
        For messages and for `TensorInfo.file`.
    limits : Limits, optional
        Sizes above which it is refused, and whether unknown fields are errors (else a warning).

    Returns
    -------
    Header

    Raises
    ------
    CheckpointError
        With a code E2xx.

    Examples
    --------
    >>> raw = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    >>> parse_header(raw, file_size=8 + len(raw) + 8).tensors["w"].offset - len(raw)
    8
    """
    limits = limits or Limits()
    entries = _load(raw, path, limits)
    metadata = _metadata(entries.pop(METADATA_KEY, None), path)
    if len(entries) > limits.max_tensors:
        detail = f"{len(entries)} tensors; the limit is {limits.max_tensors}"
        raise problem("E207", path=path, detail=detail)
    start, unknown = 8 + len(raw), set[str]()
    tensors = {name: _tensor(name, entry, start, path, unknown) for name, entry in entries.items()}
    _check_tiling(tensors.values(), start, file_size, path)
    if unknown:
        _report_unknown(unknown, path, limits.strict)
    return Header(metadata, tensors)


def _load(raw: bytes, path: str, limits: Limits) -> dict[str, Any]:
    too_many = strict_json.too_many_parts(raw, limits.max_tensors)
    if too_many:
        raise problem("E207", path=path, detail=too_many)
    try:
        found = strict_json.parse(raw.decode())
    except UnicodeDecodeError as error:
        raise problem("E204", path=path, detail=f"at byte {error.start}") from None
    except strict_json.DuplicateKeyError as error:
        raise problem("E206", path=path, tensor=str(error)) from None
    except strict_json.BadJsonError as error:
        raise problem("E205", path=path, detail=str(error)) from None
    if not isinstance(found, dict):
        raise problem("E205", path=path, detail=f"an object was expected, not {_kind(found)}")
    return found


def _metadata(found: object, path: str) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise problem("E219", path=path, detail=f"it is {_kind(found)}")
    for key, value in found.items():
        if not isinstance(value, str):
            raise problem("E219", path=path, detail=f"{shown(key)} is {_kind(value)}")
        if not (strict_json.is_text(key) and strict_json.is_text(value)):
            raise problem("E221", path=path, detail=f"in the metadata {shown(key)}")
    return found


def _tensor(name: str, entry: Any, start: int, path: str, unknown: set[str]) -> TensorInfo:
    _check_name(name, path)
    if isinstance(entry, list):
        raise problem("E209", path=path, tensor=name)
    if not isinstance(entry, dict) or not entry.keys() >= _FIELDS:
        missing = ", ".join(sorted(_FIELDS - entry.keys())) if isinstance(entry, dict) else ""
        detail = f"missing: {missing}" if missing else f"it is {_kind(entry)}"
        raise problem("E208", path=path, tensor=name, detail=detail)
    if len(entry) > len(_FIELDS):
        unknown.update(_unknown_fields(name, entry, path))
    code = entry["dtype"]
    if not is_code(code):
        detail = shown(code) if isinstance(code, str) else _kind(code)
        raise problem("E210", path=path, tensor=name, detail=detail)
    shape = _shape(name, entry["shape"], path)
    begin, end = _offsets(name, entry["data_offsets"], path)
    _check_size(name, code, shape, (begin, end), path)
    return TensorInfo(name, code, shape, path, start + begin, end - begin)


def _check_name(name: str, path: str) -> None:
    if not strict_json.is_text(name):
        raise problem("E221", path=path, tensor=name)
    if len(name) > MAX_NAME_BYTES or len(name.encode()) > MAX_NAME_BYTES:
        raise problem("E220", path=path, tensor=name, detail=f"{len(name)} characters")


def _unknown_fields(name: str, entry: dict[str, Any], path: str) -> set[str]:
    extra = {key: value for key, value in entry.items() if key not in _FIELDS}
    try:
        depth = strict_json.depth_of(extra)
    except strict_json.BadJsonError:
        raise problem("E221", path=path, tensor=name, detail="in an unknown field") from None
    if depth + 1 > strict_json.MAX_DEPTH:
        raise problem("E223", path=path, tensor=name)
    return set(extra)


def _is_size(value: object) -> bool:
    return type(value) is int and value <= _U64


def _shape(name: str, shape: object, path: str) -> tuple[int, ...]:
    if not isinstance(shape, list):
        raise problem("E211", path=path, tensor=name, detail=f"it is {_kind(shape)}")
    if len(shape) > MAX_RANK:
        raise problem("E212", path=path, tensor=name, detail=f"{len(shape)} axes")
    if not all(map(_is_size, shape)):
        raise problem("E211", path=path, tensor=name)
    return tuple(shape)


def _offsets(name: str, offsets: object, path: str) -> tuple[int, int]:
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(map(_is_size, offsets))
        or offsets[1] < offsets[0]
    ):
        raise problem("E214", path=path, tensor=name)
    return offsets[0], offsets[1]


def _check_size(
    name: str, code: str, shape: tuple[int, ...], span: tuple[int, int], path: str
) -> None:
    needed = tensor_nbytes(code, shape)
    about = f"dtype {code}, shape {list(shape)}"
    if needed is None:
        raise problem("E213", path=path, tensor=name, detail=about)
    if needed < 0:
        raise problem("E216", path=path, tensor=name, detail=about)
    if needed != span[1] - span[0]:
        detail = f"{about} needs {needed} bytes; data_offsets {list(span)} give {span[1] - span[0]}"
        raise problem("E215", path=path, tensor=name, detail=detail)


def _check_tiling(tensors: Iterable[TensorInfo], start: int, file_size: int, path: str) -> None:
    expected = start
    for info in sorted(tensors, key=lambda info: (info.offset, info.nbytes)):
        if info.offset != expected:
            detail = f"its data begin at {info.offset - start}; the bytes before end at "
            detail += str(expected - start)
            raise problem("E217", path=path, tensor=info.name, detail=detail)
        expected += info.nbytes
    if expected != file_size:
        detail = f"{file_size} bytes; the header describes {expected}"
        raise problem("E218", path=path, detail=detail)


def _report_unknown(unknown: set[str], path: str, strict: bool) -> None:
    names = ", ".join(shown(name, 40) for name in sorted(unknown)[:5])
    if strict:
        raise problem("E222", path=path, detail=names)
    text = f"E222: {path}: unknown fields in the header are ignored: {names}"
    warnings.warn(text, UserWarning, stacklevel=2)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value), "true or false" if isinstance(value, bool) else "a number")


def layout(
    specs: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], path: str = ""
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Return a file's first bytes and where each tensor goes, as the reference writer lays it out.

    Parameters
    ----------
    specs : iterable of (name, dtype code, shape)
        Already checked; sorted here by type (widest first), then by name.
    metadata : mapping of str to str
    path : str
        For `TensorInfo.file`.

    Returns
    -------
    bytes, dict of str to TensorInfo
        The length and the header, padded to a multiple of 8; the tensors in the file's order.

    Raises
    ------
    CheckpointError
        E202, when the header is longer than readers take.

    Examples
    --------
    >>> first, tensors = layout([("w", "F32", (2, 3))], {"format": "pt"})
    >>> len(first) % 8, tensors["w"].offset == len(first), tensors["w"].nbytes
    (0, True, 24)
    """
    ordered = sorted(specs, key=lambda spec: (-_RANK[spec[1]], spec[0]))
    entries: dict[str, Any] = {METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    spans: list[tuple[int, int]] = []
    end = 0
    for name, code, shape in ordered:
        begin, end = end, end + (tensor_nbytes(code, shape) or 0)
        spans.append((begin, end))
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER_BYTES:
        raise problem("E202", path=path, detail=f"{len(raw)} bytes would be written")
    start = 8 + len(raw)
    tensors = {
        name: TensorInfo(name, code, tuple(shape), path, start + begin, end - begin)
        for (name, code, shape), (begin, end) in zip(ordered, spans, strict=True)
    }
    return len(raw).to_bytes(8, "little") + raw, tensors

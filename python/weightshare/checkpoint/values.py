"""What can be saved as a tensor, and its bytes in file order, piece by piece."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from weightshare.checkpoint.codes import shown
from weightshare.checkpoint.header import dtype_code, numpy_dtype
from weightshare.errors import ElementError, ShapeError

PIECE_BYTES = 16 * 1024 * 1024

# torch types that NumPy does not have, by name: the integer type to look at them through.
_TORCH_ELEMENTS = {
    "torch.bfloat16": ("BF16", "int16"),
    "torch.float8_e5m2": ("F8_E5M2", "uint8"),
    "torch.float8_e4m3fn": ("F8_E4M3", "uint8"),
    "torch.float8_e8m0fnu": ("F8_E8M0", "uint8"),
    "torch.float8_e4m3fnuz": ("F8_E4M3FNUZ", "uint8"),
    "torch.float8_e5m2fnuz": ("F8_E5M2FNUZ", "uint8"),
}


def as_array(name: str, value: Any) -> npt.NDArray[Any]:
    """Return `value` as an array, without a copy where there is memory to look at.

    Parameters
    ----------
    name : str
        The tensor's name, for messages.
    value : array_like or CPU torch tensor

    Raises
    ------
    ElementError
        Its elements cannot be stored: objects, text, complex128, dates, masked arrays, ...
    ShapeError
        It is ragged.
    """
    if type(value).__module__.split(".")[0] == "torch":
        value = _from_torch(name, value)
    if isinstance(value, np.ma.MaskedArray):
        raise ElementError(f"tensors[{shown(name)!r}]: a masked array would lose its mask; fill it")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"tensors[{shown(name)!r}]: expected an array: {error}") from None
    if dtype_code(array.dtype) is None:
        raise ElementError(
            f"tensors[{shown(name)!r}]: dtype {array.dtype} has no place in a safetensors file; "
            "cast it, for example with .astype(np.float32)"
        )
    return array


def _from_torch(name: str, value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    if value.device.type != "cpu" or str(value.layout) != "torch.strided" or value.is_quantized:
        raise ElementError(
            f"tensors[{shown(name)!r}]: expected a dense CPU tensor, got {value.layout} on "
            f"{value.device}; use .cpu(), .to_dense() or .dequantize()"
        )
    value = value.detach().resolve_conj().resolve_neg()
    known = _TORCH_ELEMENTS.get(str(value.dtype))
    if known is None:
        return value.numpy()
    code, integer = known
    seen = value.view(getattr(sys.modules["torch"], integer))
    return seen.numpy().view(numpy_dtype(code))


def pieces(array: npt.NDArray[Any], limit: int = PIECE_BYTES) -> Iterator[npt.NDArray[Any]]:
    """Yield an array's elements in C order and little-endian, as C-contiguous parts of it.

    A part has at most `limit` bytes unless it needed no copy, so that nothing as large as the
    model is ever copied, whatever the strides and the byte order.
    """
    little = array.dtype.newbyteorder("<")
    if array.flags.c_contiguous and array.dtype == little:
        yield array
    elif array.nbytes <= limit or array.ndim == 0:
        yield np.ascontiguousarray(array, dtype=little)
    elif array.ndim > 1 and array.nbytes // len(array) > limit:
        for part in array:
            yield from pieces(part, limit)
    else:
        step = max(1, limit * len(array) // array.nbytes)
        for start in range(0, len(array), step):
            yield np.ascontiguousarray(array[start : start + step], dtype=little)

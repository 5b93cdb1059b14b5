"""Tensors of torch as NumPy arrays, without a copy and without importing torch before the user did."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightshare.errors import ArgumentTypeError, ElementError


def is_tensor(value: Any) -> bool:
    """Whether the value is a torch tensor, of a subclass too."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def array_of_tensor(value: Any, argument: str) -> NDArray[Any]:
    """The memory of a CPU tensor as an array; bfloat16 through a view of 16 bits.

    Raises
    ------
    ArgumentTypeError
        If the tensor is on another device, sparse or quantised.
    ElementError
        If NumPy has no such element type.
    """
    import torch

    if value.device.type != "cpu":
        raise ArgumentTypeError(
            f"{argument}: expected a tensor in CPU memory, got one on {value.device}; pass x.cpu()"
        )
    if value.layout != torch.strided or value.is_quantized:
        raise ArgumentTypeError(
            f"{argument}: expected a dense tensor, got a sparse or quantised one; make it dense first"
        )
    plain = value.detach()
    if plain.dtype == torch.bfloat16:
        bits: NDArray[np.int16] = plain.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    try:
        result: NDArray[Any] = plain.resolve_conj().resolve_neg().numpy()
    except TypeError:
        raise ElementError(
            f"{argument}: expected float16, bfloat16, float32 or float64, got {plain.dtype}; cast it"
        ) from None
    return result

"""Quantised weights that cannot be averaged: recognised by names and dtypes, with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightshare.checkpoint import Checkpoint
from weightshare.merging.elements import DTYPE_OF_CODE
from weightshare.recipes.listing import listed

_BYTES = frozenset(("U8", "I8"))
_INTEGERS = _BYTES | {"I16", "I32", "I64", "U16", "U32", "U64"}
_TINY = frozenset(("F4", "F6_E2M3", "F6_E3M2"))
_ORIGINAL = "merge the model that it was made from, and quantise the result"
_DEQUANTISE = (
    "load it with transformers, call model.dequantize() and model.save_pretrained('OUT'), and merge"
    " OUT; or " + _ORIGINAL
)
_OPEN_MXFP4 = (
    "load it with transformers, quantization_config=Mxfp4Config(dequantize=True), call"
    " model.save_pretrained('OUT'), and merge OUT"
)


@dataclass(frozen=True, slots=True)
class _Format:
    """A format: the ending of its codes' names, of a tensor beside each, and the codes' dtypes."""

    name: str
    codes: str
    beside: str
    remedy: str
    dtypes: frozenset[str] = _INTEGERS


# The first that fits is told.
_FORMATS = (
    _Format("bitsandbytes (4-bit)", ".weight", ".weight.absmax", _DEQUANTISE),
    _Format("bitsandbytes (8-bit)", ".weight", ".SCB", _DEQUANTISE),
    _Format("GPTQ", ".qweight", ".g_idx", _ORIGINAL),
    _Format("GPTQ or AWQ", ".qweight", ".scales", _ORIGINAL),
    _Format("HQQ", ".W_q", ".W_q", _DEQUANTISE),
    _Format("AQLM", ".codes", ".codebooks", _ORIGINAL),
    _Format("MXFP4", "_blocks", "_scales", _OPEN_MXFP4),
    _Format("compressed-tensors (packed)", ".weight_packed", ".weight_scale", _DEQUANTISE),
    _Format("NVFP4", ".weight", ".weight_scale_2", _ORIGINAL, _INTEGERS | _TINY),
    _Format("8-bit integers or less", ".weight", ".weight_scale", _ORIGINAL),
    _Format("Quanto", "._data", "._scale", _ORIGINAL, _INTEGERS | {"F8_E4M3", "F8_E5M2"}),
)
_NAMES = {"gptq": "GPTQ", "awq": "AWQ"}


def packed_problem(checkpoint: Checkpoint, method: str) -> str | None:
    """Return why a model's codes cannot be averaged, and what to do; None when it has none.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    method : str
        ``quant_method`` of its configuration, or nothing.

    Returns
    -------
    str or None
        A clause such as ``"it is quantised by GPTQ (...); merge the model that ..."``.
    """
    coded = [name for name in checkpoint if checkpoint.info(name).dtype not in DTYPE_OF_CODE]
    for known in _FORMATS:
        found = _codes_of(known, checkpoint, coded)
        if found:
            name = _NAMES.get(method, known.name) if "GPTQ" in known.name else known.name
            return _told(name, found, known.remedy)
    tiny = [name for name in coded if checkpoint.info(name).dtype in _TINY]
    return _told("4-bit or 6-bit floats", tiny, _ORIGINAL) if tiny else None


def _codes_of(known: _Format, checkpoint: Checkpoint, names: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        if name.endswith(known.codes)
        and name.removesuffix(known.codes) + known.beside in checkpoint
        and checkpoint.info(name).dtype in known.dtypes
    ]


def _told(name: str, found: list[str], remedy: str) -> str:
    return f"it is quantised by {name}, and codes cannot be averaged ({listed(found)}); {remedy}"


# Endings of files of other formats, what they are, and how to come from them to safetensors.
_FOREIGN = (
    (
        (".gguf", ".ggml"),
        "a GGUF file of llama.cpp",
        "AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=NAME).save_pretrained('OUT') of"
        " transformers makes safetensors of it; better, merge the model that it was made from",
    ),
    (
        (".h5", ".hdf5", ".keras"),
        "weights of TensorFlow or Keras in HDF5",
        "load it with the library that wrote it and save it as safetensors (safetensors.tensorflow)",
    ),
    (
        (".msgpack",),
        "weights of Flax",
        "load it with the library that wrote it and save it as safetensors (safetensors.flax)",
    ),
    ((".onnx",), "an ONNX graph", "merge the model that it was exported from"),
    (
        (".npz", ".npy"),
        "NumPy arrays",
        "convert it: weightshare.save_checkpoint('OUT.safetensors', dict(numpy.load(IN)))",
    ),
)
_SIGNS = ((b"GGUF", ".gguf"), (b"\x89HDF\r\n\x1a\n", ".h5"), (b"\x93NUMPY", ".npy"))


def foreign_file(name: str, first_bytes: bytes = b"") -> str | None:
    """Return what a file of another format is, and how to convert it; None for all others.

    Parameters
    ----------
    name : str
        The file's name.
    first_bytes : bytes
        How it begins, as far as it is known; what it is goes before what it is called.

    Examples
    --------
    >>> foreign_file("model.Q4_K_M.gguf")[:27]
    'is a GGUF file of llama.cpp'
    """
    told = next((ending for sign, ending in _SIGNS if first_bytes.startswith(sign)), name.lower())
    for endings, what, remedy in _FOREIGN:
        if told.endswith(endings):
            return f"is {what}, which cannot be merged; {remedy}"
    return None

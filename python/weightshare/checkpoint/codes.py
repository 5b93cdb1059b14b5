"""The stable codes of checkpoint errors, and the one shape in which every message is built.

E1xx is about finding and reading files, E2xx about a file's header, E3xx about a shard index and
E4xx about writing. A code never changes its meaning; messages may.
"""

from __future__ import annotations

import json

from weightshare.errors import CheckpointError

_DOWNLOAD = (
    "the file is probably incomplete or damaged: compare its size with the source and copy it again"
)
_REWRITE = (
    "the program that wrote this file breaks the safetensors format: write it again with another"
)

CODES: dict[str, tuple[str, str]] = {
    "E101": ("there is nothing at this path", "check the spelling and the working directory"),
    "E102": ("this cannot be opened as a file", "check what it is and its permissions"),
    "E103": (
        "this is a pickle checkpoint; unpickling can run any code, so it is never read",
        'convert it where you trust it: `python -c "import torch, safetensors.torch as s; '
        "s.save_file({k: v.contiguous().clone() for k, v in "
        "torch.load('IN', weights_only=True, map_location='cpu').items()}, 'OUT.safetensors')\"`",
    ),
    "E104": (
        "this folder holds no complete safetensors checkpoint",
        "name the folder with the weights",
    ),
    "E105": (
        "this folder holds several safetensors files and no index",
        "name the file that you want",
    ),
    "E106": ("the file changed while it was open", "wait until it is complete, then open it again"),
    "E107": ("4-bit and 6-bit floats have no NumPy array", "use read_into to take their raw bytes"),
    "E108": ("NumPy cannot hold an array of this shape", "use read_into to take its raw bytes"),
    "E109": ("this checkpoint was closed", "open it again, or read inside the `with` block"),
    "E201": ("the file is too short to hold a safetensors header", _DOWNLOAD),
    "E202": ("the header is longer than allowed", "if you trust the file, raise max_header_bytes="),
    "E203": (
        "the header does not fit into the file",
        "is it a safetensors file? If so, " + _DOWNLOAD,
    ),
    "E204": ("the header is not UTF-8", _DOWNLOAD),
    "E205": ("the header is not the JSON of a safetensors file", _DOWNLOAD),
    "E206": ("the same name stands twice in one object of the header", _REWRITE),
    "E207": (
        "the header has more entries than allowed",
        "if you trust the file, raise max_tensors=",
    ),
    "E208": ("a header entry does not describe a tensor", _REWRITE),
    "E209": ("a header entry is a list instead of an object", _REWRITE),
    "E210": ("unknown element type", "the legal ones are those of the safetensors README"),
    "E211": ("the shape is not a list of whole numbers", _REWRITE),
    "E212": ("the tensor has more than 64 axes", _REWRITE),
    "E213": ("the size of the tensor overflows 64 bits", _REWRITE),
    "E214": ("data_offsets is not a pair of whole numbers in order", _REWRITE),
    "E215": ("the tensor's size does not match its shape", _DOWNLOAD),
    "E216": ("the tensor does not fill whole bytes", _REWRITE),
    "E217": ("the data of the tensors has a hole or an overlap", _REWRITE),
    "E218": ("the file's size is not what its header says", _DOWNLOAD),
    "E219": ("__metadata__ is not an object of strings", _REWRITE),
    "E220": ("a name is longer than 64 KiB", _REWRITE),
    "E221": ("a text is not valid Unicode (half a surrogate pair)", _REWRITE),
    "E222": ("unknown field in a header entry", "open it with strict=False to ignore the field"),
    "E223": ("the header is nested deeper than 127 levels", _REWRITE),
    "E301": ("the shard index is not the JSON object that it should be", _DOWNLOAD),
    "E302": ("the same name stands twice in the shard index", "write the index again"),
    "E303": ("the shard index has no legal weight_map", "write the index again"),
    "E304": (
        "a shard lies outside the folder of its index",
        "if you trust it, put the shards (or hard links to them) into the folder of the index",
    ),
    "E305": ("a shard that the index names is missing", "download the missing shards"),
    "E306": ("the shard index and the shards disagree", "download all files of one revision again"),
    "E307": ("total_size in the shard index is wrong", "open it with strict=False to ignore it"),
    "E401": ("the output exists already", "give overwrite=True, or another path"),
    "E402": ("there is not enough space for the output", "free some space, or write elsewhere"),
    "E403": ("the output cannot be written", "check the folder, its permissions and the disk"),
    "E404": ("the output has been closed", "make a new writer"),
    "E405": ("the output is not complete", "write every byte of every tensor before commit()"),
}


def shown(name: str, limit: int = 120) -> str:
    """Return a name from a file as printable ASCII of bounded length."""
    text = json.dumps(name[:limit])[1:-1]
    return text[:limit] + "..." if max(len(name), len(text)) > limit else text


def message(code: str, *, path: object = "", tensor: str | None = None, detail: str = "") -> str:
    """Return the message of `code`: what, which tensor, which file, and how to mend it."""
    what, fix = CODES[code]
    lines = [f"{code}: {what}"]
    if detail:
        lines.append(f"  detail  {detail}")
    if tensor is not None:
        lines.append(f"  tensor  {shown(tensor)}")
    if str(path):
        lines.append(f"  file    {path}")
    lines.append(f"  fix     {fix}")
    return "\n".join(lines)


def problem(
    code: str, *, path: object = "", tensor: str | None = None, detail: str = ""
) -> CheckpointError:
    """Return the `CheckpointError` of `code`, ready to be raised."""
    text = message(code, path=path, tensor=tensor, detail=detail)
    return CheckpointError(text, code=code, path=path, tensor=tensor)

"""The JSON files beside weights: ``config.json``, ``adapter_config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 10_000_000


def read_configuration(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    file : Path
        A file of at most 10 MB.

    Returns
    -------
    dict

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is no JSON object; the message says why, and names the file.
    """
    with open(file, "rb") as opened:
        content = opened.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{file} is no configuration: it is larger than 10 MB")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no configuration: expected a JSON object")
    return found

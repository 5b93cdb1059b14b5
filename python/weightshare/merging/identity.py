"""What tells one merge from another: the plan's id, and the state of the files that it reads."""

from __future__ import annotations

import hashlib
import json
import pickle
import secrets
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from weightshare import __version__
from weightshare.merging.method import Settings
from weightshare.merging.plan import MergePlan, PlannedTensor, Source
from weightshare.merging.registry import get_method

# A user's method may be another one in the next process, whatever its name.
_PROCESS = secrets.token_hex(16)
# Size, time of change in ns, SHA-256 of the header.
FileState = tuple[int, int, str]


def plan_id(plan: MergePlan) -> str:
    """Return what is equal for two plans exactly if they make the same weights from equal files.

    Parameters
    ----------
    plan : MergePlan
        A plan; where its models lie does not matter.

    Returns
    -------
    str
        32 hexadecimal digits, which depend on the version of weightshare too.

    Examples
    --------
    >>> plan = MergePlan("linear", (), ())
    >>> plan_id(plan) == plan_id(MergePlan("linear", (), ())), len(plan_id(plan))
    (True, 32)
    """
    known: dict[int, object] = {}

    def settings(given: Settings | None) -> object:
        if given is None:
            return None
        # Many tensors share one object, and the plan keeps it alive.
        if id(given) not in known:
            known[id(given)] = [dict(given.shared), [dict(values) for values in given.per_model]]
        return known[id(given)]

    def row(tensor: PlannedTensor) -> list[object]:
        return [
            *(tensor.name, tensor.dtype, tensor.shape, tensor.action),
            [_source(source) for source in tensor.sources],
            None if tensor.base is None else _source(tensor.base),
            settings(tensor.settings),
            [_source(source) for source in tensor.statistics],
        ]

    digest = hashlib.sha256(f"{__version__} {_method_mark(plan.method)} {plan.seed}".encode())
    digest.update(f"{plan.shards} {len(plan.models)}".encode())
    encoder = json.JSONEncoder(separators=(",", ":"))
    for tensor in plan.tensors:
        digest.update(encoder.encode(row(tensor)).encode())
    return digest.hexdigest()[:32]


def _method_mark(name: str) -> str:
    """Return a method's name; of one that a user added also this process and the very method."""
    method = get_method(name)
    made_by = getattr(method.combine, "func", method.combine).__module__
    if made_by.startswith("weightshare.") and made_by != "weightshare.merging.register":
        return name
    return f"{name} {_PROCESS} {id(method)}"


def _source(source: Source) -> list[object]:
    view = None if source.view is None else _plain(source.view)
    return [source.model, source.name, source.dtype, view]


def _plain(value: Any) -> object:
    """Return a view as lists, numbers and text, arrays by their hash."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, np.ndarray):
        found = hashlib.sha256(value.tobytes()).hexdigest()
        return [str(value.dtype), list(value.shape), found]
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    if is_dataclass(value):
        return [type(value).__name__, *(_plain(getattr(value, f.name)) for f in fields(value))]
    return hashlib.sha256(pickle.dumps(value)).hexdigest()

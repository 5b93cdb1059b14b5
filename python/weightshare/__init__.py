"""weightshare: share weights between models, with NumPy arrays and safetensors checkpoints.

``import weightshare as ws`` loads nothing heavy: each public name brings in its room of the
package when it is first used.
"""

from __future__ import annotations

from importlib import import_module as _import_module

__version__ = "0.2.0"

_ROOM_OF_NAME = {
    "mix": "sharing",
    "share": "sharing",
    "fuse": "sharing",
    "transfer": "sharing",
    "similarity": "sharing",
    "distance": "sharing",
    "mixing": "sharing",
    "merge": "merging",
    "methods": "merging",
    "register_method": "merging",
    "forget_method": "merging",
    "greedy_soup": "merging",
    "compare_checkpoints": "merging",
    "verify_checkpoint": "merging",
    "plan_merge": "recipes",
    "merge_checkpoints": "recipes",
    "MergePlan": "merging",
    "MergeReport": "merging",
    "open_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "Checkpoint": "checkpoint",
    "GD": "training",
    "SGD": "training",
    "SGDR": "training",
    "merge_and_update": "training",
    "SharedFit": "training",
    "show_versions": "_core.versions",
    "WeightshareError": "errors",
    "DivergedError": "errors",
}
_ROOMS = (
    "sharing",
    "checkpoint",
    "language",
    "merging",
    "recipes",
    "training",
    "datasets",
    "errors",
)

__all__ = ["__version__", *_ROOM_OF_NAME, *_ROOMS]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return _import_module(f"{__name__}.{name}")
    room = _ROOM_OF_NAME.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

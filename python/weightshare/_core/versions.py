"""What is installed and what was chosen: the first thing to ask for in a bug report."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from weightshare._core import level, parallel
from weightshare._core.threads import resolve_threads

_PACKAGES = (
    "numpy",
    "ml_dtypes",
    "pyyaml",
    "click",
    "tqdm",
    "scikit-learn",
    "torch",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Facts about the build, the machine and the packages, by name."""
    openmp = parallel.openmp_version()
    facts = {
        "weightshare": metadata.version("weightshare"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "instruction set": level,
        "threads": str(resolve_threads(None)),
        "OpenMP": str(openmp) if openmp else "not built in: one thread",
        "compiler": parallel.compiler(),
    }
    return facts | {name: _version_of(name) for name in _PACKAGES}


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def show_versions() -> None:
    """Print the versions of weightshare, its dependencies, the instruction set and the threads.

    Examples
    --------
    >>> import weightshare as ws
    >>> ws.show_versions()  # doctest: +ELLIPSIS
    weightshare      ...
    """
    for name, value in versions().items():
        print(f"{name:<16} {value}")

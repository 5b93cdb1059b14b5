"""What the demo writes: checkpoints, a recipe, the merged model, and its numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weightshare.checkpoint import open_checkpoint, save_checkpoint
from weightshare.cli.demo_sites import Site
from weightshare.cli.demo_training import Matrix, Outcome, Weights
from weightshare.errors import OutputError, OutputExistsError

_MARKER = ".weightshare-demo"
START = "start"
RECIPE = "recipe.yml"
MERGED = "merged"


def claim_folder(folder: Path) -> None:
    """Make the output folder, or take one that an earlier demo made.

    Raises
    ------
    OutputExistsError
        If it is a file, or holds what no demo made.
    OutputError
        If it cannot be made or written.
    """
    marker = folder / _MARKER
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputExistsError(
                f"--out: expected a folder, got a file: {folder}; choose another"
            )
        if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
            raise OutputExistsError(
                f"--out: {folder} holds files that this demo did not make; choose a new folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(marker, "Made by weightshare demo, which may replace what it wrote here.\n")
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"--out: {folder} cannot be used: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def save_models(folder: Path, outcome: Outcome, sites: Sequence[Site]) -> None:
    """Save the common start, and each site's shared model, each in a folder of its own."""
    save_checkpoint(folder / START, outcome.start, overwrite=True)
    for site, model in zip(sites, outcome.fit.weights, strict=True):
        save_checkpoint(folder / site.name, model, overwrite=True)


def load_model(path: Path) -> Weights:
    """Return all tensors of a checkpoint."""
    with open_checkpoint(path) as checkpoint:
        return {name: np.asarray(checkpoint[name]) for name in checkpoint}


def merge_weights(S: Matrix) -> list[float]:
    """Return each model's share in the merge: its mean similarity to the others, squared.

    Examples
    --------
    >>> merge_weights(np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    [0.5, 0.5, 0.0]
    """
    likeness = np.maximum(S, 0.0) ** 2
    np.fill_diagonal(likeness, 0.0)
    of_each = likeness.sum(axis=1)
    total = float(of_each.sum())
    shares = of_each / total if total > 0.0 else np.full(len(S), 1.0 / len(S))
    return [round(float(share), 3) for share in shares]


def recipe_text(family: str, sites: Sequence[Site], weights: Sequence[float]) -> str:
    """Return a recipe in mergekit's schema that merges the sites' models into one."""
    lines = [
        "# One model for all sites: the start, plus the weighted mean of what each site changed.",
        "# A weight says how similar a site's model is to the others. Paths start at this file.",
        "merge_method: task_arithmetic",
        f"base_model: {family}/{START}",
        "models:",
    ]
    for site, weight in zip(sites, weights, strict=True):
        lines += [
            f"  - model: {family}/{site.name}",
            "    parameters:",
            f"      weight: {weight:.3f}",
        ]
    lines += ["parameters:", "  normalize: true", "  lambda: 1.0", "dtype: float32", ""]
    return "\n".join(lines)


def merge_by_recipe(recipe: Path, out: Path, *, threads: int | None, quiet: bool) -> None:
    """Merge by the command line's own code, as ``weightshare merge RECIPE OUT`` does."""
    from weightshare.cli.group import group

    options = ["--overwrite", "--no-progress"]
    options += ["--quiet"] if quiet else []
    options += ["--threads", str(threads)] if threads is not None else []
    group.main(
        args=["merge", *options, "--", str(recipe), str(out)],
        prog_name="weightshare",
        standalone_mode=False,
    )


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write the numbers as JSON."""
    write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")

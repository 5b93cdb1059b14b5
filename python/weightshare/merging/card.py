"""The texts that accompany a merged model: its card and its provenance."""

from __future__ import annotations

import json
import os
import platform

import ml_dtypes
import numpy as np

from weightshare import __version__
from weightshare.merging.elements import NAME_OF_CODE
from weightshare.merging.leftovers import PROVENANCE_NAME
from weightshare.merging.plan import MergePlan, PlannedModel
from weightshare.merging.registry import get_method

CARD_NAME = "README.md"
RECIPE_NAME = "mergekit_config.yml"


def published_name(label: str) -> str:
    """Return a model's name without the folders of this machine."""
    return os.path.basename(os.path.normpath(label)) if os.path.isabs(label) else label


def model_card(plan: MergePlan) -> str:
    """Return the model card: Hugging Face front matter, what was merged, and the recipe.

    Parameters
    ----------
    plan : MergePlan
        What is merged.

    Returns
    -------
    str
        Markdown.
    """
    method = get_method(plan.method)
    # A JSON string is also a YAML string, whatever characters the name holds.
    names = [json.dumps(published_name(model.label)) for model in plan.models]
    front = ["---", "base_model:", *(f"- {name}" for name in names)]
    front += ["base_model_relation: merge", "tags:", "- merge", "- weightshare", "---"]
    body = [
        "# Merged model",
        "",
        f"Merged by `{method.name}` ({method.source}) with weightshare {__version__}:",
        f"{method.summary}.",
        "",
        *(f"- {name}" for name in names),
        "",
        "Arithmetic is in float32 or wider; the weights are stored as "
        + ", ".join(NAME_OF_CODE.get(code, code) for code in plan.dtypes)
        + ".",
        "",
        "```yaml",
        plan.recipe.rstrip("\n").replace("```", "` ` `"),
        "```",
        "",
    ]
    return "\n".join([*front, "", *body])


def companion_texts(plan: MergePlan) -> dict[str, str]:
    """Return the small files that are written anew beside the weights: their names and texts."""
    texts: dict[str, str] = {}
    if plan.config is not None:
        texts["config.json"] = plan.config
    if plan.card:
        texts[CARD_NAME] = model_card(plan)
        texts[RECIPE_NAME] = plan.recipe
    names = {PROVENANCE_NAME, *texts, *(copy.name for copy in plan.copies)}
    texts[PROVENANCE_NAME] = provenance(plan, sorted(names))
    return texts


def provenance(plan: MergePlan, small_files: list[str]) -> str:
    """Return what the output was made from and by, as JSON text.

    Parameters
    ----------
    plan : MergePlan
        What is merged.
    small_files : list of str
        Names of the files beside the weights.

    Returns
    -------
    str
        Versions, recipe, seed, the inputs' file names and sizes, and each tensor's action.
    """
    record = {
        "schema": 1,
        "versions": {
            "weightshare": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "ml_dtypes": ml_dtypes.__version__,
        },
        "files": [*(name for name, _ in plan.shards), *small_files],
        "method": plan.method,
        "seed": plan.seed,
        "recipe": plan.recipe,
        "inputs": [
            {"name": published_name(model.label), "files": _file_sizes(model)}
            for model in plan.models
        ],
        "tensors": {tensor.name: tensor.action for tensor in plan.tensors},
    }
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def _file_sizes(model: PlannedModel) -> dict[str, int]:
    return {os.path.basename(path): size for path, size in model.files}

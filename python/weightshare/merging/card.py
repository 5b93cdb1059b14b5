"""The texts that accompany a merged model: its card and its provenance."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from weightshare import __version__
from weightshare.merging.elements import NAME_OF_CODE
from weightshare.merging.identity import FileState
from weightshare.merging.ledger import Ledger
from weightshare.merging.leftovers import PROVENANCE_NAME
from weightshare.merging.plan import MergePlan, source_json
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


def companion_texts(plan: MergePlan) -> dict[str, bytes]:
    """Return the small files that are written anew: their names and contents, no provenance."""
    texts = dict(plan.texts)
    if plan.config is not None:
        texts["config.json"] = plan.config.encode("utf-8")
    if plan.card:
        texts[CARD_NAME] = model_card(plan).encode("utf-8")
        texts[RECIPE_NAME] = plan.recipe.encode("utf-8")
    return texts


def provenance(
    plan: MergePlan,
    identity: str,
    inputs: Sequence[Mapping[str, FileState]],
    checksums: Mapping[str, str],
    ledger: Ledger,
) -> str:
    """Return what the output was made from and by, as JSON text.

    Parameters
    ----------
    plan : MergePlan
        What was merged.
    identity : str
        The plan's id.
    inputs : sequence of mapping of str to (size, time, header hash)
        The files of each model.
    checksums : mapping of str to str
        SHA-256 of each small file beside the weights.
    ledger : Ledger
        Of the finished merge.

    Returns
    -------
    str
        Versions, recipe, seed, the inputs' files with sizes and header hashes, and each tensor's
        dtype, shape, action, parameters, what was made from others while it was read (adapters,
        scales of fp8, rows of a vocabulary), and checksum, which `weightshare verify` compares.
    """
    small = sorted({PROVENANCE_NAME, *checksums})
    record = {
        "schema": 2,
        "versions": {
            "weightshare": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "ml_dtypes": ml_dtypes.__version__,
        },
        "plan": identity,
        "files": [*(name for name, _ in plan.shards), *small],
        "sha256": dict(sorted(checksums.items())),
        "method": plan.method,
        "seed": plan.seed,
        "recipe": plan.recipe,
        "inputs": [
            {"name": published_name(model.label), "files": _files(found)}
            for model, found in zip(plan.models, inputs, strict=True)
        ],
    }
    return _json_text(record, *_tensors(plan, ledger))


def _files(found: Mapping[str, FileState]) -> dict[str, object]:
    return {
        os.path.basename(path): {"size": size, "header_sha256": header}
        for path, (size, _, header) in found.items()
    }


def _tensors(plan: MergePlan, ledger: Ledger) -> tuple[list[object], dict[str, object]]:
    """Return the parameters, each once, and the tensors, which name theirs by number."""
    numbers: dict[str, int] = {}
    settings: list[object] = []
    rows: dict[str, object] = {}
    known: dict[int, int] = {}
    for place, tensor in enumerate(plan.tensors):
        row: dict[str, object] = {
            "action": tensor.action,
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "checksum": ledger.checksum(place),
        }
        given = tensor.settings
        if given is not None:
            if id(given) not in known:
                plain = {"shared": dict(given.shared), "models": [*map(dict, given.per_model)]}
                text = json.dumps(plain, sort_keys=True)
                if text not in numbers:
                    numbers[text] = len(settings)
                    settings.append(plain)
                known[id(given)] = numbers[text]
            row["settings"] = known[id(given)]
        flaws = ledger.flaws(place)
        if flaws.found:
            row["nonfinite"] = {"made": flaws.made, "inherited": flaws.inherited}
        views = [source_json(source) for source in tensor.reads if source.view is not None]
        if views:
            row["views"] = views
        rows[tensor.name] = row
    return settings, rows


def _json_text(
    record: dict[str, object], settings: list[object], tensors: dict[str, object]
) -> str:
    """Return JSON that people can read: one line for each tensor and each set of parameters."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    facts = json.dumps(record, indent=2, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n".join(f"    {encode(item)}" for item in settings)
    rows = ",\n".join(f"    {encode(name)}: {encode(row)}" for name, row in tensors.items())
    return f'{facts},\n  "settings": [\n{lines}\n  ],\n  "tensors": {{\n{rows}\n  }}\n}}\n'

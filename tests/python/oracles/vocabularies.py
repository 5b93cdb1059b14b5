"""Tiny models with tokenizers of their own, their vocabulary planned, and the rows it gives."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare.recipes.vocabulary import plan_vocabulary, read_tokenizer

A = ["<unk>", "</s>", "yes", "no"]
B = ["<unk>", "no", "maybe", "</s>", "both"]
C = ["<unk>", "both", "only", "yes"]
WIDTH = 6


def tokenizer_json(tokens, added=()):
    """A word-level tokenizer as the library saves it; `added` are special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import models, pre_tokenizers

    known = {token: place for place, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.WordLevel(known, unk_token=tokens[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in added])
    return made.to_str()


class Opened:
    """A model as recipes open it."""

    def __init__(self, path, label=None):
        self.path = path
        self.label = label or path.name
        self.checkpoint = ws.open_checkpoint(path)
        config = path / "config.json"
        self.config = json.loads(config.read_text()) if config.exists() else None

    def __iter__(self):
        return iter(self.checkpoint)

    def __contains__(self, name):
        return name in self.checkpoint

    def info(self, name):
        return self.checkpoint.info(name)

    def source(self, index, name):
        from weightshare.merging.plan import Source

        return Source(index, name, self.info(name).dtype)


def model_maker(make_model):
    """Return what makes a tiny model whose every row is its own: rows tell where they are from."""
    made = []

    def make(name, tokens, added=(), *, rows=None, dtype=np.float32, config=None, **tensors):
        number = len(made) + 1
        count = len(tokens) + len(added) if rows is None else rows
        random = np.random.default_rng(number)
        table = (random.integers(-64, 64, (count, WIDTH)) / 8).astype(dtype)
        head = (random.integers(-64, 64, (count, WIDTH)) / 8).astype(dtype)
        weights = {
            "model.embed_tokens.weight": table,
            "model.layers.0.mlp.up_proj.weight": np.full((count, 4), number, dtype),
            "lm_head.weight": head,
            **tensors,
        }
        files = {"tokenizer.json": tokenizer_json(tokens, added)} if tokens else {}
        files["tokenizer_config.json"] = json.dumps({"tokenizer_class": "Fast"})
        config = {"vocab_size": count, "eos_token_id": 1} if config is None else config
        path = make_model(name, weights, config=config, files=files)
        made.append(path)
        return path

    return make


def planned(recipe, *paths, base=None, members=None, labels=None):
    problems, warnings = [], []
    asked = read_tokenizer(recipe, problems)
    models = [Opened(path, (labels or {}).get(path.name)) for path in paths]
    vocabulary = plan_vocabulary(asked, models, base, problems, warnings, members=members)
    return vocabulary, models, problems, warnings


def tables_of(vocabulary, models, name="model.embed_tokens.weight"):
    """Every model's table with the output's rows, read through the plan."""
    found = []
    for index, model in enumerate(models):
        source = vocabulary.source(index, model.source(index, name))
        if source.view is None:
            found.append(model.checkpoint[name])
            continue
        shape = vocabulary.shape(index, model.info(name).shape)
        dtype = {"F32": np.float32, "F64": np.float64, "BF16": ml_dtypes.bfloat16}[source.dtype]
        out = np.empty(shape, dtype)
        view = source.view.open([each.checkpoint for each in models])
        view.read_into(0, out.size, out.reshape(-1).view(np.uint8))
        found.append(out)
    return found


def ids_of(vocabulary):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(vocabulary.files["tokenizer.json"].decode()).get_vocab()


def told(name="new", forced=False, /, **source):
    entry = {"source": source.get("source", source), "force": forced}
    return {"tokenizer": {"source": "union", "tokens": {name: entry}}}

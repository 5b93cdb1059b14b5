"""Output heads that are tied to the embeddings: which tensor stands for the one that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from weightshare.recipes.layout import layer_of, stands_before
from weightshare.recipes.sources import SourceModel

_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output|output_layer)\.weight")
_OF_TOKENS = re.compile(
    r"(.*\.)?(embed_tokens|wte|tok_embeddings|word_embeddings|embed_in)\.weight"
)
_OTHER_EMBEDDINGS = (
    *("wpe", "position", "pos_embed", "token_type", "norm", "per_layer"),
    *("vision", "visual", "patch", "audio"),
)
_TIE = "tie_word_embeddings"


def is_head(name: str) -> bool:
    """Say whether a tensor of that name turns the last layer into logits over the vocabulary.

    Examples
    --------
    >>> is_head("lm_head.weight"), is_head("model.layers.0.attention.output.weight")
    (True, False)
    """
    return layer_of(name) is None and _HEAD.fullmatch(name) is not None


def tied_twin(model: SourceModel, name: str) -> str | None:
    """Return the embeddings that stand for a head which a model does not hold, or None.

    Parameters
    ----------
    model : SourceModel
        A model without a tensor of that name.
    name : str
        Such as ``lm_head.weight``.
    """
    if not is_head(name) or says_tied(model.config) is False:
        return None
    found = [other for other in model if is_token_embedding(other, model)]
    likely = [other for other in found if _OF_TOKENS.fullmatch(other)] or found
    return likely[0] if len(likely) == 1 else None


def is_token_embedding(name: str, model: SourceModel) -> bool:
    """Say whether a tensor holds a row for each token of the vocabulary, to begin with."""
    text = name.lower()
    if layer_of(name) is not None or any(part in text for part in _OTHER_EMBEDDINGS):
        return False
    shape = model.info(name).shape
    return len(shape) == 2 and stands_before(name, shape[0], vocabulary_size(model.config))


def vocabulary_size(config: dict[str, Any] | None) -> int | None:
    """Return the ``vocab_size`` of a configuration, or of the part that is about text.

    Examples
    --------
    >>> vocabulary_size({"text_config": {"vocab_size": 32000}})
    32000
    """
    sizes = [part.get("vocab_size") for part in _parts(config)]
    return next((size for size in sizes if type(size) is int), None)


def says_tied(config: dict[str, Any] | None) -> bool | None:
    """Return what a configuration says of tied embeddings; None when it does not say."""
    said = [part[_TIE] for part in _parts(config) if isinstance(part.get(_TIE), bool)]
    return said[0] if said else None


def untied(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with ``tie_word_embeddings`` false wherever it is said.

    Examples
    --------
    >>> untied({"text_config": {"tie_word_embeddings": True}})
    {'text_config': {'tie_word_embeddings': False}, 'tie_word_embeddings': False}
    """
    changed = {
        key: value | {_TIE: False} if isinstance(value, dict) and _TIE in value else value
        for key, value in config.items()
    }
    return changed | {_TIE: False}


def _parts(config: dict[str, Any] | None) -> Iterable[dict[str, Any]]:
    if config is not None:
        yield config
        yield from (config[key] for key in ("text_config", "llm_config") if _is_part(config, key))


def _is_part(config: dict[str, Any], key: str) -> bool:
    return isinstance(config.get(key), dict)

"""Which tensors have a row for each token: told from names, shapes and config.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Shape = tuple[int, ...]

# Parts of the names that embeddings and output layers have.
_INPUT = (
    *("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "token_embedding"),
    *("wordembeddings", "shared"),
)
_OUTPUT = ("lm_head", "embed_out", "output", "predictions", "final_logits_bias", "score_head")
_NEVER = re.compile(r"norm|wpe|position|token_type|rotary")
_IN_LAYER = re.compile(r"\.\d+\.")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")


def says_table(name: str) -> bool:
    """Say whether a name is one that embeddings or output layers have.

    Examples
    --------
    >>> says_table("model.embed_tokens.weight"), says_table("lm_head.weight")
    (True, True)
    >>> says_table("model.layers.0.mlp.up_proj.weight"), says_table("transformer.wpe.weight")
    (False, False)
    """
    lowered = name.lower()
    if _NEVER.search(lowered):
        return False
    parts = lowered.split(".")
    if any(part in _INPUT or part in ("lm_head", "embed_out") for part in parts):
        return True
    # A layer's own `output` is no output of the model.
    return not _IN_LAYER.search(lowered) and any(part in _OUTPUT for part in parts)


def is_input_table(name: str) -> bool:
    """Say whether a name is one that input embeddings have."""
    return says_table(name) and any(part in _INPUT for part in name.lower().split("."))


def configured_rows(config: Mapping[str, Any] | None) -> int | None:
    """Return ``vocab_size`` of a configuration, or of the part of it that is about text.

    Examples
    --------
    >>> configured_rows({"vision_config": {}, "text_config": {"vocab_size": 7}})
    7
    """
    if config is None:
        return None
    parts = [config, config.get("text_config")]
    parts += [value for key, value in config.items() if key.endswith("_config")]
    for part in parts:
        size = part.get("vocab_size") if isinstance(part, Mapping) else None
        if isinstance(size, int) and not isinstance(size, bool) and size > 0:
            return size
    return None


def table_rows(shapes: Iterable[tuple[str, Shape]], config: Mapping[str, Any] | None) -> int | None:
    """Return how many rows a model's embeddings have, or None when none are found.

    Parameters
    ----------
    shapes : iterable of (str, tuple of int)
        Names and shapes of the model's tensors.
    config : mapping or None
        Its ``config.json``.
    """
    configured = configured_rows(config)
    found: dict[bool, list[int]] = {True: [], False: []}
    agrees = False
    for name, shape in shapes:
        if len(shape) != 2:
            continue
        agrees = agrees or shape[0] == configured
        if says_table(name):
            found[is_input_table(name)].append(shape[0])
    candidates = found[True] or found[False]
    if configured in candidates or (not candidates and agrees):
        return configured
    return candidates[0] if candidates else None


def is_table(
    name: str, shapes: Sequence[Shape | None], rows: Sequence[int | None], needed: Sequence[int]
) -> bool:
    """Say whether a tensor has a row for each token of its model's vocabulary.

    Parameters
    ----------
    name : str
        The tensor's name.
    shapes : sequence of tuple of int or None
        Its shape in each model; None where it is not.
    rows : sequence of int or None
        Rows of each model's embeddings.
    needed : sequence of int
        Rows that are read of each model.
    """
    present = [(shape, rows[i], needed[i]) for i, shape in enumerate(shapes) if shape is not None]
    if not present:
        return False
    # An output layer may be padded when the embeddings are not, and the other way round.
    if _HEAD.search(name) and all(len(shape) == 2 and shape[0] >= n for shape, _, n in present):
        return True
    fitting = all(count is not None and rows_of(shape) == count for shape, count, _ in present)
    if not fitting or _NEVER.search(name.lower()):
        return False
    flat = all(len(shape) == 2 and shape[0] > 1 for shape, _, _ in present)
    return says_table(name) or (flat and not _IN_LAYER.search(name))


def rows_of(shape: Shape) -> int:
    """Return the rows of a table of that shape; a bias of shape (1, n) has n of them."""
    if len(shape) == 2 and shape[0] == 1:
        return shape[1]
    return shape[0] if shape else 0


def with_rows(shape: Shape, rows: int) -> Shape:
    """Return the shape of a table with another number of rows."""
    return (1, rows) if len(shape) == 2 and shape[0] == 1 else (rows, *shape[1:])

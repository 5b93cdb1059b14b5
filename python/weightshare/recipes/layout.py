"""Which layers and tensors an output has, told from the names of its inputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_LAYER = re.compile(r"\.(0|[1-9][0-9]{0,8})\.")
_BEFORE = ("embed", "wte", "wpe", "word_embeddings", "tok_embeddings")
_AFTER = ("lm_head", "embed_out", "unembed", "head", "output", "norm", "ln_f", "pool", "classifier")

# The name of a module that stands for all of a model which has one stack.
WHOLE_NAMES = ("default",)
# Words of mergekit for modules that models themselves call otherwise.
_SYNONYMS = {"text_decoder": ("language_model", "text_model"), "vision_tower": ("vision_model",)}


def layer_of(name: str) -> tuple[str, int, str] | None:
    """Return the stack, the layer's number and the rest of a tensor's name; None outside layers.

    The layer is the first whole number between dots, and the stack what stands before it.

    Examples
    --------
    >>> layer_of("model.layers.3.mlp.experts.7.weight"), layer_of("lm_head.weight")
    (('model.layers', 3, 'mlp.experts.7.weight'), None)
    """
    found = _LAYER.search(name)
    return None if found is None else (name[: found.start()], int(found[1]), name[found.end() :])


def stands_before(name: str, rows: int, vocabulary: object) -> bool:
    """Say whether a tensor outside of the layers stands before them, as embeddings do.

    Parameters
    ----------
    name : str
        The tensor's name.
    rows : int
        Its length along the first axis.
    vocabulary : object
        The model's ``vocab_size``, if there is one.

    Examples
    --------
    >>> stands_before("model.embed_tokens.weight", 9, None), stands_before("model.norm.weight", 9, 9)
    (True, False)
    """
    text = name.lower()
    if "embed_out" in text or "unembed" in text:
        return False
    if any(part in text for part in _BEFORE):
        return True
    return rows == vocabulary and not any(part in text for part in _AFTER)


class Depths:
    """Where each tensor's layer lies among the layers of its stack, from 0 to 1.

    A stack of one layer lies at 1; tensors outside of layers lie at 0, as mergekit has it.

    Parameters
    ----------
    names : iterable of str
        All names of the model.

    Examples
    --------
    >>> depths = Depths(["h.0.w", "h.1.w", "h.2.w", "norm.weight"])
    >>> depths["h.1.w"], depths["norm.weight"]
    (0.5, 0.0)
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._last: dict[str, int] = {}
        for name in names:
            found = layer_of(name)
            if found is not None:
                self._last[found[0]] = max(self._last.get(found[0], 0), found[1])

    @property
    def stacks(self) -> dict[str, int]:
        """How many layers each stack has."""
        return {stack: last + 1 for stack, last in self._last.items()}

    def __getitem__(self, name: str) -> float:
        found = layer_of(name)
        return 0.0 if found is None else depth(found[1], self._last[found[0]] + 1)


def depth(layer: int, layers: int) -> float:
    """Return where a layer lies among so many: k / (L - 1), and 1 when it is the only one.

    Examples
    --------
    >>> depth(1, 5), depth(0, 1)
    (0.25, 1.0)
    """
    return layer / (layers - 1) if layers > 1 else 1.0


@dataclass(frozen=True)
class Stack:
    """The layers of one model, and what lies outside of them.

    Attributes
    ----------
    prefix : str
        What stands before the layer's number; empty without layers.
    layers : mapping of int to mapping
        The tensors of each layer: the rest of the name, and the name.
    outside : tuple of str
        Every other name.
    """

    prefix: str
    layers: Mapping[int, Mapping[str, str]]
    outside: tuple[str, ...]

    @property
    def depth(self) -> int:
        """Number of layers, counted by the last."""
        return max(self.layers, default=-1) + 1


def stack_of(names: Iterable[str]) -> Stack | tuple[str, ...]:
    """Return the only stack among these names; the names of all stacks when there are several."""
    layers: dict[int, dict[str, str]] = {}
    outside: list[str] = []
    prefixes: dict[str, None] = {}
    for name in names:
        found = layer_of(name)
        if found is None:
            outside.append(name)
        else:
            prefixes[found[0]] = None
            layers.setdefault(found[1], {})[found[2]] = name
    if len(prefixes) > 1:
        return tuple(prefixes)
    return Stack(next(iter(prefixes), ""), layers, tuple(outside))


def split_modules(
    names: Iterable[str], modules: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Divide names among modules whose names they begin with; the longest that fits holds.

    A module's name may stand behind ``model.``, and mergekit's word may stand for another:
    ``text_decoder`` for ``language_model`` or ``text_model``.

    Returns
    -------
    dict, list
        The names of each module, and those of none.

    Examples
    --------
    >>> split_modules(["vision_tower.a", "model.text_model.b", "c"], ["vision_tower", "text_model"])
    ({'vision_tower': ['vision_tower.a'], 'text_model': ['model.text_model.b']}, ['c'])
    """
    divided: dict[str, list[str]] = {module: [] for module in modules}
    rest: list[str] = []
    prefixes = [
        (f"{lead}{word}.", module)
        for module in modules
        for word in (module, *_SYNONYMS.get(module, ()))
        for lead in ("", "model.")
    ]
    prefixes.sort(key=lambda pair: -len(pair[0]))
    for name in names:
        module = next((module for prefix, module in prefixes if name.startswith(prefix)), None)
        (rest if module is None else divided[module]).append(name)
    return divided, rest

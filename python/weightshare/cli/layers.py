"""A checkpoint's tensors as layers: those that repeat are told once."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weightshare.checkpoint import TensorInfo

# The first number between dots is the layer's: model.layers.12.mlp.weight.
_NUMBERED = re.compile(r"(?P<stack>.*?(?:^|\.))(?P<layer>\d+)\.(?P<rest>.+)")
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_CONFIG_BYTES = 4_000_000


@dataclass(frozen=True)
class Layers:
    """Layers of one stack that hold the same tensors, or one tensor outside of any layer.

    Attributes
    ----------
    stack : str
        Such as ``"model.layers."``; empty for a tensor outside.
    numbers : tuple of int
        The layers' numbers; empty for a tensor outside.
    infos : tuple of TensorInfo
        The tensors of the first of them.
    """

    stack: str
    numbers: tuple[int, ...]
    infos: tuple[TensorInfo, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return max(1, len(self.numbers)) * sum(info.nbytes for info in self.infos)

    @property
    def parameters(self) -> int:
        """Elements of all of them."""
        return max(1, len(self.numbers)) * sum(math.prod(info.shape) for info in self.infos)

    @property
    def name(self) -> str:
        """The tensor's name, or such as ``"model.layers.0-3,5."``."""
        return f"{self.stack}{_ranges(self.numbers)}." if self.numbers else self.infos[0].name

    def local(self, info: TensorInfo) -> str:
        """A tensor's name within its layer."""
        found = _NUMBERED.fullmatch(info.name)
        return found["rest"] if self.numbers and found else info.name


def layers_of(infos: Iterable[TensorInfo]) -> list[Layers]:
    """Group tensors into layers that are alike, in the order in which they first come.

    Examples
    --------
    >>> def info(name):
    ...     return TensorInfo(name, "F32", (2,), "f", 0, 8)
    >>> names = ["embed.weight", "h.0.a", "h.0.b", "h.1.a", "h.1.b", "h.2.a"]
    >>> [group.name for group in layers_of(map(info, names))]
    ['embed.weight', 'h.0-1.', 'h.2.']
    """
    members: dict[tuple[str, int | str], list[TensorInfo]] = {}
    for info in infos:
        found = _NUMBERED.fullmatch(info.name)
        # Digits without end are no layer's number, and Python refuses to read them.
        numbered = found is not None and len(found["layer"]) < 10
        key: tuple[str, int | str] = ("", info.name)
        if found is not None and numbered:
            key = (found["stack"], int(found["layer"]))
        members.setdefault(key, []).append(info)
    groups: dict[object, list[tuple[str, int | str]]] = {}
    for key, held in members.items():
        alike = (key[0], _signature(held)) if isinstance(key[1], int) else key
        groups.setdefault(alike, []).append(key)
    found_groups = []
    for keys in groups.values():
        numbers = tuple(sorted(number for _, number in keys if isinstance(number, int)))
        first = min(keys, key=lambda key: key[1]) if numbers else keys[0]
        found_groups.append(Layers(keys[0][0], numbers, tuple(members[first])))
    return found_groups


def hints_of(infos: Sequence[TensorInfo], groups: Sequence[Layers], config: object) -> list[str]:
    """Return what is odd about a checkpoint: tied and missing tensors, layers that differ.

    Parameters
    ----------
    infos : sequence of TensorInfo
        Everything that it holds.
    groups : sequence of Layers
        The same, from `layers_of`.
    config : object
        The contents of ``config.json``; anything but a mapping is none.

    Returns
    -------
    list of str
        Sentences; empty when nothing was noticed.
    """
    told = config if isinstance(config, dict) else {}
    inner = told.get("text_config")
    told = told | inner if isinstance(inner, dict) else told
    hints = [*_stack_hints(groups), *_depth_hints(groups, told)]
    names = {info.name for info in infos}
    head = next((name for name in _HEADS if name in names), None)
    tied = told.get("tie_word_embeddings")
    if tied is True:
        rest = f"{head} is in the files too" if head else "no head of its own in the files"
        hints.append(f"the head is tied to the embeddings (tie_word_embeddings); {rest}")
    elif told and head is None and any("embed" in name for name in names) and tied is False:
        hints.append("no head in the files, though config.json says that it is not tied")
    return hints


def read_config(path: str) -> object:
    """Return the contents of the ``config.json`` beside the weights at `path`, else None."""
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    try:
        with open(os.path.join(folder, "config.json"), "rb") as file:
            return json.loads(file.read(_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return None


def _signature(infos: Sequence[TensorInfo]) -> tuple[object, ...]:
    rests = (_NUMBERED.fullmatch(info.name) for info in infos)
    return tuple(
        sorted(
            (found["rest"] if found else info.name, info.dtype, tuple(info.shape))
            for found, info in zip(rests, infos, strict=True)
        )
    )


def _stack_hints(groups: Sequence[Layers]) -> list[str]:
    """Tensors that most layers of a stack have and some lack."""
    hints = []
    for stack in dict.fromkeys(group.stack for group in groups if group.numbers):
        kinds = [group for group in groups if group.stack == stack and group.numbers]
        most = max(kinds, key=lambda group: len(group.numbers))
        usual = {most.local(info) for info in most.infos}
        for group in kinds:
            if len(group.numbers) * 4 > len(most.numbers):
                continue
            lost = sorted(usual - {group.local(info) for info in group.infos})
            if lost:
                some = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
                hints.append(f"{group.name[:-1]} lacks what the other layers have: {some}")
        numbers = sorted(number for group in kinds for number in group.numbers)
        gaps = sorted(set(range(numbers[0], numbers[-1])) - set(numbers)) if _short(numbers) else []
        if gaps:
            hints.append(f"{stack}{_ranges(tuple(gaps))} is missing between its neighbours")
    return hints


def _short(numbers: Sequence[int]) -> bool:
    # A hostile number must not make a range of a billion.
    return numbers[-1] - numbers[0] < 10_000


def _depth_hints(groups: Sequence[Layers], config: dict[str, object]) -> list[str]:
    depth = next((config[key] for key in _DEPTHS if isinstance(config.get(key), int)), None)
    counts = Counter[str]()
    for group in groups:
        counts[group.stack] += len(group.numbers)
    counts.pop("", None)
    if depth is None or not counts or depth in counts.values():
        return []
    held = ", ".join(f"{stack}* {count}" for stack, count in counts.most_common(3))
    return [f"config.json says {depth} layers, the files hold {held}"]


def _ranges(numbers: Sequence[int]) -> str:
    """Write numbers in ascending order as ranges, such as ``"0-3,5"``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return ",".join(texts if len(texts) < 9 else [*texts[:8], "..."])

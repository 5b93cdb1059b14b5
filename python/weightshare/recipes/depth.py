"""The configuration of a model whose layers were put together anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from weightshare.recipes.layout import stack_of
from weightshare.recipes.members import Cast
from weightshare.recipes.places import Rebuilt

_COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("num_decoder_layers", "num_encoder_layers", "encoder_layers", "decoder_layers"),
)
# Which part of a configuration is about a stack, when several parts have as many layers.
_WORDS = ("vision", "audio", "text", "language", "llm", "encoder", "decoder")

Path = tuple[str, ...]


def rebuilt_config(
    config: dict[str, Any], cast: Cast, rebuilt: Sequence[Rebuilt], warnings: list[str]
) -> dict[str, Any]:
    """Return a configuration with the output's number of layers, and lists with an entry for each.

    Parameters
    ----------
    config : dict
        The donor's.
    cast : Cast
        The models.
    rebuilt : sequence of Rebuilt
        The stacks that slices make.
    warnings : list of str
        Takes what cannot be told from the configuration.
    """
    changed = deepcopy(config)
    for stack in rebuilt:
        before = _depth(cast, cast.donor, stack.prefix)
        path = _nearest(list(_counts(config, before, stack)), stack)
        if path is not None:
            own, part = _part(config, path), _part(changed, path)
            for key in _counted(own, before, stack):
                if part[key] not in (before, len(stack.layers)):
                    warnings.append(
                        f"config.json: {'.'.join((*path, key))} is the number of layers of several"
                        f" stacks, of which {stack.prefix} has {len(stack.layers)} and another"
                        f" {part[key]}; set it by hand"
                    )
                part[key] = len(stack.layers)
            _rejoin(part, path, before, cast, stack, warnings)
        elif before != len(stack.layers):
            warnings.append(
                f"config.json: holds no number of layers that is {before}, as {stack.prefix} has;"
                f" set that of the output, {len(stack.layers)}, by hand"
            )
    return changed


def _depth(cast: Cast, model: int, prefix: str) -> int:
    names = [name for name in cast.models[model] if name.startswith(f"{prefix}.")]
    stack = stack_of(names)
    return 0 if isinstance(stack, tuple) else stack.depth


def _counts(config: dict[str, Any], layers: int, stack: Rebuilt, path: Path = ()) -> Iterator[Path]:
    """Yield the parts of a configuration that say this number of layers of a stack."""
    if _counted(config, layers, stack):
        yield path
    for key, value in config.items():
        if isinstance(value, dict) and len(path) < 3:
            yield from _counts(value, layers, stack, (*path, key))


def _counted(part: dict[str, Any], layers: int, stack: Rebuilt) -> list[str]:
    """Return the keys that say this number of layers, those about the other side left out.

    Beside a number of its own for the decoder the plain one is the encoder's.
    """
    keys = [key for key in _COUNTS if type(part.get(key)) is int]
    name = f"{stack.module or ''} {stack.prefix}".lower()
    sides = [side for side in ("encoder", "decoder") if side in name]
    if len(sides) == 1:
        other = "decoder" if sides == ["encoder"] else "encoder"
        keys = [key for key in keys if other not in key]
        if any("decoder" in key for key in keys):
            keys = [key for key in keys if "decoder" in key]
    return [key for key in keys if part[key] == layers]


def _nearest(paths: Sequence[Path], stack: Rebuilt) -> Path | None:
    """Return the part that is about a stack: by a word that both names hold, else the first."""
    name = f"{stack.module or ''} {stack.prefix}".lower().replace("language", "text")

    def likeness(path: Path) -> tuple[int, int]:
        text = " ".join(path).lower().replace("language", "text").replace("llm", "text")
        shared = sum(word in name and word in text for word in _WORDS)
        foreign = sum(word in text and word not in name for word in _WORDS if word != "text")
        return foreign - shared, len(path)

    return min(paths, key=likeness, default=None)


def _part(config: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    part: Any = config or {}
    for key in path:
        part = part.get(key) if isinstance(part, dict) else None
    return part if isinstance(part, dict) else {}


def _rejoin(
    part: dict[str, Any],
    path: Path,
    before: int,
    cast: Cast,
    stack: Rebuilt,
    warnings: list[str],
) -> None:
    """Cut and join the lists that have an entry for each layer, as the layers themselves were."""
    models = {model for model, _ in stack.layers}
    depths = {model: _depth(cast, model, stack.prefix) for model in models}
    for key, own in list(part.items()):
        if not isinstance(own, list) or len(own) != before:
            continue
        joined: list[Any] = []
        for model, layer in stack.layers:
            theirs = _part(cast.models[model].config, path).get(key)
            fits = isinstance(theirs, list) and len(theirs) == depths[model]
            source = theirs if fits and theirs is not None else own
            joined += source[layer : layer + 1]
        if len(joined) == len(stack.layers):
            part[key] = joined
        else:
            warnings.append(
                f"config.json: {'.'.join((*path, key))} has an entry for each layer, and not for"
                " all of the output's; set it by hand"
            )

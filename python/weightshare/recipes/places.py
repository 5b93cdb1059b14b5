"""The output's tensors by name: which tensors of which models each is made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from weightshare.merging.registry import nearest
from weightshare.recipes.heads import vocabulary_size
from weightshare.recipes.layout import (
    WHOLE_NAMES,
    Depths,
    Stack,
    depth,
    layer_of,
    split_modules,
    stack_of,
    stands_before,
)
from weightshare.recipes.members import Cast, Group, Member
from weightshare.recipes.schema import ModuleEntry

_MOST_LAYERS = 100_000
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Place:
    """One output tensor.

    Attributes
    ----------
    name : str
        Its name.
    inputs : tuple of str
        What it is called in each reader of the group, whether or not that has it.
    depth : float
        Where its layer lies, from 0 to 1.
    group : Group or None
        None for a tensor of no module, which is copied.
    layered : bool
        Whether it belongs to a layer.
    """

    name: str
    inputs: tuple[str, ...]
    depth: float
    group: Group | None
    layered: bool


@dataclass
class Rebuilt:
    """The layers of a stack that is put together anew.

    Attributes
    ----------
    prefix : str
        The stack's name.
    module : str or None
        Its module.
    layers : list of (int, int)
        For each layer of the output the model, and the layer there, that it is from first.
    """

    prefix: str
    module: str | None
    layers: list[tuple[int, int]] = field(default_factory=list)


class Placement:
    """Finds the place of every output tensor.

    Parameters
    ----------
    cast : Cast
        The models.
    problems, warnings : list of str
        Take what is wrong, and what is probably not meant.

    Attributes
    ----------
    rebuilt : list of Rebuilt
        The stacks that slices make.
    """

    def __init__(self, cast: Cast, problems: list[str], warnings: list[str]) -> None:
        self._cast = cast
        self._problems = problems
        self._warnings = warnings
        self.rebuilt: list[Rebuilt] = []

    def places(self, modules: Sequence[tuple[ModuleEntry, list[Group]]]) -> list[Place]:
        """Return every output tensor, in the order in which the donor's file has them.

        Parameters
        ----------
        modules : sequence of (ModuleEntry, list of Group)
            What is merged.
        """
        named = [module.name for module, _ in modules if module.name is not None]
        if not named or self._is_whole(named):
            return [place for module, groups in modules for place in self._module(module, groups)]
        divided, rest = self._divided(named, [group for _, groups in modules for group in groups])
        found: list[Place] = []
        for module, groups in modules:
            assert module.name is not None
            own = {model: names[module.name] for model, names in divided.items()}
            if groups and not any(own.values()):
                self._tell_module(module)
            found += self._module(module, groups, own)
        return [*found, *self._copied(rest)]

    def _is_whole(self, named: Sequence[str]) -> bool:
        return len(named) == 1 and named[0] in WHOLE_NAMES

    def _divided(
        self, named: Sequence[str], groups: Iterable[Group]
    ) -> tuple[dict[int, dict[str, list[str]]], list[tuple[int, list[str]]]]:
        used = [self._cast.donor] if self._cast.models else []
        used += [reader.model for group in groups for reader in group.readers]
        divided, rest = {}, []
        for model in dict.fromkeys(used):
            divided[model], outside = split_modules(self._cast.models[model], named)
            rest.append((model, outside))
        return divided, rest

    def _tell_module(self, module: ModuleEntry) -> None:
        names = self._cast.models[self._cast.donor]
        parts = {part for name in names for part in name.split(".")[:3]}
        self._problems.append(
            f"{module.where}: no tensor's name begins with {module.name!r}"
            f"{nearest(module.name, sorted(parts))}; a module's name is the first part of the"
            " names of its tensors"
        )

    def _copied(self, rest: Sequence[tuple[int, list[str]]]) -> list[Place]:
        holders: dict[str, int] = {}
        for model, names in rest:
            for name in names:
                holders.setdefault(name, model)
        if holders:
            names = list(holders)
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            label = self._cast.models[self._cast.donor].label
            self._warnings.append(
                f"modules: what belongs to none is copied from {label}, or else from the first"
                f" model that has it: {', '.join(names[:_SHOWN])}{more}"
            )
        return [Place(name, (), 0.0, None, False) for name in holders]

    def _module(
        self,
        module: ModuleEntry,
        groups: list[Group],
        names: Mapping[int, Sequence[str]] | None = None,
    ) -> Iterator[Place]:
        """Yield the places of one module, whose names in each model may be only some."""
        if groups and all(group.piece.whole for group in groups):
            yield from self._whole(groups[0], names)
        elif groups:
            yield from self._sliced(module, groups, names)

    def _names(
        self, readers: Iterable[Member], names: Mapping[int, Sequence[str]] | None
    ) -> list[tuple[int, Sequence[str]]]:
        """Return the names of each model, the donor first, in the order of its files."""
        models = dict.fromkeys(reader.model for reader in readers)
        order = sorted(models, key=lambda model: model != self._cast.donor)
        return [
            (model, list(self._cast.models[model]) if names is None else names[model])
            for model in order
        ]

    def _whole(self, group: Group, names: Mapping[int, Sequence[str]] | None) -> Iterator[Place]:
        readers = list(group.readers)
        if not group.piece.sources or self._cast.donor not in {r.model for r in readers}:
            readers.append(Member(self._cast.donor, None, None))
        every: dict[str, None] = {}
        for model, found in self._names(readers, names):
            infos = sorted(
                map(self._cast.models[model].info, found), key=lambda info: (info.file, info.offset)
            )
            every |= dict.fromkeys(info.name for info in infos)
        depths = Depths(every)
        count = len(group.readers)
        for name in every:
            at = depths[name]
            yield Place(name, (name,) * count, at, group, layer_of(name) is not None)

    def _sliced(
        self, module: ModuleEntry, groups: list[Group], names: Mapping[int, Sequence[str]] | None
    ) -> Iterator[Place]:
        stacks = self._stacks(module, groups, names)
        if stacks is None or not self._check_ranges(groups, stacks):
            return
        donor = stacks.get(self._cast.donor) or stacks[groups[0].readers[0].model]
        before, after = self._outside(groups, stacks)
        rebuilt = Rebuilt(donor.prefix, module.name)
        self.rebuilt.append(rebuilt)
        for name in before:
            yield Place(name, (name,) * len(groups[0].readers), 0.0, groups[0], False)
        for group in groups:
            yield from self._layers(group, stacks, rebuilt)
        for name in after:
            yield Place(name, (name,) * len(groups[-1].readers), 0.0, groups[-1], False)

    def _stacks(
        self, module: ModuleEntry, groups: list[Group], names: Mapping[int, Sequence[str]] | None
    ) -> dict[int, Stack] | None:
        """Return the one stack of each model; None, and a problem, when there are several."""
        readers = [reader for group in groups for reader in group.readers]
        found: dict[int, Stack] = {}
        for model, known in self._names(readers, names):
            stack = stack_of(known)
            label = self._cast.models[model].label
            where = f"{module.where}.slices" if module.where else "slices"
            if isinstance(stack, tuple):
                more = " and more" if len(stack) > _SHOWN else ""
                self._problems.append(
                    f"{where}: {label} has several stacks of layers: {', '.join(stack[:_SHOWN])}"
                    f"{more}; give each its slices under modules, whose names are the first parts"
                    " of the tensors' names"
                )
            elif not stack.layers:
                self._problems.append(
                    f"{where}: {label} has no layers: no tensor's name holds a number between dots"
                )
            else:
                found[model] = stack
        return found if len(found) == len({reader.model for reader in readers}) else None

    def _check_ranges(self, groups: list[Group], stacks: Mapping[int, Stack]) -> bool:
        before = len(self._problems)
        total = sum(group.piece.depth for group in groups)
        if total > _MOST_LAYERS:
            self._problems.append(
                f"slices: expected at most {_MOST_LAYERS:,} layers, got {total:,}"
            )
            return False
        for group in groups:
            for reader in group.readers:
                assert reader.layers is not None
                assert reader.entry is not None
                held = stacks[reader.model].layers
                lacking = [layer for layer in reader.layers if layer not in held]
                if lacking:
                    self._problems.append(
                        f"{reader.entry.where}.layer_range: {self._cast.models[reader.model].label}"
                        f" has {stacks[reader.model].depth} layers, and no layer {lacking[0]}"
                    )
        return len(self._problems) == before

    def _outside(
        self, groups: list[Group], stacks: Mapping[int, Stack]
    ) -> tuple[list[str], list[str]]:
        """Return the names before the layers and those after, by all models that have them."""
        before: dict[str, None] = {}
        after: dict[str, None] = {}
        for model, stack in stacks.items():
            opened = self._cast.models[model]
            size = vocabulary_size(opened.config)
            for name in stack.outside:
                if name not in before and name not in after:
                    shape = opened.info(name).shape
                    rows = shape[0] if shape else 0
                    (before if stands_before(name, rows, size) else after)[name] = None
        return list(before), list(after)

    def _layers(
        self, group: Group, stacks: Mapping[int, Stack], rebuilt: Rebuilt
    ) -> Iterator[Place]:
        readers = group.readers
        count = group.piece.depth
        for k in range(count):
            number = len(rebuilt.layers)
            parts: dict[str, None] = {}
            places: list[tuple[str, int]] = []
            for reader in readers:
                assert reader.layers is not None
                layer = reader.layers[k]
                places.append((stacks[reader.model].prefix, layer))
                parts |= dict.fromkeys(stacks[reader.model].layers[layer])
            rebuilt.layers.append((readers[0].model, places[0][1]))
            at = depth(k, count)
            for part in parts:
                inputs = tuple(f"{prefix}.{layer}.{part}" for prefix, layer in places)
                yield Place(f"{rebuilt.prefix}.{number}.{part}", inputs, at, group, True)

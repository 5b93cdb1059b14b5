"""From a recipe and the headers of its files to the tensors of a plan, or to every problem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from weightshare.checkpoint import TensorInfo
from weightshare.merging.elements import DTYPE_OF_CODE, promoted
from weightshare.merging.method import Method, Parameter, Settings
from weightshare.merging.plan import WIDTH_OF_CODE, PlannedTensor, Source
from weightshare.merging.registry import nearest
from weightshare.recipes.schema import MergeRecipe, ModelEntry
from weightshare.recipes.settings import Depths
from weightshare.recipes.sources import SourceModel

_NAMES_SHOWN = 5


class Roles:
    """Which of the opened models is merged, which is the base, and whose files are copied.

    Parameters
    ----------
    method : Method
        The recipe's method.
    entries : sequence of ModelEntry
        The recipe's models.
    models : sequence of SourceModel
        The opened models, one for each entry.
    base : SourceModel or None
        The opened base model.
    """

    def __init__(
        self,
        method: Method,
        entries: Sequence[ModelEntry],
        models: Sequence[SourceModel],
        base: SourceModel | None,
    ) -> None:
        self.all = list(models) if base is None or base in models else [*models, base]
        self.donor = 0 if base is None else self.all.index(base)
        self.base = self.donor if method.needs_base and base is not None else None
        self.merged = [index for index in range(len(models)) if index != self.base]
        self.entries = [entries[index] for index in self.merged]


class TensorResolver:
    """Resolves every output tensor, collecting what is wrong.

    Parameters
    ----------
    recipe : MergeRecipe
        What is asked for.
    method : Method
        Its method.
    roles : Roles
        The models.

    Attributes
    ----------
    problems, warnings : list of str
        What is wrong, and what is probably not meant.
    """

    def __init__(self, recipe: MergeRecipe, method: Method, roles: Roles) -> None:
        self._recipe = recipe
        self._method = method
        self._roles = roles
        self._settings: dict[tuple[float, ...], Settings] = {}
        self._refused: dict[str, list[str]] = {}
        self._missing: set[str] = set()
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def tensors(self) -> tuple[PlannedTensor, ...]:
        """Return the output's tensors, in the order of the donor's file."""
        self._check_required()
        self._check_names()
        donor = self._roles.all[self._roles.donor].checkpoint
        infos = sorted((donor.info(name) for name in donor), key=lambda i: (i.file, i.offset))
        self._warn_of_idle_filters([info.name for info in infos])
        depths = Depths(info.name for info in infos)
        resolved = [self._tensor(info.name, depths[info.name]) for info in infos]
        for problem, names in self._refused.items():
            self.problems.append(f"{problem}: {listed(names)}")
        return tuple(tensor for tensor in resolved if tensor is not None)

    def _warn_of_idle_filters(self, names: Sequence[str]) -> None:
        settings = [(f"parameters.{name}", s) for name, s in self._recipe.parameters.items()]
        for entry in self._roles.entries:
            settings += [(f"{name} of {entry.model}", s) for name, s in entry.parameters.items()]
        for where, setting in settings:
            for rule in setting.rules:
                if not any(rule.matches(name) for name in names):
                    self.warnings.append(f"{where}: the filter {rule.text!r} matches no tensor")

    def _check_required(self) -> None:
        for parameter in self._method.parameters:
            for entry in self._roles.entries if parameter.per_model else [None]:
                if parameter.required and not self._is_given(parameter, entry):
                    self._tell_missing(parameter, entry, "")

    def _is_given(self, parameter: Parameter, entry: ModelEntry | None) -> bool:
        own = entry is not None and parameter.name in entry.parameters
        return own or parameter.name in self._recipe.parameters

    def _check_names(self) -> None:
        donor = self._roles.all[self._roles.donor]
        for model in self._roles.all:
            missing = [name for name in donor.checkpoint if name not in model.checkpoint]
            extra = [name for name in model.checkpoint if name not in donor.checkpoint]
            if missing:
                hint = nearest(missing[0], extra[:1000])
                self.problems.append(
                    f"{model.label} lacks {counted(missing)} that {donor.label} has:"
                    f" {listed(missing)}{hint}{_remedy(missing)}"
                )
            if extra:
                self.problems.append(
                    f"{model.label} has {counted(extra)} that {donor.label} lacks: {listed(extra)}"
                    f"{_remedy(extra)}"
                )

    def _tensor(self, name: str, depth: float) -> PlannedTensor | None:
        roles = self._roles
        infos = [
            model.checkpoint.info(name) if name in model.checkpoint else None for model in roles.all
        ]
        present = [(i, info) for i, info in enumerate(infos) if info is not None]
        if not self._check_shapes(name, present) or len(present) < len(infos):
            return None
        found = dict(present)
        donor = found[roles.donor]
        codes = {info.dtype for info in found.values()}
        if not codes & DTYPE_OF_CODE.keys() and codes <= WIDTH_OF_CODE.keys() and len(codes) == 1:
            order = sorted(found, key=lambda index: index != roles.donor)
            copied = tuple(Source(index, name, donor.dtype) for index in order)
            return PlannedTensor(name, donor.dtype, tuple(donor.shape), "copy", copied)
        if not codes <= DTYPE_OF_CODE.keys():
            self._refuse_dtypes(name, codes)
            return None
        settings = self._resolved(name, depth)
        if settings is None:
            return None
        sources = tuple(Source(index, name, found[index].dtype) for index in roles.merged)
        base = None if roles.base is None else Source(roles.base, name, found[roles.base].dtype)
        dtype = self._recipe.out_dtype or self._recipe.dtype
        dtype = dtype or (base.dtype if base else promoted(s.dtype for s in sources))
        return PlannedTensor(name, dtype, tuple(donor.shape), "merge", sources, base, settings)

    def _check_shapes(self, name: str, present: Sequence[tuple[int, TensorInfo]]) -> bool:
        shapes = {tuple(info.shape) for _, info in present}
        if len(shapes) < 2:
            return True
        each = ", ".join(f"{self._roles.all[i].label} {tuple(n.shape)}" for i, n in present)
        problem = f"{name}: the shapes differ: {each}"
        if self._is_vocabulary(name, shapes):
            problem += "; the vocabularies differ, which needs a tokenizer merge, and that is not"
            problem += " supported in this version"
        self.problems.append(problem)
        return False

    def _is_vocabulary(self, name: str, shapes: set[tuple[int, ...]]) -> bool:
        if len({shape[1:] for shape in shapes}) > 1:
            return False
        if any(part in name.lower() for part in ("embed", "lm_head", "wte", "vocab")):
            return True
        rows = {shape[0] for shape in shapes if shape}
        return bool(rows & {_vocabulary(model.config) for model in self._roles.all})

    def _refuse_dtypes(self, name: str, codes: set[str]) -> None:
        words = ", ".join(sorted(codes))
        if len(codes) > 1 and codes <= WIDTH_OF_CODE.keys():
            problem = f"dtypes {words} of one tensor cannot be merged, convert the models to one"
        else:
            problem = (
                f"dtype {words} cannot be merged in this version, convert it to one of"
                f" {', '.join(DTYPE_OF_CODE)}"
            )
        self._refused.setdefault(problem, []).append(name)

    def _resolved(self, name: str, depth: float) -> Settings | None:
        values: list[float] = []
        for parameter in self._method.parameters:
            entries = self._roles.entries if parameter.per_model else [None]
            for entry in entries:
                value = self._value(parameter, entry, name, depth)
                if value is None:
                    return None
                values.append(value)
        key = tuple(values)
        if key not in self._settings:
            self._settings[key] = self._as_settings(values)
        settings = self._settings[key]
        problem = self._method.check(settings)
        if problem is not None:
            self._refused.setdefault(f"parameters: {problem}", []).append(name)
            return None
        return settings

    def _value(
        self, parameter: Parameter, entry: ModelEntry | None, name: str, depth: float
    ) -> float | None:
        own = entry.parameters.get(parameter.name) if entry is not None else None
        for setting in (own, self._recipe.parameters.get(parameter.name)):
            value = None if setting is None else setting.value(name, depth)
            if value is not None:
                return value
        if parameter.default is not None:
            return parameter.default
        self._tell_missing(parameter, entry, name)
        return None

    def _tell_missing(self, parameter: Parameter, entry: ModelEntry | None, name: str) -> None:
        whose = f" of {entry.model}" if entry is not None else ""
        problem = f"{parameter.name}{whose}: is missing, and {self._method.name} needs it"
        if self._is_given(parameter, entry):
            self._refused.setdefault(f"{problem} for every tensor", []).append(name)
        elif problem not in self._missing:
            self._missing.add(problem)
            self.problems.append(problem)

    def _as_settings(self, values: Iterable[float]) -> Settings:
        remaining = iter(values)
        shared: dict[str, float] = {}
        per_model: list[dict[str, float]] = [{} for _ in self._roles.entries]
        for parameter in self._method.parameters:
            for row in per_model if parameter.per_model else [shared]:
                value = next(remaining)
                row[parameter.name] = bool(value) if parameter.kind == "bool" else value
        return Settings(shared, tuple(per_model))


def _remedy(names: Sequence[str]) -> str:
    """Return what to do about tensors that only some models have, where the names tell."""
    if any("lora_" in name for name in names):
        return "; these are LoRA adapters: merge them into their model, or save it without them"
    if all(name.endswith("lm_head.weight") for name in names):
        return (
            "; one model ties lm_head to its embeddings and the other does not: save both alike"
            " (tie_word_embeddings in config.json; drop lm_head.weight, or add a copy of the"
            " embeddings under its name)"
        )
    return ""


def _vocabulary(config: dict[str, Any] | None) -> object:
    size = (config or {}).get("vocab_size")
    return size if isinstance(size, int) else None


def counted(names: Sequence[str]) -> str:
    """Return how many tensors these are, such as ``"1 tensor"``."""
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown

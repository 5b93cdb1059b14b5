"""From a document to a recipe, checked key by key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from weightshare.merging.elements import CODE_OF_NAME
from weightshare.merging.method import Method, Parameter
from weightshare.merging.registry import methods, nearest
from weightshare.recipes.load import Document
from weightshare.recipes.reference import Reference, parse_reference
from weightshare.recipes.schema import MergeRecipe, ModuleEntry, SliceEntry, SourceEntry
from weightshare.recipes.settings import Level, Setting, parse_setting

_INPUTS = ("models", "slices", "modules")
_KEYS = (
    *("merge_method", *_INPUTS, "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template", "name"),
)
# Keys of recipes as they are published that mergekit passes over, and what there is instead.
_WITHOUT_EFFECT = {
    "random_seed": "; the seed of random methods is the option seed (--random-seed)",
    "embed_slerp": "; embeddings are merged as everything else is",
}
_MODEL_KEYS = ("model", "parameters")
_WHOLE = "; what models lists is merged whole, for some of the layers write slices"
_SLICE_KEYS = ("sources", "base_model", "residual_weight", "parameters")
_SOURCE_KEYS = ("model", "layer_range", "parameters")
_MODULE_KEYS = ("models", "slices", "parameters")
_MOST_LAYERS = 100_000
_MOST_MODULES = 100
_NAME = re.compile(r"[^\s/\\\0.][^/\\\0]{0,99}")


class RecipeReader:
    """Turns a document into a `MergeRecipe`, collecting everything that is wrong with it.

    Parameters
    ----------
    document : Document
        What was read.
    lenient : bool
        Whether unknown keys and parameters are warnings.

    Attributes
    ----------
    problems, warnings : list of str
        What cannot be merged, and what is allowed and probably not meant.
    """

    def __init__(self, document: Document, *, lenient: bool = False) -> None:
        self._document = document
        self._method: Method | None = None
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._unknown = self.warnings if lenient else self.problems

    def read(self) -> MergeRecipe:
        """Return the recipe; what is wrong is left out of it and told in `problems`."""
        data = self._document.data
        self._check_top(data)
        self._method = self._read_method(data.get("merge_method"))
        return MergeRecipe(
            method=self._method,
            modules=self._modules(data),
            base_model=self._optional(data.get("base_model"), "base_model"),
            parameters=self._level(data.get("parameters"), "parameters"),
            dtype=self._dtype(data.get("dtype"), "dtype"),
            out_dtype=self._dtype(data.get("out_dtype"), "out_dtype"),
            tokenizer_source=data.get("tokenizer_source"),
            tokenizer=data.get("tokenizer"),
            chat_template=data.get("chat_template"),
            name=self._name(data.get("name")),
        )

    def _check_top(self, data: Mapping[Any, Any]) -> None:
        for key in data:
            if key in _KEYS:
                continue
            if key in _WITHOUT_EFFECT:
                self._tell_idle(key, key)
            elif key in self._document.anchors:
                self.warnings.append(f"{key}: unknown key, taken to hold YAML anchors only")
            else:
                self._unknown.append(f"{key}: unknown key{nearest(key, _KEYS)}")

    def _tell_idle(self, key: str, where: str) -> None:
        self.warnings.append(f"{where}: has no effect, as in mergekit{_WITHOUT_EFFECT[key]}")

    def _check_keys(self, value: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
        held = () if "layer_range" in known or "model" not in known else ("layer_range",)
        self._unknown.extend(
            f"{where}: unknown key {key!r}{_WHOLE if key in held else nearest(key, known)}"
            for key in value
            if key not in known
        )

    def _read_method(self, name: object) -> Method | None:
        known = methods()
        available = f"available are {', '.join(known)}"
        if name is None:
            self.problems.append(f"merge_method: is missing; {available}")
        elif not isinstance(name, str):
            self.problems.append(f"merge_method: expected a name, got {name!r}; {available}")
        elif name not in known:
            hint = nearest(name, known)
            self.problems.append(f"merge_method: unknown method {name!r}{hint}; {available}")
        else:
            return known[name]
        return None

    def _name(self, value: object) -> str | None:
        if value is None:
            return None
        if self._document.lone:
            # Published recipes of one document have names of the hub there.
            return value if isinstance(value, str) else None
        # It becomes the name of a folder.
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            self.problems.append(
                f"name: expected a text of at most 100 letters, without slashes and not"
                f" beginning with a dot, got {value!r}"
            )
            return None
        return value

    def _modules(self, data: Mapping[Any, Any]) -> tuple[ModuleEntry, ...]:
        given = [key for key in _INPUTS if data.get(key)]
        if len(given) > 1:
            self.problems.append(
                f"{given[1]}: is given beside {given[0]}; exactly one of models, slices and"
                " modules is expected"
            )
        if given and given[0] == "modules":
            return self._named_modules(data["modules"])
        slices = self._inputs(data, "")
        return (ModuleEntry(None, slices, Level(), ""),) if slices else ()

    def _named_modules(self, value: object) -> tuple[ModuleEntry, ...]:
        if not isinstance(value, dict):
            self.problems.append(f"modules: expected names of modules, got {value!r}")
            return ()
        if len(value) > _MOST_MODULES:
            self.problems.append(
                f"modules: expected at most {_MOST_MODULES} modules, got {len(value):,}"
            )
            return ()
        found = []
        for name, entry in value.items():
            where = f"modules.{name}"
            if not isinstance(name, str) or not name or not isinstance(entry, dict):
                self.problems.append(f"{where}: expected the keys models or slices")
                continue
            self._check_keys(entry, _MODULE_KEYS, where)
            if entry.get("models") and entry.get("slices"):
                self.problems.append(f"{where}.slices: is given beside models")
            slices = self._inputs(entry, f"{where}.")
            level = self._level(entry.get("parameters"), f"{where}.parameters")
            if slices:
                found.append(ModuleEntry(name, slices, level, where))
        return tuple(found)

    def _inputs(self, data: Mapping[Any, Any], prefix: str) -> tuple[SliceEntry, ...]:
        """Read ``models``, or ``slices`` when there are no models."""
        key = "slices" if data.get("slices") and not data.get("models") else "models"
        entries, where = data.get(key), f"{prefix}{key}"
        if not isinstance(entries, list) or not entries:
            one = "slice" if key == "slices" else "model"
            more = "" if prefix or key in data else "; or slices, or modules"
            got = "" if entries is None else f", got {entries!r}"
            self.problems.append(f"{where}: expected a list of at least one {one}{more}{got}")
            return ()
        if key == "models":
            sources = self._sources(entries, where, _MODEL_KEYS)
            return (SliceEntry(sources, None, Level(), where),) if sources else ()
        found = [self._slice(entry, f"{where}[{i}]") for i, entry in enumerate(entries)]
        return tuple(piece for piece in found if piece is not None)

    def _slice(self, entry: object, where: str) -> SliceEntry | None:
        if not isinstance(entry, dict):
            self.problems.append(f"{where}: expected the key sources")
            return None
        self._check_keys(entry, _SLICE_KEYS, where)
        if entry.get("residual_weight") is not None:
            self.warnings.append(f"{where}.residual_weight: has no effect, as in mergekit")
        base = self._optional(entry.get("base_model"), f"{where}.base_model")
        level = self._level(entry.get("parameters"), f"{where}.parameters")
        listed = entry.get("sources")
        if not isinstance(listed, list) or not listed:
            self.problems.append(f"{where}.sources: expected a list of at least one source")
            return None
        sources = self._sources(listed, f"{where}.sources", _SOURCE_KEYS)
        depths = {len(source.layers) for source in sources if source.layers is not None}
        if len(depths) > 1:
            each = ", ".join(str(len(source.layers or ())) for source in sources)
            self.problems.append(
                f"{where}: the sources have {each} layers; all of a slice need the same number"
            )
            return None
        return SliceEntry(sources, base, level, where) if sources else None

    def _sources(
        self, entries: list[Any], where: str, keys: tuple[str, ...]
    ) -> tuple[SourceEntry, ...]:
        found = []
        for index, entry in enumerate(entries):
            here = f"{where}[{index}]"
            if not isinstance(entry, dict):
                self.problems.append(
                    f"{here}: expected the keys {' and '.join(keys)}, got {entry!r}; begin with"
                    " model:"
                )
                continue
            self._check_keys(entry, keys, here)
            layers = None
            if "layer_range" in keys:
                layers = self._layers(entry.get("layer_range"), f"{here}.layer_range")
            model = self._reference(entry.get("model"), f"{here}.model")
            level = self._level(entry.get("parameters"), f"{here}.parameters", own=True)
            if model is not None and (layers is not None or "layer_range" not in keys):
                found.append(SourceEntry(model, layers, level, here))
        return tuple(found)

    def _layers(self, value: object, where: str) -> range | None:
        whole = isinstance(value, list) and all(type(item) is int for item in value)
        if not (isinstance(value, list) and whole and len(value) == 2):
            self.problems.append(
                f"{where}: expected the first layer and the one after the last, such as [0, 16],"
                f" got {value!r}"
            )
            return None
        first, end = value
        if 0 <= first < end <= _MOST_LAYERS:
            return range(first, end)
        fault = "is reversed" if end < first else "is empty" if end == first else "begins below 0"
        if end > _MOST_LAYERS:
            fault = f"ends above {_MOST_LAYERS:,}, the most layers that are expected"
        self.problems.append(f"{where}: {fault}: {value!r}")
        return None

    def _optional(self, value: object, where: str) -> Reference | None:
        return None if value is None else self._reference(value, where)

    def _reference(self, value: object, where: str) -> Reference | None:
        return parse_reference(value, where, self.problems, folder=self._document.folder)

    def _level(self, value: object, where: str, *, own: bool = False) -> Level:
        """Read the parameters of one place; `own` ones are a single model's."""
        if value is None:
            return Level(where=where)
        if not isinstance(value, dict):
            self.problems.append(f"{where}: expected names and values, got {value!r}")
            return Level(where=where)
        settings: dict[str, Setting] = {}
        checkpoints: dict[str, Reference] = {}
        for name, item in value.items():
            parameter = self._parameter(name, f"{where}.{name}", own)
            if parameter is None:
                continue
            if parameter.kind == "checkpoint":
                reference = self._optional(item, f"{where}.{name}")
                if reference is not None:
                    checkpoints[parameter.name] = reference
            else:
                setting = parse_setting(item, f"{where}.{name}", parameter, self.problems)
                settings[parameter.name] = setting
        return Level(settings, checkpoints, where)

    def _parameter(self, name: object, where: str, own: bool) -> Parameter | None:
        """Return the parameter of that name if the method takes it here; else tell."""
        foreign = {known.name for method in methods().values() for known in method.parameters}
        if self._method is None:
            if name not in foreign and name not in _WITHOUT_EFFECT:
                self._unknown.append(f"{where}: unknown parameter{nearest(name, sorted(foreign))}")
            return None
        parameter = self._method.parameter(str(name))
        if parameter is None:
            known = [known.name for known in self._method.parameters]
            if name in _WITHOUT_EFFECT:
                self._tell_idle(str(name), where)
            elif name in foreign:
                self.warnings.append(f"{where}: not used by {self._method.name}")
            else:
                takes = ", ".join(known) or "none"
                self._unknown.append(
                    f"{where}: unknown parameter{nearest(name, known)}"
                    f" ({self._method.name} takes {takes})"
                )
            return None
        if own and not parameter.per_model:
            self.warnings.append(
                f"{where}: not used, {name} is set once for all models under parameters"
            )
            return None
        return parameter

    def _dtype(self, value: object, where: str) -> str | None:
        if value is None:
            return None
        code = CODE_OF_NAME.get(str(value).removeprefix("torch."))
        if code is None:
            self.problems.append(
                f"{where}: expected one of {', '.join(CODE_OF_NAME)}, got {value!r}"
                f"{nearest(value, CODE_OF_NAME)}"
            )
        return code

"""The recipe as data: every key of mergekit's schema, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightshare.merging.elements import CODE_OF_NAME
from weightshare.merging.method import Method
from weightshare.merging.registry import methods, nearest
from weightshare.recipes.load import Document
from weightshare.recipes.settings import Setting, parse_setting

_KEYS = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype")
_LATER = ("slices", "modules", "tokenizer_source", "tokenizer", "chat_template", "name")
_MODEL_KEYS = ("model", "parameters")
_REFERENCE_KEYS = ("model", "lora", "override_architecture")

# The parameters of mergekit's methods: recipes carry them from one method to the next.
_FOREIGN_PARAMETERS = {"weight", "density", "gamma", "epsilon", "t", "normalize", "rescale"}
_FOREIGN_PARAMETERS |= {"lambda", "int8_mask", "filter_wise", "eps", "max_iter", "tol"}
_FOREIGN_PARAMETERS |= {"nuslerp_flatten", "nuslerp_row_wise", "normalize_weights"}
_FOREIGN_PARAMETERS |= {"select_topk", "r", "alpha", "scale"}
_FOREIGN_METHODS = {"linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock"}
_FOREIGN_METHODS |= {"nearswap", "arcee_fusion", "passthrough", "task_arithmetic", "ties"}
_FOREIGN_METHODS |= {"dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della"}
_FOREIGN_METHODS |= {"della_linear", "sce", "ram", "ramplus_tl"}


@dataclass(frozen=True)
class ModelEntry:
    """One model of the recipe: how it is named, and its own parameters."""

    model: str
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class MergeRecipe:
    """A recipe.

    Attributes
    ----------
    method : Method or None
        None when the recipe names none that there is.
    models : tuple of ModelEntry
        In the order of the recipe.
    base_model : str or None
        As it is written.
    parameters : mapping of str to Setting
        Those for all models.
    dtype, out_dtype : str or None
        safetensors codes.
    """

    method: Method | None
    models: tuple[ModelEntry, ...]
    base_model: str | None
    parameters: Mapping[str, Setting]
    dtype: str | None
    out_dtype: str | None


class RecipeReader:
    """Turns a document into a `MergeRecipe`, collecting everything that is wrong with it.

    Parameters
    ----------
    document : Document
        What was read.

    Attributes
    ----------
    problems, warnings : list of str
        What cannot be merged, and what is allowed and probably not meant.
    given : frozenset of str
        The top-level keys that have a value.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.given = frozenset(
            str(key) for key, value in document.data.items() if value is not None
        )

    def read(self) -> MergeRecipe:
        """Return the recipe; what is wrong is left out of it and told in `problems`."""
        data = self._document.data
        self._check_keys(data)
        method = self._method(data.get("merge_method"))
        return MergeRecipe(
            method=method,
            models=self._models(data.get("models"), method),
            base_model=self._base(data.get("base_model")),
            parameters=self._parameters(data.get("parameters"), "parameters", method, True),
            dtype=self._dtype(data.get("dtype"), "dtype"),
            out_dtype=self._dtype(data.get("out_dtype"), "out_dtype"),
        )

    def _check_keys(self, data: Mapping[Any, Any]) -> None:
        for key, value in data.items():
            if key == "tokenizer_source" and value == "base":
                # Copied anyway; vocabularies of different sizes are refused by their shapes.
                self.warnings.append("tokenizer_source: base is what is done, its files are copied")
            elif key in _LATER:
                if value is not None:
                    self.problems.append(f"{key}: is not supported in this version")
            elif key in _KEYS:
                continue
            elif key in self._document.anchors:
                self.warnings.append(f"{key}: unknown key, taken to hold YAML anchors only")
            else:
                self.problems.append(f"{key}: unknown key{nearest(key, _KEYS + _LATER)}")

    def _method(self, name: object) -> Method | None:
        known = methods()
        available = f"available are {', '.join(known)}"
        if name is None:
            self.problems.append(f"merge_method: is missing; {available}")
        elif not isinstance(name, str):
            self.problems.append(f"merge_method: expected a name, got {name!r}; {available}")
        elif name in known:
            return known[name]
        elif name in _FOREIGN_METHODS:
            self.problems.append(
                f"merge_method: {name!r} is not available in this version; {available}"
            )
        else:
            hint = nearest(name, sorted(_FOREIGN_METHODS | known.keys()))
            self.problems.append(f"merge_method: unknown method {name!r}{hint}; {available}")
        return None

    def _models(self, entries: object, method: Method | None) -> tuple[ModelEntry, ...]:
        if entries is None and any(self._document.data.get(key) for key in ("slices", "modules")):
            return ()
        if not isinstance(entries, list) or not entries:
            self.problems.append("models: expected a list of at least one model")
            return ()
        found = []
        for index, entry in enumerate(entries):
            where = f"models[{index}]"
            if not isinstance(entry, dict):
                self.problems.append(f"{where}: expected the keys model and parameters")
                continue
            for key in entry:
                if key not in _MODEL_KEYS:
                    self.problems.append(f"{where}: unknown key {key!r}{nearest(key, _MODEL_KEYS)}")
            model = self._reference(entry.get("model"), f"{where}.model")
            parameters = self._parameters(
                entry.get("parameters"), f"{where}.parameters", method, False
            )
            if model is not None:
                found.append(ModelEntry(model, parameters))
        return tuple(found)

    def _base(self, value: object) -> str | None:
        return None if value is None else self._reference(value, "base_model")

    def _reference(self, value: object, where: str) -> str | None:
        """Read the name of a model: a text, or mergekit's long form of it."""
        if isinstance(value, dict):
            return self._long_reference(value, where)
        if not isinstance(value, str) or not value:
            self.problems.append(f"{where}: expected the path of a model, got {value!r}")
            return None
        return value

    def _long_reference(self, value: Mapping[Any, Any], where: str) -> str | None:
        inner = value.get("model")
        nested = isinstance(inner, dict)
        parts: Mapping[Any, Any] = inner if nested else value  # type: ignore[assignment]
        known = ("path", "revision") if nested else ("path", "revision", *_REFERENCE_KEYS)
        for key in (*value, *parts):
            if key not in (*known, *_REFERENCE_KEYS):
                self.problems.append(f"{where}: unknown key {key!r}{nearest(key, known)}")
        for key in ("lora", "override_architecture"):
            if value.get(key) is not None:
                self.problems.append(f"{where}.{key}: is not supported in this version")
        if parts.get("revision") is not None:
            self.problems.append(f"{where}.revision: is not supported in this version")
        return self._reference(parts.get("path"), f"{where}.path")

    def _parameters(
        self, value: object, where: str, method: Method | None, shared: bool
    ) -> dict[str, Setting]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{where}: expected names and values, got {value!r}")
            return {}
        read = {}
        for name, item in value.items():
            setting = self._parameter(name, item, f"{where}.{name}", method, shared)
            if setting is not None:
                read[str(name)] = setting
        return read

    def _parameter(
        self, name: object, item: object, where: str, method: Method | None, shared: bool
    ) -> Setting | None:
        if method is None:
            if name not in _FOREIGN_PARAMETERS:
                hint = nearest(name, sorted(_FOREIGN_PARAMETERS))
                self.problems.append(f"{where}: unknown parameter{hint}")
            return None
        parameter = method.parameter(str(name))
        if parameter is None:
            known = [known.name for known in method.parameters]
            if name in _FOREIGN_PARAMETERS:
                self.warnings.append(f"{where}: not used by {method.name}")
            else:
                self.problems.append(
                    f"{where}: unknown parameter{nearest(name, known)}"
                    f" ({method.name} takes {', '.join(known)})"
                )
            return None
        if not (shared or parameter.per_model):
            self.warnings.append(
                f"{where}: not used, {name} is set once for all models under parameters"
            )
            return None
        boolean = parameter.kind == "bool"
        return parse_setting(item, where, boolean=boolean, problems=self.problems)

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

"""From the places of the output's tensors to the tensors of a plan, or to every problem."""

from __future__ import annotations

from collections.abc import Sequence

from weightshare.checkpoint import TensorInfo
from weightshare.merging.cast_view import CastView
from weightshare.merging.elements import DTYPE_OF_CODE, promoted
from weightshare.merging.method import Method
from weightshare.merging.plan import WIDTH_OF_CODE, PlannedTensor, Source
from weightshare.merging.registry import nearest
from weightshare.recipes.heads import is_head, tied_twin, vocabulary_size
from weightshare.recipes.members import Cast
from weightshare.recipes.places import Place
from weightshare.recipes.schema import MergeRecipe
from weightshare.recipes.values import Values
from weightshare.recipes.vocabulary import Vocabulary

_NAMES_SHOWN = 5


class TensorResolver:
    """Resolves every output tensor, collecting what is wrong.

    Parameters
    ----------
    recipe : MergeRecipe
        What is asked for.
    method : Method
        Its method.
    cast : Cast
        The models.
    vocabulary : Vocabulary or None
        The one that the output gets, when it is not the models' own.
    lenient : bool
        Whether tensors that some models lack are copied, with a warning.
    undecided : bool
        Whether a vocabulary was asked for and cannot be made, which is told already.

    Attributes
    ----------
    problems, warnings : list of str
        What is wrong, and what is probably not meant.
    twins : bool
        Whether embeddings are read for a head that is tied to them.
    """

    def __init__(
        self,
        recipe: MergeRecipe,
        method: Method,
        cast: Cast,
        vocabulary: Vocabulary | None,
        *,
        lenient: bool,
        undecided: bool = False,
    ) -> None:
        self._recipe = recipe
        self._method = method
        self._cast = cast
        self._vocabulary = vocabulary
        self._lenient = lenient
        self._undecided = undecided
        self._refused: dict[str, list[str]] = {}
        self._lacking: dict[tuple[int, int], list[str]] = {}
        self._copied: dict[int, list[str]] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.twins = False
        self._values = Values(method, cast, self.problems, self.warnings)

    def tensors(self, places: Sequence[Place]) -> tuple[PlannedTensor, ...]:
        """Return the output's tensors, in the order of their places."""
        self._values.check_required(places)
        self._values.warn_of_idle_filters(places)
        found = [self._tensor(place) for place in places]
        for (model, holder), names in self._lacking.items():
            self._tell_lacking(model, holder, names)
        for holder, names in self._copied.items():
            self.warnings.append(
                f"{counted(names)} that not every model has, copied as in"
                f" {self._cast.models[holder].label}: {listed(names)}"
            )
        for problem, names in (self._values.refused | self._refused).items():
            self.problems.append(f"{problem}: {listed(names)}")
        return tuple(tensor for tensor in found if tensor is not None)

    def _tensor(self, place: Place) -> PlannedTensor | None:
        if place.group is None:
            return self._copy_of_first(place)
        readers = place.group.readers
        named = [
            (reader.model, self._name(reader.model, name))
            for reader, name in zip(readers, place.inputs, strict=True)
        ]
        present = [(model, name) for model, name in named if name is not None]
        if len(present) < len(named):
            return self._incomplete(place, named, present)
        infos = [self._cast.models[model].info(name) for model, name in present]
        table = self._is_table(place)
        shapes = [tuple(info.shape) for info in infos]
        if table is not None:
            pairs = zip(present, shapes, strict=True)
            shapes = [table.shape(model, shape) for (model, _), shape in pairs]
        if len(set(shapes)) > 1:
            self._refuse_shapes(place, present, shapes)
            return None
        codes = {info.dtype for info in infos}
        if not codes & DTYPE_OF_CODE.keys() and codes <= WIDTH_OF_CODE.keys() and len(codes) == 1:
            return self._copy(place, present, infos[0])
        if not codes <= DTYPE_OF_CODE.keys():
            self._refuse_dtypes(place.name, codes)
            return None
        settings = self._values.settings(place)
        statistics = self._statistics(place, shapes[0])
        if settings is None or statistics is None:
            return None
        sources = self._sources(present, table)
        count = len(place.group.members)
        base = sources[count] if place.group.base is not None else None
        return PlannedTensor(
            *(
                place.name,
                self._dtype(codes),
                shapes[0],
                "merge",
                tuple(sources[:count]),
                base,
                settings,
            ),
            statistics=statistics,
        )

    def _dtype(self, codes: set[str]) -> str:
        """Return the output's dtype of a tensor that models have in these."""
        return self._recipe.out_dtype or self._recipe.dtype or promoted(codes)

    def _name(self, model: int, name: str) -> str | None:
        """Return what a model calls a tensor; its embeddings for a head that is tied to them."""
        opened = self._cast.models[model]
        if name in opened:
            return name
        twin = tied_twin(opened, name)
        self.twins = self.twins or twin is not None
        return twin

    def _is_table(self, place: Place) -> Vocabulary | None:
        if self._vocabulary is None or place.layered:
            return None
        shapes = [
            tuple(model.info(place.name).shape) if place.name in model else None
            for model in self._cast.models
        ]
        return self._vocabulary if self._vocabulary.is_table(place.name, shapes) else None

    def _sources(
        self, present: Sequence[tuple[int, str]], table: Vocabulary | None
    ) -> list[Source]:
        sources = [self._cast.models[model].source(model, name) for model, name in present]
        if table is None:
            return sources
        peers = {source.model: source for source in sources}
        return [table.source(source.model, source, peers) for source in sources]

    def _statistics(self, place: Place, shape: tuple[int, ...]) -> tuple[Source, ...] | None:
        assert place.group is not None
        found: list[Source] = []
        for member, name in zip(place.group.members, place.inputs, strict=False):
            for index in member.statistics:
                held = self._cast.models[index]
                if name not in held:
                    self._lacking.setdefault((index, member.model), []).append(name)
                    return None
                info = held.info(name)
                if tuple(info.shape) != shape or info.dtype not in DTYPE_OF_CODE:
                    self._refused.setdefault(
                        f"{held.label}: expected floating-point numbers of the model's own shapes",
                        [],
                    ).append(name)
                    return None
                found.append(held.source(index, name))
        return tuple(found)

    def _copy(
        self, place: Place, present: Sequence[tuple[int, str]], info: TensorInfo
    ) -> PlannedTensor:
        """Return an integer tensor: the bytes of the base, else the donor, which all must have."""
        assert place.group is not None
        pairs = list(present)
        donor = self._cast.models[self._cast.donor]
        if place.group.piece.whole and place.name in donor:
            pairs.append((self._cast.donor, place.name))
        first = self._cast.donor if place.group.base is None else place.group.base.model
        order = sorted(dict.fromkeys(pairs), key=lambda pair: pair[0] != first)
        sources = [self._cast.models[model].source(model, name) for model, name in order]
        return PlannedTensor(place.name, info.dtype, tuple(info.shape), "copy", tuple(sources))

    def _copy_of_first(self, place: Place) -> PlannedTensor | None:
        """Return a tensor of no module: the donor's, else that of the first model that has it."""
        name = place.name
        order = sorted(range(len(self._cast.models)), key=lambda model: model != self._cast.donor)
        holder = next(model for model in order if name in self._cast.models[model])
        return self._copied_from(holder, name, place)

    def _copied_from(self, model: int, name: str, place: Place) -> PlannedTensor | None:
        """Return one model's tensor, with the output's vocabulary and dtype."""
        info = self._cast.models[model].info(name)
        if info.dtype not in WIDTH_OF_CODE:
            self._refuse_dtypes(place.name, {info.dtype})
            return None
        source, shape = self._cast.models[model].source(model, name), tuple(info.shape)
        table = self._is_table(place)
        if table is not None:
            source, shape = table.source(model, source), table.shape(model, shape)
        dtype = self._dtype({info.dtype}) if info.dtype in DTYPE_OF_CODE else info.dtype
        if dtype != source.dtype:
            source = Source(model, name, dtype, CastView(source, dtype))
        return PlannedTensor(place.name, dtype, shape, "copy", (source,))

    def _incomplete(
        self,
        place: Place,
        named: Sequence[tuple[int, str | None]],
        present: Sequence[tuple[int, str]],
    ) -> PlannedTensor | None:
        """Copy a tensor that some models lack when that is allowed; else tell who lacks it."""
        if self._lenient:
            first, held = self._first_holder(place, dict(present))
            self._copied.setdefault(first, []).append(place.name)
            return self._copied_from(first, held, place)
        holder = present[0][0] if present else self._first_holder(place, {})[0]
        for (model, name), wanted in zip(named, place.inputs, strict=True):
            if name is None:
                self._lacking.setdefault((model, holder), []).append(wanted)
        return None

    def _first_holder(self, place: Place, holders: dict[int, str]) -> tuple[int, str]:
        """Return whose tensor is copied: the base's, the donor's, or the first model's."""
        base = place.group.base if place.group is not None else None
        for model in (base.model if base is not None else self._cast.donor, self._cast.donor):
            if model in holders:
                return model, holders[model]
        if holders:
            return next(iter(holders.items()))
        order = [self._cast.donor, *range(len(self._cast.models))]
        return next((m, place.name) for m in order if place.name in self._cast.models[m])

    def _tell_lacking(self, model: int, holder: int, names: list[str]) -> None:
        lacks, has = self._cast.models[model], self._cast.models[holder]
        own = [name for name in lacks if name not in has] if model != holder else []
        hint = nearest(names[0], own[:1000])
        self.problems.append(
            f"{lacks.label} lacks {counted(names)} that {has.label} has: {listed(names)}{hint}"
            f"{_remedy(names)}"
        )

    def _refuse_shapes(
        self,
        place: Place,
        present: Sequence[tuple[int, str]],
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        of_vocabulary = self._is_vocabulary(place, set(shapes))
        if of_vocabulary and self._undecided:
            return
        pairs = zip(present, shapes, strict=True)
        each = ", ".join(f"{self._cast.models[model].label} {shape}" for (model, _), shape in pairs)
        problem = f"{place.name}: the shapes differ: {each}"
        if of_vocabulary:
            problem += (
                "; the vocabularies differ, which needs a tokenizer merge: add tokenizer_source:"
                " union (or base) to the recipe"
            )
        self.problems.append(problem)

    def _is_vocabulary(self, place: Place, shapes: set[tuple[int, ...]]) -> bool:
        if self._vocabulary is not None or len({shape[1:] for shape in shapes}) > 1:
            return False
        if any(part in place.name.lower() for part in ("embed", "lm_head", "wte", "vocab")):
            return True
        rows = {shape[0] for shape in shapes if shape}
        return bool(rows & {vocabulary_size(model.config) for model in self._cast.models})

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


def heads_in(tensors: Sequence[PlannedTensor]) -> bool:
    """Say whether the output has a head of its own."""
    return any(is_head(tensor.name) for tensor in tensors)


def _remedy(names: Sequence[str]) -> str:
    """Return what to do about tensors that only some models have, where the names tell."""
    if any("lora_" in name for name in names):
        return (
            "; these are of a LoRA adapter: name it behind its model, as in model+adapter, and save"
            " the model without them"
        )
    if all(is_head(name) for name in names):
        return (
            "; its config.json does not say that the head is tied to the embeddings"
            " (tie_word_embeddings), so nothing stands for it"
        )
    return "; with lenient (--lenient) what some models lack is copied from one that has it"


def counted(names: Sequence[str]) -> str:
    """Return how many tensors these are, such as ``"1 tensor"``."""
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown

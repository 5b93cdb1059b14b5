"""LoRA adapters in PEFT's format: which of a model's weights they change, and how.

Source: LoRA, Hu et al. 2021, arXiv:2106.09685; rank-stabilised scaling, Kalajdzievski 2023,
arXiv:2312.03732; the file format of the library PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from weightshare.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from weightshare.checkpoint.codes import problem
from weightshare.merging.adapter_view import AdapterView, ReplacedView
from weightshare.merging.elements import DTYPE_OF_CODE
from weightshare.merging.plan import PlannedModel, Source
from weightshare.recipes.adapter_config import AdapterConfig, read_adapter_config
from weightshare.recipes.listing import listed, planned_files

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_PEFT_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_embedding_A|lora_embedding_B)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"
)
_KEPT_WHOLE = re.compile(r"\.modules_to_save(?:\.(?!weight$|bias$)[^.]+)?(?=\.[^.]+$)")
_UNLIKE = (
    (".lora_magnitude_vector", "it is a DoRA adapter, which scales whole columns"),
    (".lora_B.bias", "it has biases of lora_B (lora_bias)"),
)
_MERGE_FIRST = "; merge it into its model with PEFT (merge_and_unload) and name the result instead"


class Tensors(Protocol):
    """A model's tensors."""

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def info(self, name: str) -> TensorInfo:
        """Return what a tensor is."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one weight: its tensors A and B, and the factor of their product."""

    down: TensorInfo
    up: TensorInfo
    scaling: float
    transposed: bool

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that fits a model.

    Attributes
    ----------
    label : str
        As the recipe writes it.
    checkpoint : Checkpoint
        Its tensors.
    added : mapping of str to LowRank
        What is added, by the name of the model's weight.
    kept : mapping of str to TensorInfo
        Weights that the adapter holds whole, by the name of the model's weight.
    warnings : tuple of str
        What is probably not meant.
    """

    label: str
    checkpoint: Checkpoint
    added: Mapping[str, LowRank]
    kept: Mapping[str, TensorInfo]
    warnings: tuple[str, ...] = ()

    def source(self, source: Source, place: int, shape: tuple[int, ...]) -> Source:
        """Return how a weight is read with the adapter.

        Parameters
        ----------
        source : Source
            How it is read without.
        place : int
            The adapter's place in the plan.
        shape : tuple of int
            The weight's.
        """
        whole, pair = self.kept.get(source.name), self.added.get(source.name)
        if whole is not None:
            own = Source(place, whole.name, whole.dtype)
            source = Source(source.model, source.name, whole.dtype, ReplacedView(own))
        if pair is None:
            return source
        down, up = (Source(place, info.name, info.dtype) for info in (pair.down, pair.up))
        wide = "F64" in {source.dtype, pair.down.dtype, pair.up.dtype}
        rows, width = shape
        view = AdapterView(
            weight=source,
            down=down,
            up=up,
            shape=(rows, width),
            rank=pair.rank,
            scaling=pair.scaling,
            transposed=pair.transposed,
            dtype="F64" if wide else "F32",
        )
        return Source(source.model, source.name, view.dtype, view)

    def planned(self) -> PlannedModel:
        """Return what the plan keeps of it."""
        return PlannedModel(self.label, self.checkpoint.path, planned_files(self.checkpoint))


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter."""
    return (folder / CONFIG_NAME).is_file()


def open_adapter(folder: Path, opened: ExitStack) -> tuple[AdapterConfig, Checkpoint]:
    """Open an adapter's folder.

    Raises
    ------
    CheckpointError, OSError
        A file cannot be read.
    ValueError
        It is no adapter that can be applied; the message says why.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no adapter: expected a folder with {CONFIG_NAME}")
    if not (folder / CONFIG_NAME).exists():
        raise ValueError(f"{folder} is no adapter: it has no {CONFIG_NAME}")
    if not (folder / WEIGHTS_NAME).exists():
        pickled = next((name for name in _PICKLES if (folder / name).exists()), None)
        if pickled is not None:
            raise problem("E103", path=folder / pickled)
        raise ValueError(f"{folder} is no complete adapter: it has no {WEIGHTS_NAME}")
    config = read_adapter_config(folder / CONFIG_NAME)
    return config, opened.enter_context(open_checkpoint(folder / WEIGHTS_NAME))


def fit_adapter(
    label: str, config: AdapterConfig, checkpoint: Checkpoint, model: Tensors, problems: list[str]
) -> Adapter | None:
    """Match an adapter's tensors with a model's.

    Parameters
    ----------
    label : str
        The adapter, as the recipe writes it.
    config : AdapterConfig
        Its configuration.
    checkpoint : Checkpoint
        Its tensors.
    model : SourceModel
        The model's tensors.
    problems : list of str
        Takes what is wrong; nothing is left out silently.

    Returns
    -------
    Adapter or None
        None when there is a problem.
    """
    before = len(problems)
    parts = _Parts(checkpoint)
    problems.extend(f"adapter {label}: {told}" for told in parts.problems)
    if len(problems) > before:
        return None
    rename = _renaming(parts.names, model)
    unmatched = [name for name in parts.names if rename(name) not in model]
    if unmatched:
        problems.append(
            f"adapter {label}: {len(unmatched)} of its {len(parts.names)} weights match nothing in"
            f" the model: {listed(unmatched)}; is it the adapter of another model"
            f"{config.of_model}?"
        )
        return None
    pairs = {rename(name): pair for name, pair in parts.pairs.items()}
    kept = {rename(name): info for name, info in parts.kept.items()}
    resized = [
        f"{name} ({list(info.shape)}, the model's is {list(model.info(name).shape)})"
        for name, info in kept.items()
        if info.shape != model.info(name).shape or info.dtype not in DTYPE_OF_CODE
    ]
    if resized:
        problems.append(
            f"adapter {label}: it holds weights of another shape or dtype: {listed(resized)}"
            + _MERGE_FIRST
        )
    oriented = _Orientation(pairs, model, config)
    problems.extend(f"adapter {label}: {told}" for told in oriented.problems)
    if len(problems) > before:
        return None
    warnings = tuple(f"adapter {label}: {told}" for told in oriented.warnings)
    return Adapter(label, checkpoint, oriented.added, kept, warnings)


@dataclass(slots=True)
class _Pair:
    """The tensors of one adapted module."""

    module: str
    embedding: bool = False
    down: TensorInfo | None = None
    up: TensorInfo | None = None


class _Parts:
    """An adapter's tensors, told apart by their names; weights by PEFT's name for them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.pairs: dict[str, _Pair] = {}
        self.kept: dict[str, TensorInfo] = {}
        self.problems: list[str] = []
        names = list(checkpoint)
        if not names:
            self.problems.append("it holds no tensors")
        for sign, what in _UNLIKE:
            if any(sign in name for name in names):
                self.problems.append(f"{what}, and that is not supported{_MERGE_FIRST}")
        if not self.problems:
            self._sort(checkpoint)

    @property
    def names(self) -> list[str]:
        """The weights that are changed."""
        return list(dict.fromkeys((*self.pairs, *self.kept)))

    def _sort(self, checkpoint: Checkpoint) -> None:
        twice: list[str] = []
        for name in checkpoint:
            info, bare = checkpoint.info(name), name.removeprefix(_PEFT_PREFIX)
            found = _FACTOR.fullmatch(bare)
            if found is None:
                weight = _KEPT_WHOLE.sub("", bare).replace(".base_layer.", ".")
                if weight in self.kept:
                    twice.append(name)
                self.kept[weight] = info
                continue
            module = found["module"].removesuffix(".base_layer")
            pair = self.pairs.setdefault(f"{module}.weight", _Pair(module))
            part = "down" if found["factor"].endswith("_A") else "up"
            if getattr(pair, part) is not None:
                twice.append(name)
            setattr(pair, part, info)
            pair.embedding = "embedding" in found["factor"]
        if twice:
            self.problems.append(
                f"it changes weights twice: {listed(twice)}; keep one adapter in its file"
            )
        self._check_pairs()

    def _check_pairs(self) -> None:
        alone = [p.module for p in self.pairs.values() if p.down is None or p.up is None]
        if alone:
            self.problems.append(f"lora_A or lora_B is missing of {listed(alone)}")
        kernels, unlike, foreign = [], [], []
        for pair in self.pairs.values():
            if pair.down is None or pair.up is None:
                continue
            shapes = f"{pair.module} (A {list(pair.down.shape)}, B {list(pair.up.shape)})"
            if {pair.down.dtype, pair.up.dtype} - DTYPE_OF_CODE.keys():
                foreign.append(f"{pair.module} ({pair.down.dtype}, {pair.up.dtype})")
            elif len(pair.down.shape) != 2 or len(pair.up.shape) != 2:
                kernels.append(shapes)
            elif pair.down.shape[0] != pair.up.shape[1]:
                unlike.append(shapes)
        if kernels:
            self.problems.append(
                "adapters of convolutions and of stacked experts are not supported:"
                f" {listed(kernels)}{_MERGE_FIRST}"
            )
        if unlike:
            self.problems.append(f"A and B do not fit each other: {listed(unlike)}")
        if foreign:
            codes = ", ".join(DTYPE_OF_CODE)
            self.problems.append(f"expected dtypes of {codes}, got {listed(foreign)}")


def _renaming(names: Iterable[str], model: Tensors) -> Callable[[str], str]:
    """Return how names of the adapter become the model's: as they are, or by one leading word.

    A model may have been saved with or without the word that stands before all its layers.
    """
    names = list(names)
    if all(name in model for name in names):
        return str

    def without(word: str) -> Callable[[str], str]:
        return lambda name: name.removeprefix(word)

    def with_word(word: str) -> Callable[[str], str]:
        return lambda name: name if name in model else word + name

    own = dict.fromkeys(name.partition(".")[0] + "." for name in names)
    theirs = dict.fromkeys(name.partition(".")[0] + "." for name in model)
    tries = [without(word) for word in own] + [with_word(word) for word in theirs]
    fitting = (rename for rename in tries if all(rename(name) in model for name in names))
    return next(fitting, str)


@dataclass(slots=True)
class _Orientation:
    """Which weights are stored as (outputs, inputs) and which as (inputs, outputs).

    The configuration's ``fan_in_fan_out`` says it for the square ones, unless the shapes of all
    others say the contrary: PEFT corrects that flag by the kind of the layer when it loads.
    """

    pairs: Mapping[str, _Pair]
    model: Tensors
    config: AdapterConfig
    added: dict[str, LowRank] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        misfits, told, square = [], set(), []
        for name, pair in self.pairs.items():
            assert pair.down is not None
            assert pair.up is not None
            plain = (pair.up.shape[0], pair.down.shape[1])
            shape = self.model.info(name).shape
            if self.model.info(name).dtype not in DTYPE_OF_CODE:
                misfits.append(f"{name} (of dtype {self.model.info(name).dtype})")
                continue
            if shape not in (plain, plain[::-1]) or (pair.embedding and shape != plain[::-1]):
                misfits.append(f"{name} ({list(shape)}, the product B A is {list(plain)})")
                continue
            if pair.embedding:
                self._add(name, pair, True)
            elif plain[0] == plain[1]:
                square.append(name)
            else:
                told.add(shape != plain)
                self._add(name, pair, shape != plain)
        if misfits:
            self.problems.append(f"it does not fit the model's weights: {listed(misfits)}")
        flag = self.config.transposed
        turned = told.pop() if len(told) == 1 else flag
        if square and turned != flag:
            self.warnings.append(
                f"fan_in_fan_out is {str(flag).lower()}, and the shapes of its weights say the"
                f" contrary, which was taken for {listed(square)} too"
            )
        for name in square:
            self._add(name, self.pairs[name], turned)

    def _add(self, name: str, pair: _Pair, transposed: bool) -> None:
        assert pair.down is not None
        assert pair.up is not None
        scaling = self.config.scaling(pair.module, pair.down.shape[0])
        self.added[name] = LowRank(pair.down, pair.up, scaling, transposed)

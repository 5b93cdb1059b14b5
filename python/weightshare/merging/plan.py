"""The plan of a merge: plain data that says what will be read, computed and written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Literal

from weightshare.merging.elements import DTYPE_OF_CODE
from weightshare.merging.method import Settings
from weightshare.merging.sizes import format_bytes
from weightshare.merging.views import View

# Width in bytes of the elements that are copied and not computed with.
_COPIED_WIDTH = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4}
_COPIED_WIDTH |= {"U64": 8, "I64": 8}
WIDTH_OF_CODE = {code: dtype.itemsize for code, dtype in DTYPE_OF_CODE.items()} | _COPIED_WIDTH
_ROWS_SHOWN = 60


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model of the plan: its name in the recipe, its path, its weight files with their bytes."""

    label: str
    path: str
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor that is read.

    Attributes
    ----------
    model : int
        The model's place in the plan.
    name : str
        The tensor's name there.
    dtype : str
        Code of the elements that a tile of it holds; with a view, of what the view makes.
    view : View or None
        How its elements are made from the file's, where they are not the file's own.
    """

    model: int
    name: str
    dtype: str
    view: View | None = None


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One output tensor: what it is, where it comes from, and the values of the parameters.

    Attributes
    ----------
    name, dtype, shape : str, str, tuple of int
        Of the output; the dtype is a safetensors code such as ``"BF16"``.
    action : {"merge", "copy"}
        A copied tensor has the bytes of its first source; the others must equal them.
    sources : tuple of Source
        The models' tensors, in the order of the recipe, the base left out; of a copied tensor
        the one that is copied comes first.
    base : Source or None
        The base model's tensor.
    settings : Settings or None
        None when it is copied.
    statistics : tuple of Source
        One for each model and parameter of kind ``"checkpoint"``, model by model.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    action: Literal["merge", "copy"]
    sources: tuple[Source, ...]
    base: Source | None = None
    settings: Settings | None = None
    statistics: tuple[Source, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element of the output."""
        return WIDTH_OF_CODE[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the output."""
        return self.size * WIDTH_OF_CODE[self.dtype]

    @property
    def reads(self) -> tuple[Source, ...]:
        """Everything that is read for it: the models, the base, the statistics."""
        base = () if self.base is None else (self.base,)
        return (*self.sources, *base, *self.statistics)

    @property
    def origin(self) -> str:
        """Where it comes from, such as ``"0, 1: layers.3.w, base 2"``: places of models in the
        plan, with the tensor's name there where it is another.
        """
        told = [
            f"{source.model}" if source.name == self.name else f"{source.model}: {source.name}"
            for source in (*self.sources, *(() if self.base is None else (self.base,)))
        ]
        if self.base is not None:
            told[-1] = f"base {told[-1]}"
        return ", ".join(told)

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes per element of everything that is read, then of the output if it is computed."""
        read = [WIDTH_OF_CODE[source.dtype] for source in self.reads]
        return tuple(read if self.action == "copy" else [*read, WIDTH_OF_CODE[self.dtype]])


@dataclass(frozen=True, slots=True)
class FileCopy:
    """A small file that is copied beside the weights."""

    source: str
    name: str
    nbytes: int


@dataclass(frozen=True, repr=False)
class MergePlan:
    """What a merge will do, known from the headers of its files.

    Plain data: it pickles, and holds no open file. `weightshare.plan_merge` makes one.

    Attributes
    ----------
    method : str
        Name of the merge method.
    models : tuple of PlannedModel
        Every model that is read, the base included.
    tensors : tuple of PlannedTensor
        The output in the order in which it is written.
    max_shard_bytes : int
        Largest data of one output file, in bytes.
    config : str or None
        The text of the output's ``config.json``.
    copies : tuple of FileCopy
        Tokenizer and other small files that are copied.
    recipe : str
        The recipe's text.
    card : bool
        Whether a ``README.md`` and a copy of the recipe are written.
    seed : int
        Key of random numbers, for methods that draw some.
    warnings : tuple of str
        What is allowed, and probably not meant.
    texts : tuple of (str, bytes)
        Small files that are written anew, such as a merged tokenizer: names and contents.
    stages : tuple of (str, MergePlan)
        Merges that come first, by name, in their order; models of the plan that are made by one
        have its name as their path, and no files.

    Examples
    --------
    >>> source = Source(0, "w", "BF16")
    >>> tensor = PlannedTensor("w", "BF16", (2, 3), "copy", (source,))
    >>> plan = MergePlan("linear", (PlannedModel("a", "/a", ()),), (tensor,))
    >>> plan.nbytes, plan.shards, plan.counts
    (12, (('model.safetensors', 12),), {'merge': 0, 'copy': 1})
    """

    method: str
    models: tuple[PlannedModel, ...]
    tensors: tuple[PlannedTensor, ...]
    max_shard_bytes: int = 5_000_000_000
    config: str | None = None
    copies: tuple[FileCopy, ...] = ()
    recipe: str = ""
    card: bool = True
    seed: int = 0
    warnings: tuple[str, ...] = ()
    texts: tuple[tuple[str, bytes], ...] = ()
    stages: tuple[tuple[str, MergePlan], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the output's weights."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that are read."""
        return sum(
            tensor.size * WIDTH_OF_CODE[source.dtype]
            for tensor in self.tensors
            for source in tensor.reads
        )

    @property
    def disk_bytes(self) -> int:
        """Bytes that the output takes on disk: weights, copied files and the configuration."""
        small = sum(copy.nbytes for copy in self.copies) + len(self.config or "")
        small += sum(len(content) for _, content in self.texts)
        return self.nbytes + small

    @property
    def peak_memory(self) -> int:
        """Bytes of memory of the whole process at the default budget."""
        return self._memory[0]

    @property
    def memory_floor(self) -> int:
        """The smallest budget of memory with which the merge can be done, in bytes."""
        return self._memory[1]

    @cached_property
    def _memory(self) -> tuple[int, int]:
        # Imported here, because it is the pipeline that divides the memory of a plan.
        from weightshare.merging.pipeline import memory_of

        stages = [stage._memory for _, stage in self.stages]
        peaks, floors = zip(memory_of(self), *stages, strict=True)
        return max(peaks), max(floors)

    @property
    def parameters(self) -> int:
        """Number of elements of the output."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors are merged and how many copied."""
        counted = Counter(tensor.action for tensor in self.tensors)
        return {"merge": counted["merge"], "copy": counted["copy"]}

    @property
    def dtypes(self) -> dict[str, int]:
        """How many output tensors have each dtype."""
        return dict(Counter(tensor.dtype for tensor in self.tensors))

    @property
    def shards(self) -> tuple[tuple[str, int], ...]:
        """Name and data bytes of each output file."""
        sizes = list(self._shard_sizes())
        if len(sizes) == 1:
            return (("model.safetensors", sizes[0]),)
        last = len(sizes)
        return tuple(
            (f"model-{number:05d}-of-{last:05d}.safetensors", size)
            for number, size in enumerate(sizes, start=1)
        )

    def _shard_sizes(self) -> Iterator[int]:
        filled = 0
        for tensor in self.tensors:
            if filled and filled + tensor.nbytes > self.max_shard_bytes:
                yield filled
                filled = 0
            filled += tensor.nbytes
        yield filled

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain lists, mappings, numbers and text.

        Returns
        -------
        dict
            Sizes are in bytes; ``json.dumps`` takes it.
        """
        return {
            "schema": 1,
            "method": self.method,
            "models": [
                {"name": model.label, "path": model.path, "files": dict(model.files)}
                for model in self.models
            ],
            "tensors": [_tensor_json(tensor) for tensor in self.tensors],
            "counts": self.counts,
            "parameters": self.parameters,
            "read_bytes": self.read_bytes,
            "write_bytes": self.nbytes,
            "disk_bytes": self.disk_bytes,
            "peak_memory_bytes": self.peak_memory,
            "least_memory_bytes": self.memory_floor,
            "shards": dict(self.shards),
            "files": [*(copy.name for copy in self.copies), *(name for name, _ in self.texts)],
            "warnings": list(self.warnings),
            "stages": {name: stage.to_json() for name, stage in self.stages},
        }

    def summary(self) -> list[tuple[str, str]]:
        """Return the plan's main facts as pairs of a title and a sentence."""
        counts = self.counts
        facts = [
            ("method", self.method),
            ("models", ", ".join(model.label for model in self.models)),
            ("tensors", f"{counts['merge']} merged, {counts['copy']} copied"),
            ("parameters", f"{self.parameters:,}"),
            ("dtypes", ", ".join(f"{code} x {n}" for code, n in self.dtypes.items())),
            ("reads", format_bytes(self.read_bytes)),
            ("writes", f"{format_bytes(self.disk_bytes)} in {_plural(len(self.shards), 'shard')}"),
            ("memory", self._memory_text()),
        ]
        files = [*(copy.name for copy in self.copies), *(name for name, _ in self.texts)]
        if files:
            facts.append(("files", ", ".join(sorted(files))))
        if self.stages:
            facts.append(("first", ", ".join(name for name, _ in self.stages)))
        return facts

    def _memory_text(self) -> str:
        at_least = format_bytes(self.memory_floor)
        return f"at most {format_bytes(self.peak_memory)}, at least {at_least}"

    def __repr__(self) -> str:
        lines = [f"  {title:<11}{fact}" for title, fact in self.summary()]
        lines += [f"  warning: {warning}" for warning in self.warnings[:8]]
        return "\n".join(["MergePlan", *lines])

    def _repr_html_(self) -> str:
        facts = "".join(
            f"<tr><th>{escape(title)}</th><td colspan='4'>{escape(fact[:500])}</td></tr>"
            for title, fact in self.summary()
        )
        rows = "".join(
            f"<tr><td>{escape(tensor.name[:60])}</td><td>{escape(tensor.dtype)}</td>"
            f"<td>{str(list(tensor.shape))[:60]}</td><td>{tensor.action}</td>"
            f"<td>{escape(tensor.origin[:50])}</td></tr>"
            for tensor in self.tensors[:_ROWS_SHOWN]
        )
        rest = len(self.tensors) - _ROWS_SHOWN
        more = f"<tr><td colspan='5'>and {rest} more</td></tr>" if rest > 0 else ""
        return f"<table>{facts}{rows}{more}</table>"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def source_json(source: Source) -> dict[str, object]:
    """Return where a tensor that is read lies, and its view, as plain lists, numbers and text."""
    row: dict[str, object] = {"model": source.model, "name": source.name}
    return row if source.view is None else row | {"view": source.view.to_json()}


def _tensor_json(tensor: PlannedTensor) -> dict[str, object]:
    row: dict[str, object] = {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "action": tensor.action,
        "models": [source.model for source in tensor.sources],
        "base": None if tensor.base is None else tensor.base.model,
        "reads": [source_json(source) for source in tensor.reads],
    }
    if tensor.settings is not None:
        row["parameters"] = dict(tensor.settings.shared)
        row["per_model"] = [dict(values) for values in tensor.settings.per_model]
    return row

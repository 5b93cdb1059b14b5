"""What lies beside the weights of a merged model: its configuration and its small files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from weightshare.merging.elements import NAME_OF_CODE
from weightshare.merging.leftovers import TOKENIZER_NAMES, WEIGHTS
from weightshare.merging.plan import FileCopy, PlannedTensor
from weightshare.merging.sizes import format_bytes

_LARGEST_COPY = 200_000_000
# Written anew, about another model, or of a download rather than of the model.
_OWN = {"config.json", "readme.md", "mergekit_config.yml", "provenance.json"}


class Told(Protocol):
    """Who is told of what cannot be read."""

    def tell_unreadable(self, where: str, path: str, error: OSError) -> None:
        """Note it."""


@dataclass(frozen=True)
class Companions:
    """The small files that go along with the weights.

    Attributes
    ----------
    copies : tuple of FileCopy
        Those that are copied as they are.
    texts : tuple of (str, bytes)
        Those that are written anew.
    warnings : tuple of str
        About files that are left behind.
    """

    copies: tuple[FileCopy, ...]
    texts: tuple[tuple[str, bytes], ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Path, *, tokenizer: bool, told: Told) -> Companions:
        """Return those of a model's folder: all but weights, hidden files, folders and our own.

        Parameters
        ----------
        model : Path
            A folder; a single file has no companions.
        tokenizer : bool
            Whether those of the tokenizer are among them.
        told : Opener
            Told of what cannot be read.
        """
        copies, warnings = [], []
        for entry in _companions(model, tokenizer=tokenizer):
            try:
                with open(entry.path, "rb") as file:
                    size = os.fstat(file.fileno()).st_size
            except OSError as error:
                told.tell_unreadable("copied files", entry.path, error)
                continue
            if size <= _LARGEST_COPY:
                copies.append(FileCopy(entry.path, entry.name, size))
            else:
                warnings.append(
                    f"{entry.path}: is larger than {format_bytes(_LARGEST_COPY)} and not copied;"
                    " copy it by hand if it is needed"
                )
        return cls(tuple(copies), (), tuple(warnings))

    def joined(self, copies: Iterable[FileCopy]) -> Companions:
        """Return them with more copies, which stand above those of the same names."""
        named = {copy.name: copy for copy in (*self.copies, *copies)}
        return replace(self, copies=tuple(named[name] for name in sorted(named)))

    def with_texts(self, texts: Mapping[str, bytes]) -> Companions:
        """Return them with new files, which stand above copies of the same names."""
        kept = tuple(copy for copy in self.copies if copy.name not in texts)
        return replace(self, copies=kept, texts=tuple(sorted(texts.items())))


def _companions(model: Path, *, tokenizer: bool) -> Iterator[os.DirEntry[str]]:
    if not model.is_dir():
        return
    with os.scandir(model) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        name = entry.name.lower()
        if name.startswith(".") or name in _OWN or name.endswith(WEIGHTS) or not entry.is_file():
            continue
        if tokenizer or not name.startswith(TOKENIZER_NAMES):
            yield entry


def output_config(config: dict[str, Any] | None, tensors: Sequence[PlannedTensor]) -> str | None:
    """Return the text of the output's ``config.json``: the donor's, with the output's dtype.

    Parameters
    ----------
    config : dict or None
        The donor's configuration.
    tensors : sequence of PlannedTensor
        The output.

    Returns
    -------
    str or None
        None when the donor has none.
    """
    if config is None:
        return None
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.action == "merge":
            sizes[tensor.dtype] += tensor.nbytes
    if sizes:
        name = NAME_OF_CODE[sizes.most_common(1)[0][0]]
        config = _with_dtype(config, name)
        if not config.keys() & {"torch_dtype", "dtype"}:
            config["torch_dtype"] = name
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("torch_dtype", "dtype") and (value is None or isinstance(value, str)):
            changed[key] = name
        elif isinstance(value, dict) and key.endswith("_config"):
            changed[key] = _with_dtype(value, name)
        else:
            changed[key] = value
    return changed

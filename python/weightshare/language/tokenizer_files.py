"""The files of a tokenizer: their tokens and ids, read with suspicion."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightshare.checkpoint.strict_json import is_text
from weightshare.errors import ArgumentError
from weightshare.language.vocabulary import checked_ids

FAST_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
ADDED_NAME = "added_tokens.json"
TEMPLATE_NAME = "chat_template.jinja"
PIECES_NAMES = ("tokenizer.model", "spiece.model")
_VOCABULARIES = (FAST_NAME, *PIECES_NAMES, "vocab.json", "vocab.txt")
_LARGEST_FILE = 64_000_000
# Parts that a JSON text of that size may have: the largest tokenizers have a quarter of it.
_MOST_PARTS, _MOST_COMMAS = 2_000_000, 8_000_000
# The key `merges` and its list of texts, or of pairs of them; inside a text its quotation mark
# would have a backslash before it.
_MERGES = re.compile(
    rb'("merges"\s*:\s*\[)(?:[^\[\]"]++|"(?:[^"\\]++|\\.)*+"'
    rb'|\[(?:[^\[\]"]++|"(?:[^"\\]++|\\.)*+")*+\])*+\]'
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched in the text before the tokenizer cuts it.

    Attributes
    ----------
    content : str
        Its text.
    single_word, lstrip, rstrip, normalized, special : bool
        As in ``tokenizer.json``.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    def flags(self) -> dict[str, Any]:
        """Return it as ``added_tokens_decoder`` of ``tokenizer_config.json`` has it."""
        return {"content": self.content, **{flag: getattr(self, flag) for flag in _FLAGS}}


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of a tokenizer say.

    Attributes
    ----------
    folder : Path
        Where they are.
    name : str
        The file that holds the vocabulary.
    ids : dict of str to int
        Every token and its id, by id.
    added : dict of str to AddedToken
        Those that are matched before the text is cut.
    config : dict
        The contents of ``tokenizer_config.json``.
    remarks : tuple of str
        What is odd, and does no harm.
    own_ids : int
        One more than the largest id that the file `name` itself gives.
    """

    folder: Path
    name: str
    ids: dict[str, int]
    added: dict[str, AddedToken] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    own_ids: int = 0

    def without_rows(self, rows: int) -> TokenizerFiles:
        """Return it without the tokens whose ids are beyond a table of so many rows."""
        if next(reversed(self.ids.values()), -1) < rows:
            return self
        ids = {token: place for token, place in self.ids.items() if place < rows}
        added = {token: flags for token, flags in self.added.items() if token in ids}
        return replace(self, ids=ids, added=added)


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the tokens of a model's folder and their ids.

    From ``tokenizer.json``, else a SentencePiece model, ``vocab.json`` or ``vocab.txt``; tokens
    that ``added_tokens.json`` and ``tokenizer_config.json`` add to them included.

    Parameters
    ----------
    folder : Path
        The model's folder.

    Returns
    -------
    TokenizerFiles
        What they say.

    Raises
    ------
    ArgumentError
        There is no tokenizer, or its files are damaged or too large.
    """
    config = read_json(folder / CONFIG_NAME) or {}
    name, own, added, remarks = _vocabulary(folder)
    ids = dict(own)
    _add_configured(folder, config, ids, added, remarks)
    _check_texts(folder / name, ids)
    checked = checked_ids(str(folder / name), ids)
    own_ids = max(map(checked.__getitem__, own), default=-1) + 1
    return TokenizerFiles(folder, name, checked, added, config, tuple(remarks), own_ids)


def has_tokenizer(folder: Path) -> bool:
    """Say whether a folder has a file that holds a vocabulary."""
    return any((folder / name).exists() for name in _VOCABULARIES)


def fingerprint(folder: Path) -> str:
    """Return a digest of the files that `read_tokenizer_files` reads.

    Raises
    ------
    ArgumentError
        One cannot be read.
    """
    told = hashlib.sha256()
    for name in (*_VOCABULARIES, CONFIG_NAME, ADDED_NAME):
        content = read_bytes(folder / name)
        told.update(b"-" if content is None else hashlib.sha256(content).digest())
    return told.hexdigest()


def read_bytes(path: Path) -> bytes | None:
    """Return the bytes of a small file, or None when there is none.

    Raises
    ------
    ArgumentError
        It is no plain file, cannot be read, or is too large.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ArgumentError(f"{path}: expected a plain file")
            content = file.read(_LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise ArgumentError(f"{path}: is larger than {_LARGEST_FILE // 1_000_000} MB")
    return content


def _open_at_once(path: str, flags: int) -> int:
    # A pipe that nobody writes to would wait for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(path: Path) -> str | None:
    """Return the text of a small UTF-8 file, or None when there is none.

    Raises
    ------
    ArgumentError
        It cannot be read, is too large, or is not UTF-8.
    """
    content = read_bytes(path)
    return None if content is None else _decoded(path, content)


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: is not UTF-8 (at byte {error.start})") from None


def read_json(path: Path, *, merges: bool = True) -> dict[str, Any] | None:
    """Return the object of a small JSON file, or None when there is none.

    Parameters
    ----------
    path : Path
        The file.
    merges : bool
        Whether lists under the key ``merges`` are read; of a large tokenizer they are most of it.

    Raises
    ------
    ArgumentError
        It cannot be read, is no JSON object, has a key twice, or would be too costly to parse.
    """
    content = read_bytes(path)
    if content is None:
        return None
    text = _decoded(path, content if merges else _MERGES.sub(rb"\1]", content))
    del content
    parts, commas = text.count("{") + text.count("["), text.count(",")
    if parts > _MOST_PARTS or commas > _MOST_COMMAS:
        raise ArgumentError(f"{path}: holds more values than a tokenizer can have")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ArgumentError(f"{path}: has the key {twice[:60]!r} twice in one object")
        return found

    try:
        value = json.loads(text, object_pairs_hook=once)
    except ArgumentError:
        raise
    except ValueError as error:  # also whole numbers of thousands of digits
        raise ArgumentError(f"{path}: is not JSON: {error}") from None
    except RecursionError:
        raise ArgumentError(f"{path}: is nested too deeply") from None
    if not isinstance(value, dict):
        raise ArgumentError(f"{path}: expected a JSON object")
    return value


Found = tuple[str, dict[str, int], dict[str, AddedToken], list[str]]


def _vocabulary(folder: Path) -> Found:
    """Return the file that holds the vocabulary, its tokens, its added tokens, and remarks."""
    fast = read_json(folder / FAST_NAME, merges=False)
    if fast is not None:
        return _fast(folder / FAST_NAME, fast)
    for name in PIECES_NAMES:
        content = read_bytes(folder / name)
        if content is not None:
            return name, _pieces(folder / name, content), {}, []
    ids = read_json(folder / "vocab.json")
    if ids is not None:
        return "vocab.json", ids, {}, []
    text = read_text(folder / "vocab.txt")
    if text is not None:
        lines = text.split("\n")[: -1 if text.endswith("\n") else None]
        words = [line.removesuffix("\r") for line in lines]
        return "vocab.txt", checked_ids(str(folder / "vocab.txt"), words), {}, []
    raise ArgumentError(
        f"{folder}: has no tokenizer (looked for {', '.join(_VOCABULARIES)}); copy its files"
        " there, or leave the tokenizer out of the recipe"
    )


def _fast(path: Path, content: dict[str, Any]) -> Found:
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    remarks: list[str] = []
    if isinstance(vocabulary, dict):
        ids = dict(vocabulary)
    elif isinstance(vocabulary, list):
        if not all(
            isinstance(pair, list) and pair and isinstance(pair[0], str) for pair in vocabulary
        ):
            raise ArgumentError(f"{path}: expected model.vocab to hold pieces and their scores")
        # Of a piece that stands there twice the last one is found, as in the tokenizers library.
        ids = {pair[0]: place for place, pair in enumerate(vocabulary)}
        if len(ids) < len(vocabulary):
            remarks.append(f"{path}: {len(vocabulary) - len(ids)} pieces stand there twice")
    else:
        raise ArgumentError(f"{path}: expected model.vocab to hold tokens and their ids")
    added: dict[str, AddedToken] = {}
    for entry in _listed(content.get("added_tokens"), f"{path}: added_tokens"):
        token = _added(entry, f"{path}: added_tokens")
        _place(ids, token.content, entry.get("id"), f"{path}: added_tokens")
        added[token.content] = token
    return FAST_NAME, ids, added, remarks


def _add_configured(
    folder: Path,
    config: Mapping[str, Any],
    ids: dict[str, int],
    added: dict[str, AddedToken],
    remarks: list[str],
) -> None:
    """Add the tokens that stand only in the small files beside the vocabulary."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ArgumentError(f"{folder / CONFIG_NAME}: expected an object as added_tokens_decoder")
    entries = [(key, value, CONFIG_NAME) for key, value in decoder.items()]
    extra = read_json(folder / ADDED_NAME) or {}
    entries += [(place, {"content": token}, ADDED_NAME) for token, place in extra.items()]
    for place, entry, name in entries:
        where = f"{folder / name}"
        token = _added(entry, where)
        whole = (
            int(place)
            if isinstance(place, str) and place.isdecimal() and len(place) < 10
            else place
        )
        if token.content in ids and ids[token.content] != whole:
            remarks.append(
                f"{where}: says {place} for {token.content[:60]!r}, the vocabulary says"
                f" {ids[token.content]}; that of the vocabulary is taken"
            )
        elif token.content not in ids:
            _place(ids, token.content, whole, where)
        added.setdefault(token.content, token)


def _place(ids: dict[str, int], token: str, place: object, where: str) -> None:
    if not isinstance(place, int) or isinstance(place, bool):
        raise ArgumentError(f"{where}: expected a whole number as the id of {token[:60]!r}")
    if ids.setdefault(token, place) != place:
        raise ArgumentError(
            f"{where}: says {place} for {token[:60]!r}, the vocabulary says {ids[token]}"
        )


def _added(entry: object, where: str) -> AddedToken:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise ArgumentError(f"{where}: expected objects with the text of a token as content")
    flags: dict[str, bool] = {}
    for flag in _FLAGS:
        value = entry.get(flag)
        if isinstance(value, bool):
            flags[flag] = value
        elif value is not None:
            raise ArgumentError(f"{where}: expected true or false as {flag}, got {value!r}")
    return AddedToken(entry["content"], **flags)


def _listed(value: object, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ArgumentError(f"{where}: expected a list")
    return value


def _pieces(path: Path, content: bytes) -> dict[str, int]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ArgumentError(
            f"{path}: reading it needs the package sentencepiece; install it with"
            " pip install 'weightshare[language]'"
        ) from None
    try:
        processor = SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError, OSError):
        raise ArgumentError(f"{path}: is no SentencePiece model, or is damaged") from None
    return {processor.IdToPiece(place): place for place in range(processor.GetPieceSize())}


def _check_texts(path: Path, ids: Collection[str]) -> None:
    if is_text("".join(ids)):
        return
    for token in ids:
        if not is_text(token):
            raise ArgumentError(f"{path}: the token {token[:60]!r} has a lone surrogate")

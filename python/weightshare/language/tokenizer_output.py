"""The files of a tokenizer that has more tokens, or fewer, than the one it was made from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightshare.errors import ArgumentError
from weightshare.language.tokenizer_files import (
    ADDED_NAME,
    CONFIG_NAME,
    FAST_NAME,
    AddedToken,
    TokenizerFiles,
    read_bytes,
    read_json,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def changed_files(
    files: TokenizerFiles, new: Sequence[AddedToken], removed: Collection[str] = ()
) -> dict[str, bytes]:
    """Return the files that differ once tokens are added after the last id, or removed.

    Parameters
    ----------
    files : TokenizerFiles
        The tokenizer.
    new : sequence of AddedToken
        Tokens that it lacks, in the order of their ids.
    removed : collection of str
        Tokens that go, all of them after the last one that stays.

    Returns
    -------
    dict of str to bytes
        By name; empty when nothing changes.

    Raises
    ------
    ArgumentError
        The package tokenizers is missing, or the tokenizer cannot be changed like that.
    """
    if not new and not removed:
        return {}
    _check_removed(files, removed)
    first = max((place for token, place in files.ids.items() if token not in removed), default=-1)
    places = {token.content: first + 1 + number for number, token in enumerate(new)}
    changed: dict[str, bytes] = {}
    if files.name == FAST_NAME:
        changed[FAST_NAME] = _fast(files, new, places, removed)
    changed[CONFIG_NAME] = _configuration(files, new, places, removed)
    extra = read_json(files.folder / ADDED_NAME)
    if extra is not None or files.name != FAST_NAME:
        listed = {token: place for token, place in (extra or {}).items() if token not in removed}
        changed[ADDED_NAME] = as_json({**listed, **places})
    return changed


def _check_removed(files: TokenizerFiles, removed: Collection[str]) -> None:
    """Refuse to take tokens out of a file that is only ever copied."""
    inside = [token for token in removed if files.ids[token] < files.own_ids]
    if inside and files.name != FAST_NAME:
        raise ArgumentError(
            f"{files.folder / files.name}: {len(inside)} of its tokens, such as {inside[0][:60]!r},"
            f" have no row in the model's embeddings, and they can be taken out of {FAST_NAME}"
            " alone: make that file (load the tokenizer with transformers and save it), or merge"
            " with another model's tokenizer"
        )


def as_json(value: object) -> bytes:
    """Return the text of a JSON file, the same on every machine."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _fast(
    files: TokenizerFiles,
    new: Sequence[AddedToken],
    places: dict[str, int],
    removed: Collection[str],
) -> bytes:
    """Return ``tokenizer.json`` as the library writes it, once it gives every token its id."""
    tokenizers = _library(files)
    path = files.folder / FAST_NAME
    content = read_bytes(path) or b""
    if removed:
        content = as_json(_without(json.loads(content), set(removed)))
    tokenizer = _loaded(tokenizers, path, content)
    del content
    wanted = {token: files.ids[token] for token in files.ids if token not in removed}
    # Tokens that only the small files beside it add; they come in the order of their ids.
    beside = sorted(files.added.keys() & wanted.keys(), key=wanted.__getitem__)
    absent = [files.added[token] for token in beside if tokenizer.token_to_id(token) is None]
    tokenizer.add_tokens([_as_theirs(tokenizers, token) for token in (*absent, *new)])
    wanted |= places
    given = tokenizer.get_vocab(with_added_tokens=True)
    if given != wanted:
        token = next(
            token for token in {**wanted, **given} if wanted.get(token) != given.get(token)
        )
        raise ArgumentError(
            f"{path}: {token[:60]!r} would get the id {given.get(token)}, not {wanted.get(token)};"
            " the ids have holes or added tokens out of order, which tokenizer.json cannot keep"
            " when tokens are added: renumber the tokenizer first, or merge with another one"
        )
    del given, wanted
    # Through a file: as a Python text it would take several times its bytes.
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / FAST_NAME
        tokenizer.save(str(written), pretty=True)
        return written.read_bytes()


def _library(files: TokenizerFiles) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ArgumentError(
            f"{files.folder}: changing a tokenizer needs the package tokenizers; install it with"
            " pip install 'weightshare[language]'"
        ) from None
    return tokenizers


def _loaded(tokenizers: Any, path: object, content: bytes) -> Tokenizer:
    try:
        loaded: Tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more exact
        raise ArgumentError(f"{path}: the tokenizers library refuses it: {error}") from None
    return loaded


def _as_theirs(tokenizers: Any, token: AddedToken) -> Any:
    flags = token.flags()
    return tokenizers.AddedToken(flags.pop("content"), **flags)


def _without(content: dict[str, Any], removed: set[str]) -> dict[str, Any]:
    """Return the contents of a ``tokenizer.json`` without these tokens."""
    model = dict(content["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {token: i for token, i in vocabulary.items() if token not in removed}
    else:
        model["vocab"] = [pair for pair in vocabulary if pair[0] not in removed]
    if isinstance(model.get("merges"), list):
        model["merges"] = [merge for merge in model["merges"] if _stays(merge, removed)]
    added = [
        entry for entry in content.get("added_tokens") or [] if entry["content"] not in removed
    ]
    return {**content, "model": model, "added_tokens": added}


def _stays(merge: object, removed: set[str]) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2:
        return True
    return not removed & {*parts, "".join(map(str, parts))}


def _configuration(
    files: TokenizerFiles,
    new: Sequence[AddedToken],
    places: dict[str, int],
    removed: Collection[str],
) -> bytes:
    config = dict(files.config)
    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        # Without the list, readers take only the tokens of the list: so it has all of them.
        decoder = {str(files.ids[token]): flags.flags() for token, flags in files.added.items()}
    decoder = {
        place: entry for place, entry in decoder.items() if entry.get("content") not in removed
    }
    decoder |= {str(places[token.content]): token.flags() for token in new}
    config["added_tokens_decoder"] = decoder
    return as_json(config)

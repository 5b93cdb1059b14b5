"""What a recipe asks of the vocabulary: ``tokenizer_source`` and ``tokenizer``, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from weightshare.merging.registry import nearest
from weightshare.recipes.reference import Reference, parse_reference

_KEYS = ("source", "tokens", "pad_to_multiple_of")
_TOKEN_KEYS = ("source", "force")
_KINDS = ("zero", "model_token")
_KIND_KEYS = {"zero": ("kind",), "model_token": ("kind", "model", "token", "token_id")}
_LARGEST_MULTIPLE = 1 << 20
_LARGEST_ID = (1 << 31) - 1
_MOST_TOKENS = 100_000


@dataclass(frozen=True, slots=True)
class TokenAsked:
    """Where the row of one token comes from in the models that lack it.

    Attributes
    ----------
    kind : {"rule", "zero", "model", "model_token"}
        What the rule says, a row of zeros, the token's own row in a model, or another token's.
    where : str
        The place in the recipe, for messages.
    model : str or None
        ``"base"``, or the place in the recipe of the model's reference; None with zeros.
    token : str or None
        The other token's text.
    token_id : int or None
        The other token's id.
    force : bool
        Whether the row is used in all models, in those too that have the token.
    """

    kind: Literal["rule", "zero", "model", "model_token"]
    where: str
    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerAsked:
    """What a recipe asks of the vocabulary.

    Attributes
    ----------
    source : str
        ``"union"``, ``"base"``, or the place in the recipe of the model's reference.
    tokens : mapping of str to TokenAsked
        Tokens whose rows are told one by one; new ones are added to the vocabulary.
    pad_to_multiple_of : int or None
        The number of rows is rounded up to a multiple of it.
    references : mapping of str to Reference
        The models that it names, each under its place in the recipe, such as
        ``"tokenizer.source"``.
    """

    source: str
    tokens: Mapping[str, TokenAsked] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    references: Mapping[str, Reference] = field(default_factory=dict)


def read_tokenizer(
    data: Mapping[Any, Any],
    problems: list[str],
    *,
    folder: Path | None = None,
    unknown: list[str] | None = None,
) -> TokenizerAsked | None:
    """Read the keys ``tokenizer_source`` and ``tokenizer`` of a recipe.

    Parameters
    ----------
    data : mapping
        The whole recipe.
    problems : list of str
        Takes everything that is wrong.
    folder : Path, optional
        The recipe's folder, for the paths of models.
    unknown : list of str, optional
        Takes what is told of unknown keys; None means `problems`.

    Returns
    -------
    TokenizerAsked or None
        None when neither key has a value, or none that can be used.

    Examples
    --------
    >>> problems = []
    >>> read_tokenizer({"tokenizer_source": "union"}, problems).source
    'union'
    >>> read_tokenizer({"tokenizer": {"sorce": "base"}}, problems)
    >>> problems
    ["tokenizer: unknown key 'sorce'; did you mean 'source'?"]
    """
    legacy, asked = data.get("tokenizer_source"), data.get("tokenizer")
    if legacy is not None and asked is not None:
        problems.append(
            "tokenizer_source: is the older form of tokenizer.source; give one of the two"
        )
        return None
    reader = _Reader(problems, folder, problems if unknown is None else unknown)
    before = len(problems)
    found: TokenizerAsked | None = None
    if asked is not None:
        found = reader.read(asked)
    elif legacy is not None:
        source = reader.source(legacy, "tokenizer_source")
        found = TokenizerAsked(source, references=reader.references)
    return found if len(problems) == before else None


class _Reader:
    """Reads the key ``tokenizer``; collects problems and the models that are named."""

    def __init__(self, problems: list[str], folder: Path | None, unknown: list[str]) -> None:
        self._problems = problems
        self._unknown = unknown
        self._folder = folder
        self.references: dict[str, Reference] = {}

    def read(self, asked: object) -> TokenizerAsked | None:
        """Return what the key ``tokenizer`` asks for."""
        if not isinstance(asked, Mapping):
            self._tell(f"tokenizer: expected the keys {', '.join(_KEYS)}, got {asked!r}")
            return None
        self._check_keys(asked, _KEYS, "tokenizer")
        given = asked.get("source")
        source = "union" if given is None else self.source(given, "tokenizer.source")
        multiple = asked.get("pad_to_multiple_of")
        if multiple is not None:
            self._check_whole(multiple, "tokenizer.pad_to_multiple_of", 1, _LARGEST_MULTIPLE)
        tokens = self._tokens(asked.get("tokens"))
        return TokenizerAsked(source, tokens, multiple, self.references)

    def source(self, value: object, where: str) -> str:
        """Return ``"union"``, ``"base"`` or the place of a reference."""
        return str(value) if value in ("union", "base") else self._reference(value, where)

    def _reference(self, value: object, where: str) -> str:
        reference = parse_reference(value, where, self._problems, folder=self._folder)
        if reference is not None:
            self.references[where] = reference
        return where

    def _tokens(self, value: object) -> dict[str, TokenAsked]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self._tell(f"tokenizer.tokens: expected tokens and their sources, got {value!r}")
            return {}
        if len(value) > _MOST_TOKENS:
            self._tell(f"tokenizer.tokens: expected at most {_MOST_TOKENS:,}, got {len(value):,}")
            return {}
        found = {}
        for token, entry in value.items():
            where = f"tokenizer.tokens[{token!r}]"
            if not isinstance(token, str) or not token:
                self._tell(f"{where}: expected a text as the token; put it in quotation marks")
                continue
            read = self._token(entry, where)
            if read is not None:
                found[token] = read
        return found

    def _token(self, entry: object, where: str) -> TokenAsked | None:
        if not isinstance(entry, Mapping):
            self._tell(f"{where}: expected the keys {', '.join(_TOKEN_KEYS)}, got {entry!r}")
            return None
        self._check_keys(entry, _TOKEN_KEYS, where)
        force = entry.get("force", False)
        if not isinstance(force, bool):
            self._tell(f"{where}.force: expected true or false, got {force!r}")
            force = False
        source, place = entry.get("source"), f"{where}.source"
        if source is None:
            if force:
                self._tell(f"{where}: force needs a source")
            return TokenAsked("rule", where)
        if isinstance(source, Mapping) and "kind" in source:
            return self._kind(source, place, force)
        named = "base" if source == "base" else self._reference(source, place)
        return TokenAsked("model", place, named, force=force)

    def _kind(self, source: Mapping[Any, Any], where: str, force: bool) -> TokenAsked | None:
        kind = source["kind"]
        if kind not in _KINDS:
            self._tell(f"{where}.kind: expected zero or model_token, got {kind!r}")
            return None
        self._check_keys(source, _KIND_KEYS[kind], where)
        if kind == "zero":
            return TokenAsked("zero", where, force=force)
        token, token_id, model = (source.get(key) for key in ("token", "token_id", "model"))
        if (token is None) == (token_id is None):
            self._tell(f"{where}: expected one of token and token_id, and not both")
        if token is not None and not isinstance(token, str):
            self._tell(f"{where}.token: expected a text, got {token!r}")
        if token_id is not None:
            self._check_whole(token_id, f"{where}.token_id", 0, _LARGEST_ID)
        if model is None:
            self._tell(f"{where}.model: is missing, and model_token needs it")
            return None
        named = "base" if model == "base" else self._reference(model, f"{where}.model")
        return TokenAsked("model_token", where, named, token, token_id, force)

    def _check_whole(self, value: object, where: str, low: int, high: int) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not low <= value <= high:  # type: ignore[operator]
            self._tell(f"{where}: expected a whole number from {low} to {high:,}, got {value!r}")

    def _check_keys(self, value: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
        for key in value:
            if key not in known:
                self._unknown.append(f"{where}: unknown key {key!r}{nearest(key, known)}")

    def _tell(self, problem: str) -> None:
        self._problems.append(problem)

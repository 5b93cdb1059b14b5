"""Several vocabularies made one, and the maps between their ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from weightshare.errors import ArgumentError, ArgumentTypeError

IdMap = npt.NDArray[np.int32]
Order = Literal["first", "sorted", "base"]

_ORDERS = ("first", "sorted", "base")
# The largest vocabularies have about a million tokens; a larger id is a mistake or an attack.
LARGEST_ID = (1 << 24) - 1
# How families of tokenizers mark a piece that begins a word, or that goes on with one.
MARKS = {"\u0120": "begins a word", "\u2581": "begins a word", "##": "goes on with a word"}


class VocabularyUnion:
    """The union of vocabularies; `union` makes one.

    Attributes
    ----------
    tokens : tuple of str or None
        The token of each id; None where there is none, in holes and in padding.
    names : tuple of str
        The vocabularies, in their order.
    count : int
        How many tokens there are.
    """

    def __init__(
        self,
        tokens: Sequence[str | None],
        vocabularies: Mapping[str, Mapping[str, int]],
    ) -> None:
        self.tokens = tuple(tokens)
        self.names = tuple(vocabularies)
        self.count = sum(token is not None for token in self.tokens)
        self._vocabularies = vocabularies
        self._maps: dict[str, IdMap] = {}

    def __len__(self) -> int:
        """Return the number of ids, holes and padding included."""
        return len(self.tokens)

    def __repr__(self) -> str:
        return (
            f"VocabularyUnion of {', '.join(self.names)}: {self.count:,} tokens, {len(self):,} ids"
        )

    def map(self, name: str) -> IdMap:
        """Return, for each id of the union, the id in one vocabulary.

        Parameters
        ----------
        name : str
            The vocabulary.

        Returns
        -------
        ndarray of int32
            -1 where that vocabulary lacks the token.
        """
        if name not in self._maps:
            ids = self._ids(name)
            found = [-1 if token is None else ids.get(token, -1) for token in self.tokens]
            self._maps[name] = np.array(found, dtype=np.int32)
            self._maps[name].setflags(write=False)
        return self._maps[name]

    def inverse(self, name: str) -> IdMap:
        """Return, for each id of one vocabulary, the id in the union.

        Parameters
        ----------
        name : str
            The vocabulary.

        Returns
        -------
        ndarray of int32
            As long as the vocabulary's largest id and one; -1 in its holes.
        """
        ids = self.map(name)
        inverse = np.full(max(self._ids(name).values(), default=-1) + 1, -1, dtype=np.int32)
        known = np.flatnonzero(ids >= 0)
        inverse[ids[known]] = known
        return inverse

    @property
    def conflicts(self) -> dict[str, dict[str, int]]:
        """Tokens that stand under different ids in the vocabularies, with those ids."""
        maps = np.stack([self.map(name) for name in self.names])
        largest = maps.max(axis=0)
        smallest = np.where(maps < 0, largest, maps).min(axis=0)
        return {
            str(self.tokens[place]): {
                name: int(own)
                for name, own in zip(self.names, maps[:, place], strict=True)
                if own >= 0
            }
            for place in np.flatnonzero(largest != smallest)
        }

    def report(self) -> dict[str, Any]:
        """Return what the vocabularies share, as plain numbers and texts.

        Returns
        -------
        dict
            ``tokens``, ``ids`` and ``shared`` (tokens that all have) of the union; for each
            vocabulary ``tokens``, ``only`` (tokens that no other has), ``holes`` (ids that no
            token has) and ``marks`` (how many tokens carry each mark of a word's begin or
            continuation: marks are told, never translated).
        """
        held = np.stack([self.map(name) >= 0 for name in self.names])
        holders = held.sum(axis=0)
        rows = {}
        for name, own in zip(self.names, held, strict=True):
            ids = self._ids(name)
            rows[name] = {
                "tokens": len(ids),
                "only": int((own & (holders == 1)).sum()),
                "holes": max(ids.values(), default=-1) + 1 - len(ids),
                "marks": marks(ids),
            }
        return {
            "tokens": self.count,
            "ids": len(self),
            "shared": int((holders == len(self.names)).sum()),
            "vocabularies": rows,
        }

    def _ids(self, name: str) -> Mapping[str, int]:
        if name not in self._vocabularies:
            raise ArgumentError(f"name: expected one of {', '.join(self.names)}, got {name!r}")
        return self._vocabularies[name]


def union(
    vocabularies: Mapping[str, Mapping[str, int] | Sequence[str]],
    order: Order = "first",
    pad_to_multiple_of: int | None = None,
) -> VocabularyUnion:
    """Unite vocabularies, and map the ids of each to those of the union and back.

    Tokens are the same when their texts are: a mark such as ``"▁"`` or ``"Ġ"`` is part of the
    text, and `VocabularyUnion.report` counts the tokens that carry one.

    Parameters
    ----------
    vocabularies : mapping of str to mapping or sequence
        Each as ``{token: id}``, or as its tokens in the order of their ids.
    order : {"first", "sorted", "base"}
        Ids by first appearance, vocabulary by vocabulary; by the tokens' texts; or those of the
        first vocabulary as they are, holes included, the others' tokens after them.
    pad_to_multiple_of : int, optional
        The number of ids is rounded up to a multiple of it.

    Returns
    -------
    VocabularyUnion
        ``.tokens``, ``len()``, ``.map(name)``, ``.inverse(name)``, ``.conflicts``, ``.report()``.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        There is no vocabulary; an id is no whole number from 0 to 16,777,215, or two tokens share
        one; a token stands twice; or another argument cannot be used.

    Examples
    --------
    >>> both = union({"a": ["<s>", "yes", "no"], "b": {"yes": 0, "maybe": 2}})
    >>> both.tokens, len(both)
    (('<s>', 'yes', 'no', 'maybe'), 4)
    >>> both.map("b"), both.inverse("b")
    (array([-1,  0, -1,  2], dtype=int32), array([ 1, -1,  3], dtype=int32))
    >>> both.conflicts
    {'yes': {'a': 1, 'b': 0}}
    """
    if not isinstance(vocabularies, Mapping) or not vocabularies:
        raise ArgumentTypeError(
            "vocabularies: expected a mapping of at least one name to its tokens,"
            f" got {type(vocabularies).__name__}"
        )
    if order not in _ORDERS:
        raise ArgumentError(f"order: expected one of {', '.join(_ORDERS)}, got {order!r}")
    known = {name: checked_ids(name, value) for name, value in vocabularies.items()}
    tokens = united_tokens(list(known.values()), order)
    if pad_to_multiple_of is not None:
        tokens += [None] * (padded(len(tokens), pad_to_multiple_of) - len(tokens))
    return VocabularyUnion(tokens, known)


def padded(count: int, multiple: int | None) -> int:
    """Return a number of rows rounded up to a multiple.

    Raises
    ------
    ArgumentError
        `multiple` is no whole number of at least 1.

    Examples
    --------
    >>> padded(65, 16), padded(64, 16), padded(65, None)
    (80, 64, 65)
    """
    if multiple is None:
        return count
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ArgumentError(
            f"pad_to_multiple_of: expected a whole number of at least 1, got {multiple!r}"
        )
    return -(-count // multiple) * multiple


def checked_ids(name: str, value: object) -> dict[str, int]:
    """Return a vocabulary as ``{token: id}`` in the order of its ids.

    Parameters
    ----------
    name : str
        The vocabulary's name, for messages.
    value : mapping or sequence
        ``{token: id}``, or tokens in the order of their ids.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        It is no vocabulary.
    """
    if type(value) is dict and _is_plain(value):
        ascends = _ascends(value.values())
        return dict(value if ascends else sorted(value.items(), key=itemgetter(1)))
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        pairs = ((token, place) for place, token in enumerate(value))
    else:
        raise ArgumentTypeError(
            f"{name}: expected tokens and their ids, or tokens in order, got {type(value).__name__}"
        )
    by_id: dict[int, str] = {}
    count = 0
    for token, place in pairs:
        if not isinstance(token, str):
            raise ArgumentTypeError(f"{name}: expected texts as tokens, got {token!r}")
        if isinstance(place, bool) or not isinstance(place, int | np.integer):
            raise ArgumentTypeError(f"{name}: expected a whole number as the id of {token!r}")
        if not 0 <= place <= LARGEST_ID:
            raise ArgumentError(
                f"{name}: expected ids from 0 to {LARGEST_ID:,}, got {place} for {token[:60]!r}"
            )
        other = by_id.setdefault(int(place), token)
        if other is not token and other != token:
            raise ArgumentError(
                f"{name}: the tokens {other[:60]!r} and {token[:60]!r} have the same id {place}"
            )
        count += 1
    ids = {by_id[place]: place for place in sorted(by_id)}
    if len(ids) != count:
        twice = _first_repeated(by_id[place] for place in sorted(by_id))
        raise ArgumentError(f"{name}: the token {twice[:60]!r} stands there twice")
    return ids


def _is_plain(ids: dict[Any, Any]) -> bool:
    """Say whether these are texts and as many legal ids, without a loop in Python."""
    if {*map(type, ids)} - {str} or {*map(type, ids.values())} - {int}:
        return False
    if not ids:
        return True
    legal = min(ids.values()) >= 0 and max(ids.values()) <= LARGEST_ID
    return legal and len({*ids.values()}) == len(ids)


def _ascends(ids: Iterable[int]) -> bool:
    return all(before < after for before, after in pairwise(ids))


def marks(tokens: Iterable[str]) -> dict[str, int]:
    """Return how many tokens carry each mark of a word's begin or continuation.

    Examples
    --------
    >>> marks(["\u2581the", "ing", "##ing"])
    {'▁': 1, '##': 1}
    """
    counted = dict.fromkeys(MARKS, 0)
    for token in tokens:
        for mark in MARKS:
            if token.startswith(mark) and token != mark:
                counted[mark] += 1
    return {mark: count for mark, count in counted.items() if count}


def united_tokens(
    vocabularies: Sequence[Mapping[str, int]], order: Order = "base"
) -> list[str | None]:
    """Return the tokens of the union of checked vocabularies, in the order of their new ids.

    Parameters
    ----------
    vocabularies : sequence of mapping of str to int
        Each in the order of its ids, as `checked_ids` returns it.
    order : {"first", "sorted", "base"}
        As for `union`.

    Examples
    --------
    >>> united_tokens([{"a": 0, "b": 2}, {"b": 0, "c": 1}])
    ['a', None, 'b', 'c']
    """
    merged: dict[str, None] = {}
    for ids in vocabularies:
        merged.update(dict.fromkeys(ids))
    if order == "sorted":
        return list[str | None](sorted(merged))
    if order == "first":
        return list[str | None](merged)
    first = vocabularies[0]
    kept: list[str | None] = [None] * (max(first.values(), default=-1) + 1)
    for token, place in first.items():
        kept[place] = token
    return [*kept, *(token for token in merged if token not in first)]


def _first_repeated(tokens: Iterable[str]) -> str:
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            return token
        seen.add(token)
    return ""

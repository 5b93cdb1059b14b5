"""Python's ``json`` made as strict as the format: no duplicates, no NaN, a bounded cost."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 127
_SPARE = 100_000
_LONGEST_WHOLE = 20


class DuplicateKeyError(ValueError):
    """An object has the same key twice, after escapes are resolved."""


class BadJsonError(ValueError):
    """A text that Python's ``json`` would take but the format does not, or that is not JSON."""


def too_many_parts(raw: bytes, max_entries: int) -> str:
    """Return why `raw` would be too costly to parse, or ``""``; costs one pass for each count.

    Every element of a JSON text needs a brace, a bracket or a comma, so three counts bound the
    memory of the parser. The spare amounts leave room for such signs inside strings.
    """
    braces, brackets, commas = raw.count(b"{"), raw.count(b"["), raw.count(b",")
    for count, allowed, sign in (
        (braces, max_entries + _SPARE, "{"),
        (brackets, 2 * braces + _SPARE, "["),
        (commas, 70 * braces + max_entries + 10 * _SPARE, ","),
    ):
        if count > allowed:
            return f"{count} times {sign!r} where at most {allowed} make sense"
    return ""


def _whole_number(text: str) -> int | float:
    # NaN stands for every number that is no size (signed, too large): no later check takes it.
    if text[0] == "-" or len(text) > _LONGEST_WHOLE:
        return _fraction(text)
    return int(text)


def _fraction(text: str) -> float:
    if len(text) > 400 or math.isinf(float(text)):
        raise BadJsonError(f"a number is out of range: {text[:40]}")
    return math.nan


def _constant(text: str) -> float:
    raise BadJsonError(f"{text} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(key)
            seen.add(key)
    return found


def parse(text: str) -> Any:
    """Return the value of a JSON text; whole numbers 0..10^20 are int, other numbers are NaN.

    Raises
    ------
    DuplicateKeyError
        An object has the same key twice.
    BadJsonError
        Anything else that is not strict JSON.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole_number,
            parse_float=_fraction,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        raise BadJsonError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise BadJsonError("nested too deeply") from None


def is_text(text: str) -> bool:
    """Say whether `text` can be written as UTF-8, that is, has no lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def depth_of(value: object) -> int:
    """Return how deep lists and objects nest in `value`; 0 for a plain value.

    Raises
    ------
    BadJsonError
        A text inside has a lone surrogate.
    """
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str) and not is_text(item):
            raise BadJsonError("a text has a lone surrogate")
        if isinstance(item, dict):
            waiting.extend((key, depth) for key in item)
            waiting.extend((part, depth + 1) for part in item.values())
        elif isinstance(item, list):
            waiting.extend((part, depth + 1) for part in item)
        if isinstance(item, dict | list):
            deepest = max(deepest, depth)
    return deepest

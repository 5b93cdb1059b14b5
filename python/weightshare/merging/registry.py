"""The merge methods by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from weightshare.errors import ArgumentError
from weightshare.merging import consensus, elementwise, fusion, linear, spherical
from weightshare.merging.method import Method

_METHODS: dict[str, Method] = {
    method.name: method
    for family in (linear, spherical, consensus, elementwise, fusion)
    for method in family.METHODS
}


def methods() -> dict[str, Method]:
    """Return every merge method by its name.

    Returns
    -------
    dict of str to Method
        Each entry has ``name``, ``summary`` (the formula), ``source`` (the paper), ``parameters``
        with defaults, ``needs_base``, ``min_models`` and ``max_models``.

    Examples
    --------
    >>> methods()["task_arithmetic"].needs_base
    True
    >>> [parameter.name for parameter in methods()["linear"].parameters]
    ['weight', 'normalize']
    """
    return dict(_METHODS)


def get_method(name: str) -> Method:
    """Return the method of that name.

    Parameters
    ----------
    name : str
        A name that `methods` lists.

    Returns
    -------
    Method
        The method.

    Raises
    ------
    ArgumentError
        There is no such method.

    Examples
    --------
    >>> get_method("linear").allowed_models
    '1 or more'
    """
    if name not in _METHODS:
        raise ArgumentError(
            f"method: expected one of {', '.join(_METHODS)}, got {name!r}{nearest(name, _METHODS)}"
        )
    return _METHODS[name]


def nearest(word: object, known: Iterable[str]) -> str:
    """Return a hint that names the known word most like `word`, or nothing.

    Parameters
    ----------
    word : object
        What was written.
    known : iterable of str
        What could have been meant.

    Returns
    -------
    str
        Such as ``"; did you mean 'weight'?"``, or the empty string.

    Examples
    --------
    >>> nearest("wieght", ["weight", "normalize"])
    "; did you mean 'weight'?"
    """
    found = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""

"""The merge methods by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from weightshare.errors import ArgumentError
from weightshare.merging import consensus, elementwise, fusion, linear, spherical
from weightshare.merging.method import Method

_BUILT_IN: dict[str, Method] = {
    method.name: method
    for family in (linear, spherical, consensus, elementwise, fusion)
    for method in family.METHODS
}
_METHODS = dict(_BUILT_IN)


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
    if not isinstance(name, str) or name not in _METHODS:
        raise ArgumentError(
            f"method: expected one of {', '.join(_METHODS)}, got {name!r}{nearest(name, _METHODS)}"
        )
    return _METHODS[name]


def add_method(method: Method, *, replace: bool = False) -> None:
    """Add a method in this process.

    Parameters
    ----------
    method : Method
        The method.
    replace : bool
        Whether one of that name may be replaced.

    Raises
    ------
    ArgumentError
        The name is taken, or cannot be written in a recipe.

    Examples
    --------
    >>> from dataclasses import replace
    >>> add_method(replace(get_method("linear"), name="mean"))
    >>> forget_method("mean")
    """
    name = method.name
    if not name or any(not (letter.isalnum() or letter in "_-") for letter in name):
        raise ArgumentError(
            f"method: expected a name of letters, digits, '_' and '-', got {name!r}"
        )
    if name in _METHODS and not replace:
        raise ArgumentError(
            f"method: {name!r} exists already; choose another name, or replace it with replace=True"
        )
    _METHODS[name] = method


def forget_method(name: str) -> None:
    """Take back what `register_method` added; a method that it replaced is there again.

    Parameters
    ----------
    name : str
        Of a method that was registered in this process.

    Raises
    ------
    ArgumentError
        There is none of that name.

    Examples
    --------
    >>> from dataclasses import replace
    >>> add_method(replace(get_method("linear"), name="mean"))
    >>> forget_method("mean")
    >>> "mean" in methods()
    False
    """
    if _METHODS.get(name) is _BUILT_IN.get(name):
        raise ArgumentError(f"name: {name!r} was not registered in this process")
    del _METHODS[name]
    if name in _BUILT_IN:
        _METHODS[name] = _BUILT_IN[name]


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

"""Reading the text of a recipe: YAML without its traps."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from weightshare.errors import ArgumentTypeError, RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_NODES = 100_000
MAX_DOCUMENTS = 100

Recipe = str | os.PathLike[str] | Mapping[str, Any]

# The scalars of YAML 1.2's core schema: PyYAML's own are those of 1.1, where `no` is false,
# `012` is ten and `1e-3` is text.
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)


# What YAML says of a recipe that was copied out of a model card or typed with tabs.
_REMEDIES = {
    "character '`'": "; copy only what stands between the lines of ``` in a model card",
    "character '\\t'": "; indent with spaces, YAML knows no tabs",
}


@dataclass(frozen=True)
class Document:
    """A recipe as it was read.

    Attributes
    ----------
    data : dict
        Its contents.
    text : str
        Its part of the text.
    folder : Path or None
        The folder of its file, if it was one.
    anchors : frozenset of str
        The top-level keys whose values hold YAML anchors.
    whole : str
        The text of the recipe, with all its documents.
    lone : bool
        Whether it is the only one there.
    """

    data: dict[str, Any]
    text: str
    folder: Path | None = None
    anchors: frozenset[str] = frozenset()
    whole: str = ""
    lone: bool = True


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 scalars, bounded, that refuses duplicate keys."""

    # Empty ones of our own, so that nothing of YAML 1.1 is inherited.
    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0
        self.anchored: set[int] = set()
        self.span = (0, 0)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node, counting depth and nodes before anything grows."""
        self._depth += 1
        self._nodes += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._depth > MAX_DEPTH:
            _refuse(f"is nested deeper than {MAX_DEPTH} levels", mark)
        if self._nodes > MAX_NODES:
            _refuse(f"holds more than {MAX_NODES:,} values", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_document(self) -> yaml.Node | None:
        """Compose one document and note its place and anchors, which PyYAML forgets."""
        first = self.get_event()  # type: ignore[no-untyped-call]
        node = self.compose_node(None, None)
        self.anchored = {id(anchored) for anchored in self.anchors.values()}
        last = self.get_event()  # type: ignore[no-untyped-call]
        self.span = (first.start_mark.index, last.start_mark.index)
        self.anchors = {}
        return node


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > 30:
        _refuse("holds a whole number of more than 30 digits", node.start_mark)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    return str(loader.construct_scalar(node)).lower() == "true"


def _unknown(loader: _Loader, node: yaml.Node) -> NoReturn:
    _refuse(f"has the tag {node.tag!r}, which a recipe cannot use", node.start_mark)


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}",
        re.compile(rf"(?:{_pattern})\Z"),
        ["" if letter == "\0" else letter for letter in _first],
    )
for _name, _construct in (
    ("int", _int),
    ("float", _float),
    ("bool", _bool),
    ("null", yaml.SafeLoader.construct_yaml_null),
    ("str", yaml.SafeLoader.construct_yaml_str),
    ("seq", yaml.SafeLoader.construct_yaml_seq),
    ("map", yaml.SafeLoader.construct_yaml_map),
):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _construct)
_Loader.add_constructor(None, _unknown)


def load_documents(recipe: Recipe) -> tuple[Document, ...]:
    """Read a recipe.

    Parameters
    ----------
    recipe : path, str or mapping
        A path, the YAML text itself (it has a line break or ``": "``), or its contents.

    Returns
    -------
    tuple of Document
        The contents, the text and the folder of the file: one for each document in it, in order.

    Raises
    ------
    RecipeError
        There is no such file, it is larger than 1 MB, no YAML, has duplicate keys, is nested
        deeper than 50 levels, grows beyond 100,000 values when its aliases are expanded, or has
        more than 100 documents.
    ArgumentTypeError
        `recipe` is none of the three.

    Examples
    --------
    >>> load_documents("merge_method: linear\\nweight: 1e-3")[0].data
    {'merge_method': 'linear', 'weight': 0.001}
    """
    if isinstance(recipe, Mapping):
        return (_from_mapping(recipe),)
    if isinstance(recipe, str) and ("\n" in recipe or ": " in recipe):
        return parse_documents(recipe)
    if not isinstance(recipe, str | os.PathLike):
        raise ArgumentTypeError(
            f"recipe: expected a path, YAML text or a mapping, got {type(recipe).__name__}"
        )
    if not os.fspath(recipe):
        raise RecipeError("recipe: expected a path, YAML text or a mapping, got ''")
    path = Path(recipe)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"recipe: {path} cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise RecipeError(f"recipe: {path} is larger than 1 MB, which no recipe is")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe: {path} is not UTF-8 text: {error}") from error
    return parse_documents(text, folder=path.resolve().parent)


def parse_documents(text: str, *, folder: Path | None = None) -> tuple[Document, ...]:
    """Read a recipe from its YAML text.

    Parameters
    ----------
    text : str
        YAML, at most 1 MB.
    folder : Path, optional
        The folder of the file that it is from.

    Returns
    -------
    tuple of Document
        Each with its own part of the text; a lone one with all of it. Empty ones are left out.

    Raises
    ------
    RecipeError
        As `load_documents`.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise RecipeError("recipe: the text is larger than 1 MB, which no recipe is")
    found: list[Document] = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            document = _next_document(loader, text, folder)
            found += () if document is None else (document,)
            if len(found) > MAX_DOCUMENTS:
                raise RecipeError(f"recipe: holds more than {MAX_DOCUMENTS} documents")
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe: {_one_line(error)}") from error
    if not found:
        raise RecipeError("recipe: is empty")
    if len(found) == 1:
        return (replace(found[0], text=text),)
    return tuple(replace(document, lone=False) for document in found)


def _next_document(loader: _Loader, text: str, folder: Path | None) -> Document | None:
    node = loader.get_node()
    assert node is not None  # an empty document is a node of null
    _check_expansion(node)
    _check_duplicates(node)
    anchors = frozenset(_anchored_keys(node, loader.anchored))
    data = loader.construct_document(node)
    if data is None:
        return None
    if not isinstance(data, dict):
        raise RecipeError(
            f"recipe: expected keys such as merge_method and models, got a {type(data).__name__}"
        )
    part = text[slice(*loader.span)].strip() + "\n"
    return Document(data, part, folder, anchors, text)


def _from_mapping(recipe: Mapping[str, Any]) -> Document:
    try:
        text = yaml.dump(dict(recipe), Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"recipe: holds what YAML cannot: {_one_line(error)}") from error
    (document,) = parse_documents(text)
    return replace(document, anchors=frozenset())


def _refuse(problem: str, mark: Any) -> NoReturn:
    raise RecipeError(f"recipe: {problem} (line {mark.line + 1})")


def _one_line(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    where = f" (line {mark.line + 1})" if mark is not None else ""
    remedy = next((told for sign, told in _REMEDIES.items() if sign in str(problem)), "")
    return " ".join(str(problem).split()) + where + remedy


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check_expansion(root: yaml.Node) -> None:
    """Refuse aliases that grow beyond the cap, or that hold themselves."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            _refuse("holds an alias of itself", node.start_mark)
        open_nodes.add(id(node))
        size = 1 + sum(measure(child) for child in _children(node))
        open_nodes.discard(id(node))
        if size > MAX_NODES:
            _refuse(f"grows beyond {MAX_NODES:,} values through its aliases", node.start_mark)
        sizes[id(node)] = size
        return size

    measure(root)


def _walk(root: yaml.Node) -> Iterator[yaml.Node]:
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting.extend(_children(node))


def _check_duplicates(root: yaml.Node) -> None:
    for node in _walk(root):
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _refuse("has a key that is a list or a mapping", key.start_mark)
            if key.value in lines:
                first = lines[key.value]
                _refuse(f"has the key {key.value!r} twice, first in line {first}", key.start_mark)
            lines[key.value] = key.start_mark.line + 1


def _anchored_keys(root: yaml.Node, anchored: set[int]) -> Iterator[str]:
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if any(id(node) in anchored for node in _walk(value)):
                yield str(key.value)

"""The loader reads YAML without its traps, and says where a trap is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightshare.errors import ArgumentTypeError, RecipeError
from weightshare.recipes.load import (
    MAX_DEPTH,
    Document,
    load_documents,
    parse_documents,
)


def parse_text(text: str) -> Document:
    (document,) = parse_documents(text)
    return document


def value(text: str) -> object:
    return parse_text(f"key: {text}\n").data["key"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        ("-2.5E+2", -250.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, expected: object) -> None:
    """Numbers with an exponent are numbers, a leading zero is no octal, null is null."""
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", ["no", "yes", "on", "off", "y", "1:30", "2024-01-01", "1_000"])
def test_words_of_yaml_1_1_stay_text(text: str) -> None:
    """What YAML 1.1 made booleans, base-60 numbers or dates is text."""
    assert value(text) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives(number: float) -> None:
    """The shortest text of any float reads as that float."""
    assert value(repr(number)) == number


@given(st.text(max_size=200))
def test_any_text_is_a_document_or_a_recipe_error(text: str) -> None:
    """No text makes the loader fail in another way."""
    message = "recipe: "
    try:
        parse_text(text)
    except RecipeError as error:
        message = str(error)
    assert message.startswith("recipe: ")


def test_duplicate_keys_are_refused_with_their_lines() -> None:
    """The second of two equal keys does not silently win."""
    with pytest.raises(RecipeError, match=r"'dtype' twice, first in line 1 \(line 3\)"):
        parse_text("dtype: float16\nmodels: []\ndtype: float32\n")


def test_duplicate_keys_are_found_deep_inside() -> None:
    """Nested mappings are checked too."""
    with pytest.raises(RecipeError, match=r"'weight' twice"):
        parse_text("models:\n  - parameters:\n      weight: 1\n      weight: 2\n")


def test_aliases_and_merge_keys_work() -> None:
    """Anchors of real recipes are expanded."""
    data = parse_text("a: &x {weight: 1}\nb: *x\nc:\n  <<: *x\n  t: 2\n").data
    assert data == {"a": {"weight": 1}, "b": {"weight": 1}, "c": {"weight": 1, "t": 2}}


def test_top_level_keys_with_anchors_are_known() -> None:
    """A key whose value defines an anchor is told apart from one that does not."""
    document = parse_text("defs:\n  inner: &x {weight: 1}\nother: 3\nuse: *x\n")
    assert "defs" in document.anchors
    assert "other" not in document.anchors


def test_alias_bomb_is_refused_at_once() -> None:
    """330 bytes that would grow to millions of values are refused in a second."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    began = time.monotonic()
    with pytest.raises(RecipeError, match="grows beyond 100,000 values"):
        parse_text("\n".join(lines))
    assert time.monotonic() - began < 1.0


def test_alias_of_itself_is_refused() -> None:
    """A value that holds itself is no recipe."""
    with pytest.raises(RecipeError, match="alias of itself"):
        parse_text("a: &a [*a]\n")


@pytest.mark.parametrize("text", ["a: " + "[" * 5000, "a: " + "{b: " * 5000])
def test_deep_nesting_is_refused(text: str) -> None:
    """Nesting ends in a message, not in a RecursionError."""
    with pytest.raises(RecipeError, match="nested deeper than 50 levels"):
        parse_text(text)


def test_the_depth_that_is_allowed_is_allowed() -> None:
    """The cap is where it is said to be."""
    inner = MAX_DEPTH - 2
    assert "a" in parse_text("a: " + "[" * inner + "1" + "]" * inner).data


def test_a_recipe_above_one_megabyte_is_refused(tmp_path: Path) -> None:
    """Size is checked before anything is parsed, for text and for files."""
    text = "a: " + "x" * 1_000_000
    (tmp_path / "r.yml").write_text(text)
    for recipe in (text, tmp_path / "r.yml"):
        with pytest.raises(RecipeError, match="larger than 1 MB"):
            load_documents(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system [ls]\n", "has the tag"),
        ("a: !thing 1\n", "has the tag"),
        ("- a\n- b\n", "expected keys such as merge_method"),
        ("a: 1\n---\n- b\n", "expected keys such as merge_method"),
        ("a: 1\n" + "---\na: 1\n" * 100, "more than 100 documents"),
        ("---\n---\n", "is empty"),
        ("a: [1, 2\n", r"line 2"),
        ("? [a]\n: 1\n", "key that is a list"),
        ("a: " + "9" * 5000, "more than 30 digits"),
        ("a: \x00", "special characters"),
        ("# nothing\n", "is empty"),
    ],
)
def test_what_is_no_recipe_is_refused_with_a_reason(text: str, message: str) -> None:
    """Each refusal says what is wrong."""
    with pytest.raises(RecipeError, match=message):
        parse_text(text)


def test_a_recipe_is_a_path_a_text_or_a_mapping(tmp_path: Path) -> None:
    """The three forms give the same contents; a path also gives its folder."""
    path = tmp_path / "r.yml"
    path.write_text("merge_method: linear\n")
    for recipe in (
        path,
        str(path),
        "merge_method: linear\n",
        {"merge_method": "linear"},
    ):
        assert load_documents(recipe)[0].data == {"merge_method": "linear"}
    assert load_documents(path)[0].folder == tmp_path.resolve()
    assert load_documents({"a": 1})[0].folder is None


def test_other_recipes_are_refused(tmp_path: Path) -> None:
    """A missing file, binary data and other types are told apart."""
    with pytest.raises(RecipeError, match=r"missing\.yml cannot be read"):
        load_documents(tmp_path / "missing.yml")
    (tmp_path / "b.yml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_documents(tmp_path / "b.yml")
    with pytest.raises(RecipeError, match="holds what YAML cannot"):
        load_documents({"a": object()})
    with pytest.raises(ArgumentTypeError, match="expected a path, YAML text or a mapping"):
        load_documents(3)  # type: ignore[arg-type]


def test_documents_keep_their_own_text_and_the_whole(tmp_path: Path) -> None:
    """Each with its anchors; a lone one has all of the text, comments too."""
    text = "# first\na: &x {w: 1}\n---\n# second\nb: 2\n...\n---\n"
    one, two = parse_documents(text)
    assert (one.data, two.data) == ({"a": {"w": 1}}, {"b": 2})
    assert (one.anchors, two.anchors) == ({"a"}, set())
    assert one.whole == two.whole == text
    assert "# second\nb: 2" in two.text
    (alone,) = parse_documents("# kept\na: 1\n")
    assert alone.text == alone.whole == "# kept\na: 1\n"


def test_an_alias_does_not_reach_another_document() -> None:
    """Anchors end with their document."""
    with pytest.raises(RecipeError, match="undefined alias"):
        parse_documents("a: &x 1\n---\nb: *x\n")

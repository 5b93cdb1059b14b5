"""Names of models: the short form and the long one, and what is neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightshare.recipes.reference import Reference, parse_reference


def parsed(value: Any, folder: Path | None = None) -> Reference | str:
    problems: list[str] = []
    found = parse_reference(value, "here", problems, folder=folder)
    assert (found is None) == bool(problems)
    return "\n".join(problems) if found is None else found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Reference("org/name")),
        ("org/name@main", Reference("org/name", "main")),
        ("org/name+x/lora", Reference("org/name", None, "x/lora")),
        ("a@r1+b@r2", Reference("a", "r1", "b", "r2")),
        ("/no/such/folder", Reference("/no/such/folder")),
    ],
)
def test_the_short_form(text: str, expected: Reference) -> None:
    """path[@revision][+lora[@revision]], and back."""
    assert parsed(text) == expected
    assert expected.label == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a@b@c", "expected at most one '@' in each part, got 'a@b@c'"),
        ("a+b@c@d", "expected at most one '@' in each part, got 'b@c@d'"),
        ("a+b+c", "expected at most one '+' before an adapter, got 'a+b+c'"),
        ("a@", "expected a path before '@' and a revision after it, got 'a@'"),
        ("@main", "expected a path before '@'"),
        ("a+", "expected a path before '@'"),
        ("", "expected the path of a model, got ''"),
        (3, "expected the path of a model, got 3"),
        (None, "expected the path of a model, got None"),
        (["a"], "expected the path of a model, got ['a']"),
        ({}, "here.model: expected a path, or the keys path and revision, got None"),
        (
            {"model": {"path": "a", "revison": "b"}},
            "here.model: unknown key 'revison'; did you",
        ),
        ({"model": {"path": 3}}, "here.model.path: expected a text, got 3"),
        (
            {"model": {"path": "a", "revision": 3}},
            "here.model.revision: expected a text, got 3",
        ),
        ({"model": "a", "lora": {}}, "here.lora.path: expected a text, got None"),
        ({"model": "a", "adapter": "b"}, "here: unknown key 'adapter'"),
        (
            {"model": "a", "override_architecture": 3},
            "override_architecture: expected a text",
        ),
    ],
)
def test_what_is_no_name_is_refused(value: Any, message: str) -> None:
    """With its place and what was expected."""
    assert message in str(parsed(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"model": {"path": "a", "revision": "r"}}, Reference("a", "r")),
        (
            {"model": {"path": "a"}, "lora": {"path": "b", "revision": "r"}},
            Reference("a", None, "b", "r"),
        ),
        ({"model": "a@r", "lora": None}, Reference("a", "r")),
        ({"path": "a", "revision": "r"}, Reference("a", "r")),
        (
            {"model": {"path": "a"}, "override_architecture": "LlamaForCausalLM"},
            Reference("a"),
        ),
    ],
)
def test_the_long_form(value: Any, expected: Reference) -> None:
    """As mergekit writes it; an architecture that is overridden changes nothing here."""
    assert parsed(value) == expected


@pytest.mark.parametrize("name", ["c++", "a@b@c", "x+y"])
def test_a_path_that_exists_is_a_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever signs it holds, in the current folder or in the recipe's."""
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    (tmp_path / name).mkdir()
    assert parsed(name, tmp_path) == Reference(name)
    assert parsed(str(tmp_path / name)) == Reference(str(tmp_path / name))
    assert parsed(name) != Reference(name)


texts = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.recursive(
    texts | st.none() | st.integers() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["model", "lora", "path", "revision", "override_architecture", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)


@given(values)
def test_any_value_is_a_name_or_a_problem(value: Any) -> None:
    """No value makes it fail in another way."""
    found = parsed(value)
    assert isinstance(found, Reference) or found.startswith("here")

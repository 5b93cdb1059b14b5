"""Unions of vocabularies: ids, maps, and what cannot be one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightshare.errors import ArgumentError, ArgumentTypeError
from weightshare.language import union

VOCABULARY = st.lists(st.text(max_size=3), unique=True, max_size=12).flatmap(
    lambda tokens: st.permutations(range(len(tokens) + 3)).map(
        lambda ids: dict(zip(tokens, ids, strict=False))
    )
)
VOCABULARIES = st.dictionaries(st.sampled_from("abcd"), VOCABULARY, min_size=1)


@given(VOCABULARIES, st.sampled_from(["first", "sorted", "base"]), st.sampled_from([None, 1, 8]))
def test_every_token_finds_its_way_there_and_back(vocabularies, order, multiple):
    united = union(vocabularies, order=order, pad_to_multiple_of=multiple)
    everything = set().union(*vocabularies.values())
    named = [token for token in united.tokens if token is not None]
    assert len(named) == len(everything) == united.count
    assert set(named) == everything
    assert len(united) % (multiple or 1) == 0
    for name, ids in vocabularies.items():
        there, back = united.map(name), united.inverse(name)
        assert there.dtype == back.dtype == np.int32
        assert len(there) == len(united)
        assert len(back) == max(ids.values(), default=-1) + 1
        for token, own in ids.items():
            assert united.tokens[back[own]] == token
            assert there[back[own]] == own
        assert (there >= 0).sum() == (back >= 0).sum() == len(ids)


@given(VOCABULARIES)
def test_the_order_is_the_one_that_is_asked_for(vocabularies):
    lists = [sorted(ids, key=ids.get) for ids in vocabularies.values()]
    first = list(dict.fromkeys(token for tokens in lists for token in tokens))
    assert list(union(vocabularies).tokens) == first
    assert list(union(vocabularies, order="sorted").tokens) == sorted(first)
    base = union(vocabularies, order="base")
    kept = next(iter(vocabularies.values()))
    assert all(base.tokens[own] == token for token, own in kept.items())
    start = max(kept.values(), default=-1) + 1
    assert list(base.tokens[start:]) == [token for token in first if token not in kept]


def test_the_report_tells_what_is_shared_and_what_is_odd():
    united = union({"a": {"x": 0, "▁y": 3}, "b": ["x", "Ġy", "##z"], "c": ["x"]})
    told = united.report()
    assert (told["tokens"], told["ids"], told["shared"]) == (4, 4, 1)
    assert told["vocabularies"]["a"] == {"tokens": 2, "only": 1, "holes": 2, "marks": {"▁": 1}}
    assert told["vocabularies"]["b"]["marks"] == {"Ġ": 1, "##": 1}
    assert told["vocabularies"]["c"] == {"tokens": 1, "only": 0, "holes": 0, "marks": {}}
    assert united.conflicts == {}
    assert union({"a": ["x", "y"], "b": ["y", "z"]}).conflicts == {"y": {"a": 1, "b": 0}}


def test_a_mark_alone_is_a_token_like_others():
    assert union({"a": ["▁", "##"]}).report()["vocabularies"]["a"]["marks"] == {}


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [
        ({"x": 1, "y": 1}, "'x' and 'y' have the same id 1"),
        ({"x": -1}, "ids from 0"),
        ({"x": 1 << 24}, "16,777,215, got 16777216"),
        ({"x": 10**30}, "ids from 0"),
        (["x", "y", "x"], "'x' stands there twice"),
    ],
)
def test_vocabularies_that_are_none_are_refused(vocabulary, said):
    with pytest.raises(ArgumentError, match=said):
        union({"a": ["fine"], "b": vocabulary})


@pytest.mark.parametrize(
    "vocabulary", [{"x": 1.0}, {"x": True}, {"x": None}, {1: 1}, "text", b"raw", 5, [1], None]
)
def test_values_of_other_types_are_refused(vocabulary):
    with pytest.raises(ArgumentTypeError, match=r"^a: expected"):
        union({"a": vocabulary})


def test_arguments_are_checked():
    with pytest.raises(ArgumentTypeError, match="vocabularies: expected a mapping"):
        union([["x"]])
    with pytest.raises(ArgumentTypeError, match="at least one"):
        union({})
    with pytest.raises(ArgumentError, match="order: expected one of"):
        union({"a": ["x"]}, order="last")
    for multiple in (0, -1, True, 1.5):
        with pytest.raises(ArgumentError, match="pad_to_multiple_of"):
            union({"a": ["x"]}, pad_to_multiple_of=multiple)
    with pytest.raises(ArgumentError, match="name: expected one of a, got 'b'"):
        union({"a": ["x"]}).map("b")


def test_maps_are_shared_and_cannot_be_changed():
    united = union({"a": ["x", "y"]})
    with pytest.raises(ValueError, match="read-only"):
        united.map("a")[0] = 5

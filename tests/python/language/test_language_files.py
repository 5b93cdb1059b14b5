"""Reading the files of tokenizers, good ones and hostile ones."""

from __future__ import annotations

import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightshare.errors import ArgumentError, ArgumentTypeError, WeightshareError
from weightshare.language.tokenizer_files import (
    AddedToken,
    fingerprint,
    has_tokenizer,
    read_json,
    read_text,
    read_tokenizer_files,
)


def fast(vocabulary, added=(), **model):
    return {
        "version": "1.0",
        "added_tokens": list(added),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], **model},
    }


def put(folder, name, value):
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    (folder / name).write_bytes(content)
    return folder


def test_all_places_of_added_tokens_are_read(tmp_path):
    put(
        tmp_path,
        "tokenizer.json",
        fast({"b": 1, "a": 0}, [{"id": 2, "content": "<s>", "special": True}]),
    )
    put(
        tmp_path,
        "tokenizer_config.json",
        {"added_tokens_decoder": {"3": {"content": "<p>", "lstrip": True, "special": True}}},
    )
    put(tmp_path, "added_tokens.json", {"<q>": 4, "a": 7})
    read = read_tokenizer_files(tmp_path)
    assert read.ids == {"a": 0, "b": 1, "<s>": 2, "<p>": 3, "<q>": 4}
    assert list(read.ids) == ["a", "b", "<s>", "<p>", "<q>"]
    assert read.added["<p>"] == AddedToken("<p>", lstrip=True, special=True)
    assert read.added["<s>"].special
    assert not read.added["<q>"].special
    assert any("says 7 for 'a'" in remark for remark in read.remarks)


def test_a_unigram_model_has_its_ids_by_place(tmp_path):
    put(tmp_path, "tokenizer.json", fast([["<unk>", 0], ["▁a", -1.5], ["x", -2], ["▁a", -9]]))
    read = read_tokenizer_files(tmp_path)
    assert read.ids == {"<unk>": 0, "x": 2, "▁a": 3}
    assert "1 pieces stand there twice" in read.remarks[0]


def test_older_forms_are_read(tmp_path):
    put(tmp_path, "vocab.txt", b"[PAD]\r\n[UNK]\r\n##ing\r\n")
    assert read_tokenizer_files(tmp_path).ids == {"[PAD]": 0, "[UNK]": 1, "##ing": 2}
    put(tmp_path, "vocab.json", {"x": 0, "y": 1})
    assert read_tokenizer_files(tmp_path).name == "vocab.json"
    assert has_tokenizer(tmp_path)


def test_a_sentencepiece_model_is_read_by_its_library(tmp_path):
    pieces = pytest.importorskip("sentencepiece")
    text = tmp_path / "text"
    text.write_text("one two three four five six seven eight nine ten\n" * 50)
    pieces.SentencePieceTrainer.Train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=20, minloglevel=9
    )
    read = read_tokenizer_files(tmp_path)
    assert read.name == "tokenizer.model"
    assert len(read.ids) == 20
    assert list(read.ids)[:3] == ["<unk>", "<s>", "</s>"]
    (tmp_path / "tokenizer.model").write_bytes(b"not a model" * 9)
    with pytest.raises(ArgumentError, match="is no SentencePiece model"):
        read_tokenizer_files(tmp_path)


def test_a_missing_library_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    put(tmp_path, "tokenizer.model", b"anything")
    with pytest.raises(ArgumentError, match=r"pip install 'weightshare\[language\]'"):
        read_tokenizer_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"[]", "expected a JSON object"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply|is not JSON"),
        (b'{"model": {}, "model": {}}', "the key 'model' twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b"{}", "expected model.vocab"),
        (fast({"x": 0, "y": 0}), "have the same id 0"),
        (fast({"x": -1}), "ids from 0"),
        (fast({"x": 2**31}), "ids from 0"),
        (fast({"\ud800": 0}), "lone surrogate"),
        (fast([["a"], []]), "pieces and their scores"),
        (fast([["a", 0], "b"]), "pieces and their scores"),
        (fast("abc"), "expected model.vocab"),
        (fast({"x": 0}, [{"id": 1}]), "with the text of a token"),
        (fast({"x": 0}, ["y"]), "with the text of a token"),
        (fast({"x": 0}, [{"content": "y"}]), "whole number as the id of 'y'"),
        (fast({"x": 0}, [{"content": "y", "id": True}]), "whole number as the id"),
        (fast({"x": 0}, [{"content": "x", "id": 5}]), "says 5 for 'x', the vocabulary says 0"),
        (fast({"x": 0}, [{"content": "y", "id": 0}]), "have the same id 0"),
        (fast({"x": 0}, [{"content": "y", "id": 1, "special": 1}]), "true or false as special"),
        ({**fast({"x": 0}), "added_tokens": {"y": 1}}, "added_tokens: expected a list"),
    ],
)
def test_hostile_tokenizers_are_refused_in_a_sentence(tmp_path, content, said):
    put(tmp_path, "tokenizer.json", content)
    with pytest.raises(ArgumentError, match=said) as raised:
        read_tokenizer_files(tmp_path)
    assert "tokenizer.json" in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("value", [{"x": "0"}, {"x": 1.5}, {"x": None}, {"x": False}])
def test_ids_that_are_no_whole_numbers_are_refused(tmp_path, value):
    put(tmp_path, "tokenizer.json", fast(value))
    with pytest.raises(ArgumentTypeError, match="whole number as the id of 'x'"):
        read_tokenizer_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "expected an object"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": {"content": "y"}}},
            "whole number",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": 5}}, "with the text of a token"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": "y"}}}, "the same id"),
        ("added_tokens.json", {"y": "5x"}, "whole number"),
        ("added_tokens.json", {"y": 10**12}, "ids from 0"),
    ],
)
def test_hostile_small_files_are_refused(tmp_path, name, content, said):
    put(tmp_path, "tokenizer.json", fast({"x": 0}))
    put(tmp_path, name, content)
    with pytest.raises(ArgumentError, match=said):
        read_tokenizer_files(tmp_path)


def test_a_file_of_100_mb_is_refused_before_it_is_read_whole(tmp_path):
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(ArgumentError, match="larger than 64 MB"):
        read_tokenizer_files(tmp_path)


def test_a_text_of_millions_of_brackets_is_not_parsed(tmp_path):
    put(tmp_path, "tokenizer.json", b'{"a": [' + b"[]," * 2_100_000 + b"1]}")
    with pytest.raises(ArgumentError, match="more values than a tokenizer can have"):
        read_tokenizer_files(tmp_path)


def test_folders_and_pipes_are_no_tokenizers(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ArgumentError, match=r"tokenizer\.json"):
        read_tokenizer_files(tmp_path)
    (tmp_path / "tokenizer.json").rmdir()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ArgumentError, match="expected a plain file"):
        read_tokenizer_files(tmp_path)


def test_an_empty_folder_has_no_tokenizer(tmp_path):
    assert not has_tokenizer(tmp_path)
    assert read_json(tmp_path / "x") is None
    assert read_text(tmp_path / "x" / "y") is None
    with pytest.raises(ArgumentError, match="has no tokenizer"):
        read_tokenizer_files(tmp_path)


def test_the_fingerprint_changes_with_every_file_that_is_read(tmp_path):
    seen = {fingerprint(tmp_path)}
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.txt"):
        put(tmp_path, name, b"{}")
        seen.add(fingerprint(tmp_path))
    assert len(seen) == 5
    put(tmp_path, "README.md", b"other")
    assert fingerprint(tmp_path) in seen


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    JSON,
    st.lists(JSON | st.fixed_dictionaries({"content": JSON, "id": JSON}), max_size=3) | JSON,
    JSON,
)
def test_no_content_leads_to_another_error(tmp_path_factory, vocabulary, added, decoder):
    folder = tmp_path_factory.mktemp("fuzz")
    put(folder, "tokenizer.json", {"model": {"vocab": vocabulary}, "added_tokens": added})
    put(folder, "tokenizer_config.json", {"added_tokens_decoder": decoder})
    said = str(folder)
    try:
        read = read_tokenizer_files(folder)
    except WeightshareError as error:
        said = str(error)
    else:
        assert sorted(read.ids.values()) == list(read.ids.values())
    assert str(folder) in said

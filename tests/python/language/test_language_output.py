"""Tokenizers that get tokens or lose some: their files, as the tokenizers library reads them."""

from __future__ import annotations

import json
import sys

import pytest

from weightshare.errors import ArgumentError
from weightshare.language.tokenizer_files import AddedToken, read_tokenizer_files
from weightshare.language.tokenizer_output import changed_files

NEW = [
    AddedToken("<|im_start|>", normalized=False, special=True),
    AddedToken("ÿ new\n", normalized=False),
    AddedToken("<|im_end|>", normalized=False, special=True),
]


def loaded(files):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(files["tokenizer.json"].decode())


def test_added_tokens_come_last_and_change_nothing_else(tmp_path, tokenizer, text):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9}))
    before = read_tokenizer_files(tmp_path)
    assert before.ids == tokenizer.get_vocab()
    files = changed_files(before, NEW)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    after = loaded(files)
    size = tokenizer.get_vocab_size()
    assert after.get_vocab() == {
        **tokenizer.get_vocab(),
        **{token.content: size + i for i, token in enumerate(NEW)},
    }
    for line in text[:3]:
        assert after.encode(line).ids == tokenizer.encode(line).ids
        assert after.decode(after.encode(line).ids) == tokenizer.decode(tokenizer.encode(line).ids)
    ids = after.encode("<|im_start|>" + text[0]).ids
    assert ids[0] == size
    assert size not in after.encode("<|im_start |>").ids
    config = json.loads(files["tokenizer_config.json"])
    assert config["model_max_length"] == 9
    listed = config["added_tokens_decoder"]
    assert listed[str(size)]["special"] is True
    assert listed[str(size + 1)] == NEW[1].flags()
    assert {listed[key]["content"] for key in listed} >= {"<s>", "</s>", "<|im_end|>"}


def test_what_was_written_is_read_again_and_written_the_same(tmp_path, tokenizer):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    files = changed_files(read_tokenizer_files(tmp_path), NEW)
    again = tmp_path / "again"
    again.mkdir()
    for name, content in files.items():
        (again / name).write_bytes(content)
    read = read_tokenizer_files(again)
    assert read.remarks == ()
    assert read.ids == loaded(files).get_vocab()
    assert all(read.added[token.content] == token for token in NEW)
    assert changed_files(read, []) == {}
    assert changed_files(read_tokenizer_files(tmp_path), NEW) == files


def test_the_last_tokens_can_be_taken_out(tmp_path, tokenizer, text):
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["extra"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer_files(tmp_path)
    kept = read.without_rows(size - 3)
    removed = read.ids.keys() - kept.ids.keys()
    assert len(removed) == 4
    files = changed_files(read, [AddedToken("new")], removed)
    after = loaded(files)
    assert after.get_vocab() == {**kept.ids, "new": size - 3}
    assert all(place < size - 3 for place in after.encode(text[0]).ids)


def test_a_tokenizer_without_tokenizer_json_gets_its_tokens_in_the_small_files(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    (tmp_path / "added_tokens.json").write_text('{"<p>": 2}')
    files = changed_files(read_tokenizer_files(tmp_path), NEW[:1])
    assert json.loads(files["added_tokens.json"]) == {"<p>": 2, "<|im_start|>": 3}
    listed = json.loads(files["tokenizer_config.json"])["added_tokens_decoder"]
    assert {place: entry["content"] for place, entry in listed.items()} == {
        "2": "<p>",
        "3": "<|im_start|>",
    }
    assert "tokenizer.json" not in files


def test_a_vocabulary_that_is_only_copied_loses_no_token(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\na\nb\n")
    (tmp_path / "added_tokens.json").write_text('{"<p>": 3}')
    read = read_tokenizer_files(tmp_path)
    assert json.loads(changed_files(read, [], {"<p>"})["added_tokens.json"]) == {}
    with pytest.raises(
        ArgumentError, match=r"vocab.txt: 1 of its tokens, such as 'b', have no row"
    ):
        changed_files(read, [], {"<p>", "b"})


def test_tokens_that_only_the_small_files_add_stay(tmp_path, tokenizer):
    size = tokenizer.get_vocab_size()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    entry = AddedToken("<pad>", special=True, normalized=False)
    config = {"added_tokens_decoder": {str(size): entry.flags()}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    files = changed_files(read_tokenizer_files(tmp_path), NEW[:1])
    after = loaded(files)
    assert after.token_to_id("<pad>") == size
    assert after.token_to_id("<|im_start|>") == size + 1


def save_with_holes(folder):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 5}, "merges": [], "unk_token": "a"}
    content = {"version": "1.0", "added_tokens": [], "model": model}
    for key in (
        "truncation",
        "padding",
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
    ):
        content[key] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_holes_that_an_added_token_would_fall_into_are_refused(tmp_path):
    save_with_holes(tmp_path)
    with pytest.raises(ArgumentError, match="would get the id 3, not 6"):
        changed_files(read_tokenizer_files(tmp_path), [AddedToken("new")])


def test_what_the_library_refuses_is_told_with_the_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    with pytest.raises(ArgumentError, match=r"tokenizer\.json: the tokenizers library refuses it"):
        changed_files(read_tokenizer_files(tmp_path), NEW)


def test_without_the_library_the_command_is_told(tmp_path, tokenizer, monkeypatch):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer_files(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert changed_files(read, []) == {}
    with pytest.raises(ArgumentError, match=r"pip install 'weightshare\[language\]'"):
        changed_files(read, NEW)

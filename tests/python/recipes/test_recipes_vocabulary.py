"""Recipes with several vocabularies: ids, rows and files, against the rules row by row."""

from __future__ import annotations

import json
import pickle

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from vocabularies import (
    WIDTH,
    A,
    B,
    C,
    Opened,
    ids_of,
    model_maker,
    planned,
    tables_of,
    tokenizer_json,
    told,
)
from weightshare.merging.rows_view import RowsView


@pytest.fixture
def model(make_model):
    return model_maker(make_model)


def oracle(vocabularies, tables, tokens, base):
    """The rules, token by token."""
    made = []
    for own, table in zip(vocabularies, tables, strict=True):
        rows = []
        for token in tokens:
            holders = [(v, t) for v, t in zip(vocabularies, tables, strict=True) if token in v]
            if token in own:
                rows.append(table[own.index(token)])
            elif not holders:
                rows.append(np.zeros(WIDTH))
            elif len(holders) > 1 and base is not None and token in vocabularies[base]:
                rows.append(tables[base][vocabularies[base].index(token)])
            else:
                rows.append(sum(t[v.index(token)] for v, t in holders) / len(holders))
        made.append(np.array(rows))
    return made


@pytest.mark.parametrize("base", [None, 0])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_union_keeps_the_first_ids_and_fills_rows_by_the_rules(model, base, name):
    paths = [model("a", A), model("b", B), model("c", C)]
    vocabulary, models, problems, warnings = planned(
        {"tokenizer_source": "union"}, *paths, base=base
    )
    assert problems == warnings == []
    tokens = [*A, "maybe", "both", "only"]
    assert ids_of(vocabulary) == {token: place for place, token in enumerate(tokens)}
    assert vocabulary.size == vocabulary.count == 7
    tables = [each.checkpoint[name].astype(np.float64) for each in models]
    expected = oracle([A, B, C], tables, tokens, base)
    for made, wanted in zip(tables_of(vocabulary, models, name), expected, strict=True):
        np.testing.assert_array_equal(made.astype(np.float64), wanted.astype(np.float32))


def test_a_token_that_two_hold_and_the_base_lacks_is_their_mean(model):
    paths = [model("a", A), model("b", B), model("c", C)]
    vocabulary, models, *_ = planned({"tokenizer_source": "union"}, *paths, base=0)
    made = tables_of(vocabulary, models)
    name = "model.embed_tokens.weight"
    mean = (models[1].checkpoint[name][4] + models[2].checkpoint[name][1]) / 2
    np.testing.assert_array_equal(made[0][5], mean)


def test_base_and_a_named_model_give_their_own_vocabulary(model):
    paths = [model("a", A), model("b", B)]
    for source, donor, tokens in (("base", 0, A), ("b", 1, B)):
        vocabulary, models, problems, _ = planned({"tokenizer_source": source}, *paths, base=0)
        assert problems == []
        assert (vocabulary.donor, vocabulary.count) == (donor, len(tokens))
        assert "tokenizer.json" not in vocabulary.files
        assert {copy.name for copy in vocabulary.copies} == {
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert all(copy.source.startswith(str(paths[donor])) for copy in vocabulary.copies)
        made = tables_of(vocabulary, models)
        own = models[donor].checkpoint["model.embed_tokens.weight"]
        np.testing.assert_array_equal(made[donor], own)
        assert made[1 - donor].shape == own.shape


def test_special_ids_of_the_configuration_follow_their_tokens(model):
    paths = [model("a", A), model("b", B)]
    (paths[0] / "generation_config.json").write_text('{"eos_token_id": [1, 2], "top_k": 3}')
    vocabulary, *_ = planned({"tokenizer_source": "b"}, *paths, base=0)
    config = {"vocab_size": 4, "eos_token_id": 1, "pad_token_id": None, "audio_config": {}}
    config["text_config"] = {"vocab_size": 4, "eos_token_id": 3}
    config["audio_config"] = {"vocab_size": 99}
    assert vocabulary.changed(config) == {
        "vocab_size": 5,
        "eos_token_id": 3,
        "pad_token_id": None,
        "text_config": {"vocab_size": 5, "eos_token_id": 1},
        "audio_config": {"vocab_size": 99},
    }
    written = json.loads(vocabulary.files["generation_config.json"])
    assert written == {"eos_token_id": [3, 2], "top_k": 3}


def test_padding_rounds_up_and_is_the_mean(model):
    paths = [model("a", [f"t{i}" for i in range(65)]), model("b", ["t0", "new"])]
    recipe = {"tokenizer": {"source": "union", "pad_to_multiple_of": 16}}
    vocabulary, models, problems, _ = planned(recipe, *paths)
    assert problems == []
    assert (vocabulary.count, vocabulary.size) == (66, 80)
    assert vocabulary.changed({"vocab_size": 65})["vocab_size"] == 80
    for made in tables_of(vocabulary, models):
        assert made.shape == (80, WIDTH)
        np.testing.assert_allclose(made[66:], np.tile(made[:66].mean(axis=0), (14, 1)), rtol=1e-6)


def test_every_kind_of_source_gives_a_new_token_its_row(model):
    paths = [model("a", A), model("b", B)]
    rows = {p.name: Opened(p).checkpoint["model.embed_tokens.weight"] for p in paths}
    cases = [
        ({"kind": "zero"}, np.zeros(WIDTH)),
        ({"kind": "model_token", "model": "b", "token": "maybe"}, rows["b"][2]),
        ({"kind": "model_token", "model": "b", "token_id": 4}, rows["b"][4]),
        ({"kind": "model_token", "model": "base", "token": "no"}, rows["a"][3]),
    ]
    for source, expected in cases:
        vocabulary, models, problems, _ = planned(told(**source), *paths, base=0)
        assert problems == []
        assert ids_of(vocabulary)["new"] == 6
        for made in tables_of(vocabulary, models):
            np.testing.assert_array_equal(made[6], expected)


def test_a_source_fills_only_those_who_lack_the_token_unless_it_is_forced(model):
    paths = [model("a", A), model("b", B), model("c", C)]
    rows = [Opened(p).checkpoint["model.embed_tokens.weight"] for p in paths]
    for force in (False, True):
        vocabulary, models, *_ = planned(told("both", force, source="c"), *paths, base=0)
        made = [table[5] for table in tables_of(vocabulary, models)]
        own = rows[2][1]
        np.testing.assert_array_equal(made, [own, own if force else rows[1][4], own])


def test_a_forced_zero_is_zero_in_every_model(model):
    paths = [model("a", A), model("b", B)]
    vocabulary, models, *_ = planned(told("yes", True, kind="zero"), *paths)
    for made in tables_of(vocabulary, models):
        assert not made[2].any()
        assert made[3].any()


def test_new_tokens_keep_the_flags_of_the_model_that_has_them(model):
    paths = [model("a", A), model("b", ["<unk>"], ["<|im_start|>"])]
    vocabulary, *_ = planned({"tokenizer_source": "union"}, *paths)
    written = json.loads(vocabulary.files["tokenizer.json"])
    entry = next(e for e in written["added_tokens"] if e["content"] == "<|im_start|>")
    assert (entry["special"], entry["normalized"]) == (True, False)


def test_the_merged_tokenizer_reads_the_bases_text_as_before(model):
    Tokenizer = pytest.importorskip("tokenizers").Tokenizer

    paths = [model("a", A), model("b", ["<unk>", "maybe"], ["<|x|>"])]
    vocabulary, *_ = planned({"tokenizer_source": "union"}, *paths)
    before = Tokenizer.from_file(str(paths[0] / "tokenizer.json"))
    after = Tokenizer.from_str(vocabulary.files["tokenizer.json"].decode())
    assert after.encode("yes no yes other").ids == before.encode("yes no yes other").ids
    assert after.decode([2, 3, 2]) == before.decode([2, 3, 2])
    assert after.encode("yes <|x|> maybe").tokens == ["yes", "<|x|>", "maybe"]


def test_a_model_with_the_same_vocabulary_is_read_as_it_is(model):
    paths = [model("a", A), model("b", A)]
    vocabulary, models, problems, warnings = planned({"tokenizer_source": "union"}, *paths)
    assert problems == warnings == []
    assert vocabulary.files == {}
    for index, each in enumerate(models):
        source = each.source(index, "lm_head.weight")
        assert vocabulary.source(index, source) is source


def test_rows_that_are_only_moved_keep_the_files_dtype_and_others_are_float32(model):
    bf16 = ml_dtypes.bfloat16
    paths = [model("a", A, dtype=bf16), model("b", A[::-1], dtype=bf16), model("c", C, dtype=bf16)]
    vocabulary, models, *_ = planned({"tokenizer_source": "base"}, *paths[:2])
    name = "model.embed_tokens.weight"
    assert vocabulary.source(1, models[1].source(1, name)).dtype == "BF16"
    made = tables_of(vocabulary, models)
    assert made[1].tobytes() == models[1].checkpoint[name][::-1].tobytes()
    vocabulary, models, *_ = planned({"tokenizer_source": "union"}, *paths)
    dtypes = [vocabulary.source(i, m.source(i, name)).dtype for i, m in enumerate(models)]
    assert dtypes == ["BF16", "BF16", "F32"]  # only the last lacks a token that two others have


def test_tables_are_told_from_names_and_rows(model):
    paths = [model("a", A), model("b", B)]
    vocabulary, *_ = planned({"tokenizer_source": "union"}, *paths)
    assert vocabulary.is_table("model.embed_tokens.weight", [(4, 6), (5, 6)])
    assert vocabulary.is_table("transformer.wte.weight", [(4, 6), None])
    assert vocabulary.is_table("lm_head.bias", [(4,), (5,)])
    assert vocabulary.is_table("final_logits_bias", [(1, 4), (1, 5)])
    assert vocabulary.is_table("some.table", [(4, 6), (5, 6)])
    assert vocabulary.is_table("lm_head.weight", [(8, 6), (5, 6)])
    assert not vocabulary.is_table("lm_head.weight", [(3, 6), (5, 6)])
    assert not vocabulary.is_table("model.layers.0.mlp.up_proj.weight", [(4, 6), (5, 6)])
    assert not vocabulary.is_table("transformer.wpe.weight", [(4, 6), (5, 6)])
    assert not vocabulary.is_table("model.norm.weight", [(4,), (5,)])
    assert not vocabulary.is_table("some.table", [(4, 6), (4, 6)])
    assert not vocabulary.is_table("model.embed_tokens.weight", [None, None])
    assert vocabulary.shape(0, (4, 6)) == (6, 6)
    assert vocabulary.shape(0, (4,)) == (6,)
    assert vocabulary.shape(1, (1, 5)) == (1, 6)
    assert vocabulary.shape(1, (2, 6)) == (2, 6)


def test_biases_are_tables_of_one_element_a_row(model):
    paths = [
        model("a", A, **{"lm_head.bias": np.float32([1, 2, 3, 4])}),
        model("b", B, **{"lm_head.bias": np.float32([10, 20, 30, 40, 50])}),
    ]
    vocabulary, models, *_ = planned({"tokenizer_source": "union"}, *paths)
    made = tables_of(vocabulary, models, "lm_head.bias")
    assert made[0].tolist() == [1, 2, 3, 4, 30, 50]
    assert made[1].tolist() == [10, 40, 3, 20, 30, 50]


def test_rows_of_a_tied_head_come_from_the_embeddings(make_model, model):
    path = model("a", A)
    tied = make_model(
        "b",
        {"model.embed_tokens.weight": np.full((5, WIDTH), 9, np.float32)},
        config={"vocab_size": 5, "tie_word_embeddings": True},
        files={"tokenizer.json": tokenizer_json(B)},
    )
    vocabulary, models, problems, _ = planned({"tokenizer_source": "union"}, path, tied)
    source = vocabulary.source(0, models[0].source(0, "lm_head.weight"))
    assert problems == []
    assert [table.name for table in source.view.tables] == [
        "lm_head.weight",
        "model.embed_tokens.weight",
    ]


def test_tables_that_do_not_fit_are_told_once(make_model, model):
    path = model("a", A)
    other = make_model(
        "b",
        {"model.embed_tokens.weight": np.ones((5, WIDTH + 1), np.float32)},
        config={"vocab_size": 5},
        files={"tokenizer.json": tokenizer_json(B)},
    )
    vocabulary, models, problems, _ = planned({"tokenizer_source": "union"}, path, other)
    for _ in range(2):
        vocabulary.source(0, models[0].source(0, "model.embed_tokens.weight"))
    assert len(problems) == 1
    assert "does not fit rows of 6 elements" in problems[0]


def test_tokens_beyond_the_rows_are_left_out(model):
    paths = [model("a", [*A, "late", "later"], rows=4), model("b", B)]
    vocabulary, models, problems, warnings = planned({"tokenizer_source": "union"}, *paths)
    assert problems == []
    assert "late" not in ids_of(vocabulary)
    assert ids_of(vocabulary)["maybe"] == 4
    assert "2 tokens have no row among the 4 of a" in warnings[0]
    assert [table.shape for table in tables_of(vocabulary, models)] == [(6, WIDTH)] * 2


def test_the_only_file_of_a_vocabulary_is_kept_when_added_tokens_go(make_model):
    files = {"vocab.txt": "[UNK]\na\nb\n", "added_tokens.json": '{"<p>": 3}'}
    table = np.ones((3, WIDTH), np.float32)
    path = make_model("slow", {"wte.weight": table}, config={"vocab_size": 3}, files=files)
    vocabulary, _, problems, warnings = planned({"tokenizer_source": "base"}, path)
    assert problems == []
    assert "'<p>'" in warnings[0]
    assert [copy.name for copy in vocabulary.copies] == ["vocab.txt"]
    assert json.loads(vocabulary.files["added_tokens.json"]) == {}


def test_rows_after_the_last_token_are_left_out_with_a_word(model):
    paths = [model("a", A, rows=8), model("b", B, rows=8)]
    vocabulary, models, problems, warnings = planned({"tokenizer_source": "union"}, *paths)
    assert problems == []
    assert "a has 8 rows, the vocabulary has 6 tokens" in warnings[0]
    assert "pad_to_multiple_of" in warnings[0]
    assert tables_of(vocabulary, models)[0].shape == (6, WIDTH)


def test_a_token_that_nobody_has_is_zero_with_a_warning(model):
    recipe = {"tokenizer": {"tokens": {"<new>": {"source": None}}}}
    paths = [model("a", A), model("b", B)]
    vocabulary, models, problems, warnings = planned(recipe, *paths)
    assert problems == []
    assert warnings == ["tokenizer: 1 token has no row in any model, and zeros instead: '<new>'"]
    assert not tables_of(vocabulary, models)[1][-1].any()


def test_marked_pieces_that_are_added_are_remarked_on(model):
    paths = [model("a", A), model("b", ["<unk>", "Ġword", "plain"])]
    *_, warnings = planned({"tokenizer_source": "union"}, *paths)
    assert "of the 2 tokens that are added" in warnings[0]
    assert "1 with 'Ġ'" in warnings[0]


def test_a_model_without_tokenizer_borrows_it_only_where_the_rows_agree(model):
    paths = [model("a", A), model("b", None, rows=4), model("c", None, rows=5)]
    *_, problems, warnings = planned({"tokenizer_source": "union"}, *paths[:2])
    assert problems == []
    assert "b has none; it is taken to be that of a, as both have 4 rows" in warnings[0]
    *_, problems, _ = planned({"tokenizer_source": "union"}, *paths)
    assert len(problems) == 1
    assert "c has none (looked in" in problems[0]


def test_holes_in_the_ids_of_the_base_keep_its_rows(model, tmp_path):
    paths = [model("a", ["<unk>", "</s>", "x", "yes", "no"]), model("b", A)]
    content = json.loads((paths[0] / "tokenizer.json").read_text())
    del content["model"]["vocab"]["x"]
    (paths[0] / "tokenizer.json").write_text(json.dumps(content))
    vocabulary, models, problems, _ = planned({"tokenizer_source": "union"}, *paths)
    assert problems == []
    own = models[0].checkpoint["model.embed_tokens.weight"]
    made = tables_of(vocabulary, models)
    assert made[0].tobytes() == own.tobytes()
    assert made[1][2].tobytes() == own[2].tobytes()


def test_members_alone_make_the_union(model):
    paths = [model("a", A), model("b", B), model("c", C)]
    recipe = told("new", source={"kind": "model_token", "model": "c", "token": "only"})
    vocabulary, models, problems, _ = planned(recipe, *paths, members=[0, 1])
    assert problems == []
    assert "only" not in ids_of(vocabulary)
    row = models[2].checkpoint["model.embed_tokens.weight"][2]
    np.testing.assert_array_equal(tables_of(vocabulary, models[:2] + models[2:])[0][6], row)


def test_a_planned_table_pickles_and_tells_its_sizes(model):
    paths = [model("a", A), model("b", B)]
    vocabulary, models, *_ = planned({"tokenizer_source": "union"}, *paths)
    source = vocabulary.source(1, models[1].source(1, "lm_head.weight"))
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert isinstance(again.view, RowsView)
    shown = source.view.to_json()
    assert (shown["rows"], shown["own"], shown["other"]) == (6, 5, 1)


def test_nothing_is_planned_when_nothing_is_asked(model):
    assert planned({}, model("a", A))[0] is None


def test_a_union_through_a_recipe_from_file_to_file(model, tmp_path):
    paths = [model("a", A), model("b", B), model("c", C)]
    for path in paths:
        weights = dict(ws.open_checkpoint(path).items())
        weights["model.layers.0.mlp.up_proj.weight"] = np.ones((3, 4), np.float32)
        ws.save_checkpoint(path, weights, overwrite=True)
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": str(path), "parameters": {"weight": weight}}
            for path, weight in zip(paths, (0.5, 0.25, 0.25), strict=True)
        ],
        "base_model": str(paths[0]),
        "tokenizer": {"source": "union", "pad_to_multiple_of": 4},
        "chat_template": "chatml",
    }
    plan = pickle.loads(pickle.dumps(ws.plan_merge(recipe)))
    assert json.dumps(plan.to_json())
    out = tmp_path / "out"
    ws.merge_checkpoints(recipe, out)
    vocabulary, models, *_ = planned(
        {"tokenizer": {"source": "union", "pad_to_multiple_of": 4}}, *paths, base=0
    )
    with ws.open_checkpoint(out) as merged:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            parts = [t.astype(np.float64) for t in tables_of(vocabulary, models, name)]
            expected = 0.5 * parts[0] + 0.25 * parts[1] + 0.25 * parts[2]
            np.testing.assert_allclose(merged[name], expected, rtol=1e-6, atol=1e-7)
            assert merged[name].shape == (8, WIDTH)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 8
    assert (out / "tokenizer.json").read_bytes() == vocabulary.files["tokenizer.json"]
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert "<|im_start|>" in config["chat_template"]
    assert config["added_tokens_decoder"]["4"]["content"] == "maybe"


def test_the_rules_hold_for_each_of_256k_rows():
    from weightshare.merging.rows_view import MEAN
    from weightshare.recipes.vocabulary_rows import RowRules

    size = 262_144
    maps = [np.arange(size, dtype=np.int32) for _ in range(3)]
    maps[1] = maps[1][::-1].copy()
    maps[2][::3] = -1
    rules = RowRules(maps, [0, 1, 2], None, {}, np.zeros(size, bool), 0, size)
    donor, place = rules.of_model(2)
    lacking = np.arange(0, size, 3)
    assert (donor[lacking] == MEAN).all()
    assert (np.delete(donor, lacking) == 2).all()
    assert (np.delete(place, lacking) == np.delete(maps[2], lacking)).all()
    begin, end = rules.starts[place[lacking]], rules.starts[place[lacking] + 1]
    assert (end - begin == 2).all()
    assert (rules.mean_donor[begin] == 0).all()
    assert (rules.mean_place[begin] == lacking).all()
    assert (rules.mean_donor[begin + 1] == 1).all()
    assert (rules.mean_place[begin + 1] == size - 1 - lacking).all()
    assert rules.needed([0, 1, 2], 3) == [size, size, size - 1]

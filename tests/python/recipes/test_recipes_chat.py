"""Chat templates: the known formats as they are rendered, and where they are written."""

from __future__ import annotations

import json

import pytest

import weightshare as ws
from weightshare.errors import RecipeError
from weightshare.recipes.chat import (
    TEMPLATES,
    plan_chat_template,
    read_chat_template,
    template_of,
)

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
OWN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def rendered(name, turns, prompt=True):
    jinja2 = pytest.importorskip("jinja2")
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message):
        raise ValueError(message)

    # As the readers of these templates set it up.
    room = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    room.globals["raise_exception"] = refuse
    return room.from_string(TEMPLATES[name]).render(
        messages=turns, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )


FORMATS = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": ("<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]", ""),
    "alpaca": (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n### Instruction:\nBye\n\n",
        "### Response:\n",
    ),
    "exaone": (
        "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
        "[|user|]Bye\n",
        "[|assistant|]",
    ),
}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_format_is_rendered_as_it_is_defined(name):
    turns, prompt = FORMATS[name]
    assert rendered(name, TURNS) == turns + prompt
    assert rendered(name, TURNS, prompt=False) == turns
    assert FORMATS.keys() == TEMPLATES.keys()


def test_formats_without_a_system_message():
    assert rendered("mistral", TURNS[1:2]) == "<s>[INST] Hi [/INST]"
    assert rendered("exaone", TURNS[1:2]).startswith("[|system|][|endofturn|]\n[|user|]Hi")
    opening = rendered("alpaca", TURNS[1:2])
    assert opening.startswith("Below is an instruction that describes a task.")
    assert opening.endswith("request.\n\n### Instruction:\nHi\n\n### Response:\n")


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("mistral", TURNS[2:]),
        ("mistral", TURNS[1:2] * 2),
        ("alpaca", [{**TURNS[1], "role": "tool"}]),
    ],
)
def test_formats_that_cannot_hold_a_conversation_say_so(name, turns):
    with pytest.raises(ValueError, match=r"expected user|unknown role"):
        rendered(name, turns)


@pytest.mark.parametrize("value", [None, "auto", *TEMPLATES, OWN])
def test_values_that_are_taken(value):
    problems = []
    assert read_chat_template(value, problems) == value
    assert problems == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("chatm", "unknown name 'chatm'; expected auto, alpaca, chatml, exaone, llama3, mistral"),
        ("llama 3", "Did you mean 'llama3'?"),
        ("{{ x }}", "unknown name '{{ x }}'"),
        ("a text without any brace in it", "a Jinja template of at least 20 characters"),
        ("", "unknown name ''"),
        (5, "got 5"),
        (["chatml"], "got ['chatml']"),
        ("{" * 1_000_001, "at most 1,000,000 characters"),
    ],
)
def test_values_that_are_none_are_refused_with_the_list(value, said):
    problems = []
    assert read_chat_template(value, problems) is None
    assert len(problems) == 1
    assert problems[0].startswith("chat_template: ")
    assert said in problems[0]


class Named:
    def __init__(self, path):
        self.path, self.label = path, path.name


def folder(tmp_path, name, config=None, **files):
    made = tmp_path / name
    made.mkdir()
    if config is not None:
        (made / "tokenizer_config.json").write_text(json.dumps(config))
    for file, text in files.items():
        (made / file.replace("_jinja", ".jinja")).write_text(text)
    return Named(made)


def written(asked, models, donor=0, files=None):
    problems, warnings = [], []
    found = plan_chat_template(asked, models, donor, files or {}, problems, warnings)
    return found, problems, warnings


def test_a_template_is_written_into_the_donors_configuration(tmp_path):
    models = [
        folder(tmp_path, "a", {"eos_token": "</s>", "chat_template": "old"}),
        folder(tmp_path, "b", {"eos_token": "x"}, chat_template_jinja="old"),
    ]
    found, *_ = written("chatml", models)
    assert set(found) == {"tokenizer_config.json"}
    config = json.loads(found["tokenizer_config.json"])
    assert config == {"eos_token": "</s>", "chat_template": TEMPLATES["chatml"]}
    found, *_ = written(OWN, models, donor=1)
    assert found["chat_template.jinja"].decode() == OWN
    assert json.loads(found["tokenizer_config.json"]) == {"eos_token": "x", "chat_template": OWN}
    found, *_ = written(OWN, models, files={"tokenizer_config.json": b'{"added": 1}'})
    assert json.loads(found["tokenizer_config.json"]) == {"added": 1, "chat_template": OWN}


def test_auto_is_the_most_common_one_and_the_earlier_of_two(tmp_path):
    models = [
        folder(tmp_path, "a", {"chat_template": "one"}),
        folder(tmp_path, "b", {}, chat_template_jinja="two"),
        folder(tmp_path, "c", {"chat_template": [{"name": "default", "template": "two"}]}),
        folder(tmp_path, "d"),
    ]
    assert [template_of(model.path) for model in models] == ["one", "two", "two", None]
    config = json.loads(written("auto", models)[0]["tokenizer_config.json"])
    assert config["chat_template"] == "two"
    config = json.loads(written("auto", models[:2])[0]["tokenizer_config.json"])
    assert config["chat_template"] == "one"


def test_auto_without_any_template_changes_nothing_and_says_so(tmp_path):
    found, problems, warnings = written("auto", [folder(tmp_path, "a", {})])
    assert (found, problems) == ({}, [])
    assert "finds no template" in warnings[0]
    assert written(None, [folder(tmp_path, "b", {})]) == ({}, [], [])


def test_a_damaged_configuration_is_a_problem(tmp_path):
    model = folder(tmp_path, "a")
    (model.path / "tokenizer_config.json").write_bytes(b"{")
    for asked in ("auto", "chatml"):
        found, problems, _ = written(asked, [model])
        assert found == {}
        assert "tokenizer_config.json: is not JSON" in problems[0]


def test_a_single_file_can_be_given_a_template(tmp_path):
    model = Named(tmp_path / "model.safetensors")
    model.path.write_bytes(b"")
    assert template_of(model.path) is None
    found, problems, _ = written("chatml", [model])
    assert problems == []
    assert set(found) == {"tokenizer_config.json"}


def test_a_recipe_writes_it_and_refuses_an_unknown_one(make_model, linear, tmp_path):
    files = {"tokenizer_config.json": "{}", "chat_template.jinja": "old"}
    paths = [make_model(name, config={}, files=files) for name in "ab"]
    out = tmp_path / "out"
    ws.merge_checkpoints(linear(*paths, chat_template="llama3"), out)
    assert (out / "chat_template.jinja").read_text() == TEMPLATES["llama3"]
    assert template_of(out) == TEMPLATES["llama3"]
    with pytest.raises(RecipeError, match="expected auto, alpaca, chatml, exaone"):
        ws.plan_merge(linear(*paths, chat_template="llama4"))

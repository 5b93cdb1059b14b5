"""The chat template of a merged model: from its inputs, one of the known formats, or a text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from weightshare.errors import ArgumentError
from weightshare.language.tokenizer_files import CONFIG_NAME, TEMPLATE_NAME, read_json, read_text
from weightshare.merging.registry import nearest

_SHORTEST = 20
_LONGEST = 1_000_000

# What every format does with a first message of the system's: `system` holds its text.
_SYSTEM_FIRST = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}"
)
# Formats whose turns are told apart by their order alone need that order.
_IN_TURNS = (
    "{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('expected user and assistant in turn') }}{%- endif -%}"
)
_ALPACA_OPENING = (
    "Below is an instruction that describes a task."
    " Write a response that appropriately completes the request."
)

TEMPLATES = {
    "alpaca": _SYSTEM_FIRST + "{{ (system or '" + _ALPACA_OPENING + "') + '\\n\\n' }}"
    "{%- for turn in turns -%}"
    "{%- if turn['role'] == 'user' -%}{{ '### Instruction:\\n' + turn['content'] + '\\n\\n' }}"
    "{%- elif turn['role'] == 'assistant' -%}"
    "{{ '### Response:\\n' + turn['content'] + eos_token + '\\n\\n' }}"
    "{%- else -%}{{ raise_exception('unknown role: ' + turn['role']) }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}",
    "chatml": "{%- for turn in messages -%}"
    "{{ '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}",
    "exaone": "{%- for turn in messages -%}"
    "{%- if loop.first and turn['role'] != 'system' -%}{{ '[|system|][|endofturn|]\\n' }}"
    "{%- endif -%}"
    "{{ '[|' + turn['role'] + '|]' + turn['content'] }}"
    "{{ '\\n' if turn['role'] == 'user' else '[|endofturn|]\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '[|assistant|]' }}{%- endif -%}",
    "llama3": "{{- bos_token -}}"
    "{%- for turn in messages -%}"
    "{{ '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- turn['content'] | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}",
    "mistral": _SYSTEM_FIRST + "{{- bos_token -}}"
    "{%- for turn in turns -%}" + _IN_TURNS + "{%- if turn['role'] == 'user' -%}"
    "{%- set before = system + '\\n\\n' if system and loop.first else '' -%}"
    "{{ '[INST] ' + before + turn['content'] + ' [/INST]' }}"
    "{%- elif turn['role'] == 'assistant' -%}{{ ' ' + turn['content'] + eos_token }}"
    "{%- endif -%}"
    "{%- endfor -%}",
}


class Model(Protocol):
    """What is asked of a model here; `weightshare.recipes.sources.SourceModel` is one."""

    label: str
    path: Path


def read_chat_template(value: object, problems: list[str]) -> str | None:
    """Read the key ``chat_template`` of a recipe.

    Parameters
    ----------
    value : object
        ``"auto"``, the name of a format, or the text of a Jinja template.
    problems : list of str
        Takes what is wrong.

    Returns
    -------
    str or None
        The value; None when there is none, or none that can be used.

    Examples
    --------
    >>> problems = []
    >>> read_chat_template("chatml", problems), read_chat_template("chatlm", problems)
    ('chatml', None)
    >>> problems[0][:52], problems[0][-22:]
    ("chat_template: unknown name 'chatlm'; expected auto,", "Did you mean 'chatml'?")
    """
    if value is None:
        return None
    names = ("auto", *TEMPLATES)
    expected = (
        f"expected {', '.join(names)}, or a Jinja template of at least {_SHORTEST} characters"
        " that holds '{'"
    )
    if not isinstance(value, str):
        problems.append(f"chat_template: {expected}, got {value!r}")
    elif value in names:
        return value
    elif len(value) > _LONGEST:
        problems.append(f"chat_template: expected at most {_LONGEST:,} characters")
    elif len(value) >= _SHORTEST and "{" in value:
        return value
    else:
        hint = nearest(value, names).removeprefix("; ").replace("did", "Did")
        problems.append(f"chat_template: unknown name {value!r}; {expected}. {hint}".rstrip())
    return None


def plan_chat_template(
    asked: str | None,
    models: Sequence[Model],
    donor: int,
    files: Mapping[str, bytes],
    problems: list[str],
    warnings: list[str],
) -> dict[str, bytes]:
    """Return the files that give the output its chat template.

    Parameters
    ----------
    asked : str or None
        From `read_chat_template`.
    models : sequence of SourceModel
        The plan's models, in their order.
    donor : int
        The model whose tokenizer files go along with the output.
    files : mapping of str to bytes
        Files that the vocabulary wrote already (``Vocabulary.files``), else empty.
    problems, warnings : list of str
        Take what is wrong, and what is probably not meant.

    Returns
    -------
    dict
        ``tokenizer_config.json``, and ``chat_template.jinja`` where the donor has that file;
        empty when nothing is asked. They replace copied files of the same names.
    """
    if asked is None:
        return {}
    folder = models[donor].path
    try:
        template = _most_common(models) if asked == "auto" else TEMPLATES.get(asked, asked)
        config = _config(folder, files)
        has_own_file = folder.is_dir() and (folder / TEMPLATE_NAME).is_file()
    except (ArgumentError, OSError) as error:
        problems.append(f"chat_template: {error}")
        return {}
    if template is None:
        warnings.append("chat_template: auto finds no template in any of the models; none is set")
        return {}
    config["chat_template"] = template
    written = {CONFIG_NAME: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()}
    if has_own_file:
        written[TEMPLATE_NAME] = template.encode()
    return written


def template_of(folder: Path) -> str | None:
    """Return the chat template of a model's folder, or None.

    Parameters
    ----------
    folder : Path
        A file has none.

    Raises
    ------
    ArgumentError
        A file that should hold it cannot be read.
    """
    if not folder.is_dir():
        return None
    own = read_text(folder / TEMPLATE_NAME)
    if own is not None:
        return own
    value = (read_json(folder / CONFIG_NAME) or {}).get("chat_template")
    if isinstance(value, list):
        named = {
            str(entry.get("name")): entry.get("template")
            for entry in value
            if isinstance(entry, dict)
        }
        value = named.get("default", next(iter(named.values()), None))
    return value if isinstance(value, str) else None


def _most_common(models: Sequence[Model]) -> str | None:
    found = [template_of(model.path) for model in models]
    counted = Counter(template for template in found if template is not None)
    # Of two that are equally common, that of the earlier model.
    return counted.most_common(1)[0][0] if counted else None


def _config(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    if CONFIG_NAME in files:
        written: dict[str, Any] = json.loads(files[CONFIG_NAME])
        return written
    return (read_json(folder / CONFIG_NAME) if folder.is_dir() else None) or {}

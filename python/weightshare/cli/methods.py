"""``weightshare methods``."""

from __future__ import annotations

import click

from weightshare.cli.output import facts_text, print_json
from weightshare.merging import Method, Parameter
from weightshare.merging import methods as all_methods


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def methods(as_json: bool) -> None:
    """List the merge methods, their parameters and their papers.

    \b
    Example:
      weightshare methods
    """
    known = all_methods().values()
    if as_json:
        print_json({"schema": 1, "methods": [_json(method) for method in known]})
        return
    click.echo("\n\n".join(facts_text(method.name, _facts(method)) for method in known))


def _facts(method: Method) -> list[tuple[str, str]]:
    beside = ", and a base" if method.needs_base else ""
    return [
        ("result", method.summary),
        ("models", method.allowed_models + beside),
        *((parameter.name, _text(parameter)) for parameter in method.parameters),
        ("source", method.source),
    ]


def _text(parameter: Parameter) -> str:
    scope = "for each model" if parameter.per_model else "once"
    default = "required" if parameter.required else f"default {_word(parameter)}"
    return f"{parameter.summary} ({scope}, {default})"


def _word(parameter: Parameter) -> str:
    return str(parameter.default).lower()


def _json(method: Method) -> dict[str, object]:
    return {
        "name": method.name,
        "summary": method.summary,
        "source": method.source,
        "needs_base": method.needs_base,
        "min_models": method.min_models,
        "max_models": method.max_models,
        "parameters": [
            {
                "name": parameter.name,
                "summary": parameter.summary,
                "kind": parameter.kind,
                "per_model": parameter.per_model,
                "required": parameter.required,
                "default": parameter.default,
            }
            for parameter in method.parameters
        ],
    }

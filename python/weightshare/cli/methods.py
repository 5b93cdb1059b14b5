"""``weightshare methods``."""

from __future__ import annotations

import textwrap

import click

from weightshare.cli.options import JSON
from weightshare.cli.output import print_json, show
from weightshare.merging import Method, Parameter
from weightshare.merging import methods as all_methods
from weightshare.merging.registry import get_method

_WIDTH = 79
_BASES = {
    "none": "",
    "required": ", and a base",
    "optional": ", and a base if wanted",
    "joins": "; a base is merged as one more",
}


@click.command()
@click.argument("name", required=False)
@JSON
def methods(name: str | None, as_json: bool) -> None:
    """List the merge methods; with NAME, tell its formula, parameters, paper.

    \b
    Example:
      weightshare methods ties
    """
    known = list(all_methods().values()) if name is None else [get_method(name)]
    if as_json:
        print_json({"schema": 1, "methods": [_json(method) for method in known]})
    elif name is None:
        width = max(len(method.name) for method in known)
        show("\n".join(_line(method, width) for method in known))
        show("\nweightshare methods NAME tells parameters, papers and differences.")
    else:
        show(_details(known[0]))


def _line(method: Method, width: int) -> str:
    return f"{method.name:<{width}}  {textwrap.shorten(method.summary, _WIDTH - width - 2)}"


def _details(method: Method) -> str:
    facts = [("result", method.summary), ("models", method.allowed_models + _BASES[method.base])]
    facts.append(("paper", method.source))
    if method.differs:
        facts.append(("mergekit", f"differs on purpose: {method.differs}"))
    lines = [method.name, *(_filled(f"  {title:<10}", text) for title, text in facts)]
    if method.parameters:
        width = max(len(parameter.name) for parameter in method.parameters)
        lines += ["", "parameters"]
        lines += [
            _filled(f"  {parameter.name:<{width}}  ", _text(parameter))
            for parameter in method.parameters
        ]
    return "\n".join(lines)


def _filled(start: str, text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _text(parameter: Parameter) -> str:
    scope = "for each model" if parameter.per_model else "once"
    facts = [scope, _kind(parameter), _default(parameter)]
    return f"{parameter.summary} ({', '.join(fact for fact in facts if fact)})"


def _kind(parameter: Parameter) -> str:
    words = {"bool": "true or false", "int": "whole number", "checkpoint": "path"}
    low, high = parameter.low != -float("inf"), parameter.high != float("inf")
    between = ""
    if low and high:
        between = f"{parameter.low:g} to {parameter.high:g}"
    elif low or high:
        between = f"at least {parameter.low:g}" if low else f"at most {parameter.high:g}"
    word = words.get(parameter.kind, "" if between else "number")
    return f"{word} {between}".strip()


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None:
        return "may be left out"
    value = parameter.default
    return f"default {str(value).lower() if isinstance(value, bool) else f'{value:g}'}"


def _json(method: Method) -> dict[str, object]:
    return {
        "name": method.name,
        "summary": method.summary,
        "source": method.source,
        "base": method.base,
        "needs_base": method.needs_base,
        "min_models": method.min_models,
        "max_models": method.max_models,
        "differs": method.differs,
        "parameters": [_parameter_json(parameter) for parameter in method.parameters],
    }


def _parameter_json(parameter: Parameter) -> dict[str, object]:
    # JSON has no infinity: no bound is null.
    low, high = (
        None if abs(bound) == float("inf") else bound for bound in (parameter.low, parameter.high)
    )
    return {
        "name": parameter.name,
        "summary": parameter.summary,
        "kind": parameter.kind,
        "per_model": parameter.per_model,
        "required": parameter.required,
        "default": parameter.default,
        "low": low,
        "high": high,
    }

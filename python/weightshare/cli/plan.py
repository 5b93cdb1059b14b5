"""``weightshare plan``."""

from __future__ import annotations

import click

from weightshare.cli.options import JSON, LENIENT
from weightshare.cli.output import plan_text, print_json, printable, remark, show, table_text
from weightshare.cli.recipe_argument import recipe_argument
from weightshare.merging.plan import MergePlan, PlannedTensor

_SOURCES_SHOWN = 4


@click.command()
@click.argument("recipe", type=click.Path(readable=False))
@click.option("--tensors", is_flag=True, help="Also list every output tensor and its sources.")
@LENIENT
@JSON
def plan(recipe: str, tensors: bool, lenient: bool, as_json: bool) -> None:
    """Say what merging by RECIPE would do; reads headers only, writes nothing.

    \b
    Example:
      weightshare plan recipe.yml --tensors
    """
    from weightshare.recipes import plan_merge

    planned = plan_merge(recipe_argument(recipe), lenient=lenient)
    if as_json:
        print_json(planned.to_json())
        return
    show(plan_text(planned))
    for name, each in (*planned.stages, ("", planned)):
        if tensors and each.tensors:
            show(f"\nTensors{' of ' * bool(name)}{printable(name)}")
            show(table_text(_row(each, tensor) for tensor in each.tensors))
        for warning in each.warnings:
            remark(f"warning: {name}{': ' * bool(name)}{warning}")


def _row(planned: MergePlan, tensor: PlannedTensor) -> tuple[str, str, str, str, str]:
    shape = str(list(tensor.shape))
    return tensor.name, tensor.dtype, shape, tensor.action, _sources(planned, tensor)


def _sources(planned: MergePlan, tensor: PlannedTensor) -> str:
    """Which models it is read from, and under which name where that is another."""
    read = tensor.sources[:1] if tensor.action == "copy" else tensor.sources
    texts = [
        planned.models[source.model].label
        + (f":{source.name}" if source.name != tensor.name else "")
        for source in read[:_SOURCES_SHOWN]
    ]
    if len(read) > _SOURCES_SHOWN:
        texts.append(f"and {len(read) - _SOURCES_SHOWN} more")
    return "from " + ", ".join(texts)

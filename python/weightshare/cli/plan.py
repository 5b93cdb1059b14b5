"""``weightshare plan``."""

from __future__ import annotations

import click

from weightshare.cli.output import facts_text, print_json, remark, table_text
from weightshare.cli.recipe_argument import recipe_argument
from weightshare.merging.plan import MergePlan


@click.command()
@click.argument("recipe", type=click.Path(readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as JSON.")
@click.option("--tensors", is_flag=True, help="Also list every output tensor.")
def plan(recipe: str, as_json: bool, tensors: bool) -> None:
    """Say what merging by RECIPE would do; reads headers only, writes nothing.

    \b
    Example:
      weightshare plan recipe.yml
    """
    from weightshare.recipes import plan_merge

    planned = plan_merge(recipe_argument(recipe))
    if as_json:
        print_json(planned.to_json())
        return
    click.echo(facts_text("Plan", planned.summary()))
    if tensors:
        click.echo(table_text(_rows(planned)))
    for warning in planned.warnings:
        remark(f"warning: {warning}")


def _rows(planned: MergePlan) -> list[tuple[str, str, str, str]]:
    return [
        (tensor.name, tensor.dtype, str(list(tensor.shape)), tensor.action)
        for tensor in planned.tensors
    ]

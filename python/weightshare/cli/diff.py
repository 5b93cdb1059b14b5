"""``weightshare diff``."""

from __future__ import annotations

import click

from weightshare.cli.options import JSON, NO_PROGRESS, THREADS
from weightshare.cli.output import facts_text, print_json, show, table_text

_SORTS = {"relative": "relative", "max": "max_abs", "cosine": "cosine", "sign": "sign"}
_SORTS |= {"name": "name"}


@click.command()
@click.argument("first", metavar="A", type=click.Path(readable=False))
@click.argument("second", metavar="B", type=click.Path(readable=False))
@click.option(
    "--sort",
    type=click.Choice(list(_SORTS)),
    default="relative",
    show_default=True,
    help="What changed most by this comes first.",
)
@click.option(
    "--top", type=click.IntRange(0), default=20, show_default=True, help="Tensors that are shown."
)
@click.option("--all", "every", is_flag=True, help="Show every tensor, identical ones too.")
@click.option("--exit-code", is_flag=True, help="End with 1 if they differ, with 0 if not.")
@JSON
@THREADS
@NO_PROGRESS
@click.pass_context
def diff(
    ctx: click.Context,
    first: str,
    second: str,
    sort: str,
    top: int,
    every: bool,
    exit_code: bool,
    as_json: bool,
    threads: int | None,
    no_progress: bool,
) -> None:
    """Say how checkpoint B differs from checkpoint A, tensor by tensor.

    \b
    relative  norm of B - A over the norm of A
    max abs   largest change of one element
    cosine    of the two tensors
    signs     equal signs, of the elements that are non-zero in both
    changed   elements that are not the same

    Weights are read in parts: memory does not grow with the model. The exit
    code is 0 whether or not they differ, unless --exit-code is given.

    \b
    Example:
      weightshare diff base merged --top 5
    """
    from weightshare.merging import compare_checkpoints

    found = compare_checkpoints(first, second, threads=threads, progress=not no_progress)
    ordered = found.sorted_by(_SORTS[sort])
    if as_json:
        print_json(found.to_json() | {"tensors": [tensor.to_json() for tensor in ordered]})
    else:
        show(facts_text("Difference", found.summary()))
        wanted = [tensor for tensor in ordered if every or not tensor.identical]
        shown = wanted if every else wanted[:top]
        if shown:
            show(table_text([found.heads, *(tensor.row for tensor in shown)]))
        if len(shown) < len(wanted):
            show(f"and {len(wanted) - len(shown)} more that differ (--all shows everything)")
    if exit_code and not found.identical:
        ctx.exit(1)

"""``weightshare verify``."""

from __future__ import annotations

import click

from weightshare.cli.exit_codes import BAD_INPUT
from weightshare.cli.options import JSON, NO_PROGRESS, THREADS
from weightshare.cli.output import facts_text, print_json, printable, remark, show


@click.command()
@click.argument("path", type=click.Path(readable=False))
@click.option(
    "--nan",
    type=click.Choice(["error", "warn", "ignore"]),
    default="warn",
    show_default=True,
    help="Whether NaN and infinity are a problem, a warning, or left out.",
)
@JSON
@THREADS
@NO_PROGRESS
@click.pass_context
def verify(
    ctx: click.Context,
    path: str,
    nan: str,
    as_json: bool,
    threads: int | None,
    no_progress: bool,
) -> None:
    """Check that the checkpoint at PATH is sound, a file or a folder.

    Headers, the index of the shards, the checksums that a merge wrote
    (provenance.json), NaN and infinity. All problems are told, and the exit code
    is 3 when there is one.

    \b
    Example:
      weightshare verify merged
    """
    from weightshare.merging.integrity import verify_checkpoint

    report = verify_checkpoint(path, nan=nan, threads=threads, progress=not no_progress)
    if as_json:
        print_json(report.to_json())
    else:
        show(facts_text("Damaged" if report.problems else "Sound", report.summary()))
        for problem in report.problems:
            first, *rest = problem.splitlines() or [""]
            show(f"problem: {printable(first)}")
            for line in rest:
                show(f"  {printable(line)}")
        for warning in report.warnings:
            remark(f"warning: {warning}")
    if report.problems:
        ctx.exit(BAD_INPUT)

"""``weightshare merge``: also a drop-in for ``mergekit-yaml``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from weightshare.cli.output import facts_text, print_json, remark, result_of
from weightshare.cli.recipe_argument import recipe_argument

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Options of mergekit-yaml that mean nothing without PyTorch, or that are always so here.
_FLAGS_WITHOUT_MEANING = (
    *("--cuda", "--lazy-unpickle", "--allow-crimes", "--low-cpu-memory", "--clone-tensors"),
    *("--trust-remote-code", "--read-to-gpu", "--multi-gpu", "--gpu-rich", "--async-write"),
)
_VALUES_WITHOUT_MEANING = (
    *("--device", "--transformers-cache", "--lora-merge-cache", "--lora-merge-dtype"),
    "--write-threads",
)
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([kmb]?)", re.IGNORECASE)


def _shard_bytes(ctx: click.Context, option: click.Parameter, value: str) -> int:
    """Read mergekit's sizes: a number with k, m or b for thousand, million, billion bytes."""
    from weightshare.errors import ArgumentError
    from weightshare.merging.sizes import parse_bytes

    found = _COUNT.fullmatch(value)
    factor = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
    try:
        count = int(float(found[1]) * factor[found[2].lower()]) if found else value
        return parse_bytes(count, "out-shard-size")
    except ArgumentError as error:
        raise click.BadParameter(str(error)) from error


_OPTIONS = (
    click.argument("recipe", type=click.Path(readable=False)),
    click.argument("out", type=click.Path(readable=False)),
    click.option("--overwrite", is_flag=True, help="Replace an output that exists."),
    click.option("--single-file", is_flag=True, help="Write OUT as one .safetensors file."),
    click.option(
        "--out-shard-size",
        default="5b",
        show_default=True,
        metavar="N[k|m|b]",
        callback=_shard_bytes,
        help="Largest bytes of weights in one file.",
    ),
    click.option(
        "--copy-tokenizer/--no-copy-tokenizer",
        default=True,
        show_default=True,
        help="Copy the tokenizer of the base, else of the first model.",
    ),
    click.option(
        "--write-model-card/--no-write-model-card",
        default=True,
        show_default=True,
        help="Write README.md and a copy of the recipe.",
    ),
    click.option(
        "--memory",
        default="512MB",
        show_default=True,
        metavar="SIZE",
        help="Budget of the whole process, such as 512MB or 2GiB.",
    ),
    click.option(
        "--threads",
        "--num-threads",
        "-j",
        type=click.IntRange(1, 1024),
        help="Threads; OMP_NUM_THREADS or all cores when not given.",
    ),
    click.option(
        "--nan",
        type=click.Choice(["error", "warn", "allow"]),
        default="error",
        show_default=True,
        help="When finite weights give NaN or infinity.",
    ),
    click.option(
        "--random-seed", type=int, default=0, show_default=True, help="Key of random numbers."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    click.option("--no-progress", is_flag=True, help="Show no progress on stderr."),
    click.option("--verbose", "-v", count=True, help="Print the plan first; -vv: tracebacks."),
    click.option("--quiet", "-q", is_flag=True, help="Print errors only."),
    click.option("--safe-serialization/--no-safe-serialization", default=None, hidden=True),
)


def _with_options(function: _Function) -> _Function:
    for name in _FLAGS_WITHOUT_MEANING:
        function = click.option(f"{name}/--no-{name[2:]}", default=None, hidden=True)(function)
    for name in _VALUES_WITHOUT_MEANING:
        function = click.option(name, default=None, hidden=True)(function)
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command()
@_with_options
@click.pass_context
def merge(ctx: click.Context, /, **options: Any) -> None:
    """Merge checkpoints by RECIPE into the folder OUT.

    RECIPE is YAML in mergekit's schema (- is standard input), and the options of mergekit-yaml are
    accepted. OUT appears complete or not at all.

    \b
    Example:
      weightshare merge recipe.yml merged --overwrite
    """
    from weightshare.merging.run import run_plan
    from weightshare.recipes import plan_merge

    out = _target(options["out"], options["single_file"])
    quiet = options["quiet"]
    if not quiet:
        _remark_ignored(options)
    planned = plan_merge(
        recipe_argument(options["recipe"]),
        max_shard_size=options["out_shard_size"],
        copy_tokenizer=options["copy_tokenizer"],
        write_model_card=options["write_model_card"],
        seed=options["random_seed"],
    )
    if options["verbose"] and not quiet:
        click.echo(facts_text("Plan", planned.summary()), err=True)
    report = run_plan(
        planned,
        out,
        overwrite=options["overwrite"],
        memory=options["memory"],
        threads=options["threads"],
        progress=not (quiet or options["no_progress"]),
        nan=options["nan"],
    )
    if not quiet:
        for warning in report.warnings:
            remark(f"warning: {warning}")
    with result_of(f"{out}: the merge is complete"):
        if options["as_json"]:
            print_json(report.to_json())
        elif not quiet:
            click.echo(facts_text("Merged", report.summary()))


def _target(out: str, single: bool) -> Path:
    if not out:
        raise click.UsageError("OUT: expected a path, got ''")
    if single and not out.endswith(".safetensors"):
        raise click.UsageError(f"--single-file: OUT must end in .safetensors, got {out!r}")
    return Path(out)


def _remark_ignored(options: dict[str, Any]) -> None:
    names = (*_FLAGS_WITHOUT_MEANING, *_VALUES_WITHOUT_MEANING)
    ignored = [name for name in names if options[name[2:].replace("-", "_")] is not None]
    if ignored:
        remark(f"no meaning here, ignored: {', '.join(sorted(ignored))}")
    if options["safe_serialization"] is False:
        remark("--no-safe-serialization is ignored: weights are always safetensors")

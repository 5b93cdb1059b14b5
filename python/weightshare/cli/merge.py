"""``weightshare merge``: also a drop-in for ``mergekit-yaml`` and ``mergekit-multi``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from weightshare.cli.options import JSON, LENIENT, NO_PROGRESS, THREADS, GroupedCommand
from weightshare.cli.output import facts_text, plan_text, print_json, remark, show
from weightshare.cli.recipe_argument import recipe_argument

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Options of mergekit-yaml that mean nothing without PyTorch, or that are always so here.
_FLAGS_WITHOUT_MEANING = (
    *("--cuda", "--lazy-unpickle", "--allow-crimes", "--low-cpu-memory", "--clone-tensors"),
    *("--trust-remote-code", "--read-to-gpu", "--multi-gpu", "--gpu-rich", "--async-write"),
    "--unsafe-truncate-embeddings",
)
_VALUES_WITHOUT_MEANING = (
    *("--device", "--lora-merge-cache", "--lora-merge-dtype", "--write-threads"),
)
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([kmb]?)", re.IGNORECASE)
_GROUPS = {
    "Output": (
        *("overwrite", "single_file", "out_shard_size", "copy_tokenizer", "write_model_card"),
        *("out_path", "resume"),
    ),
    "Recipe": ("lenient", "nan", "random_seed", "transformers_cache"),
    "Recipes of several documents": ("intermediates", "keep_intermediates"),
    "Machine": ("memory", "threads"),
    "What is told": ("as_json", "no_progress", "verbose", "quiet", "help"),
}


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
        raise click.BadParameter(
            f"expected a number of bytes, such as 500m, 5b or 5GiB, and at least 1, got {value!r}"
        ) from error


_OUTPUT = (
    click.argument("recipe", type=click.Path(readable=False)),
    click.argument("out", type=click.Path(readable=False), required=False),
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
    click.option("--out-path", metavar="OUT", help="The same as the argument OUT."),
    click.option(
        "--resume/--no-resume",
        default=True,
        show_default=True,
        help="Go on with an interrupted merge of the same recipe and inputs.",
    ),
)
_MEANING = (
    LENIENT,
    click.option(
        "--nan",
        type=click.Choice(["error", "warn", "ignore", "allow"]),
        metavar="[error|warn|ignore]",
        default="error",
        show_default=True,
        help="When finite weights give NaN or infinity.",
    ),
    click.option(
        "--random-seed", type=int, default=0, show_default=True, help="Key of random numbers."
    ),
    click.option(
        "--transformers-cache",
        metavar="DIR",
        help="Where models of the Hugging Face hub are looked for.",
    ),
    click.option(
        "--intermediates",
        "--intermediate-dir",
        "-I",
        metavar="DIR",
        help="Where the models that only other documents use are written.",
    ),
    click.option(
        "--keep-intermediates", is_flag=True, help="Leave them there; else they are removed."
    ),
)
_MACHINE = (
    click.option(
        "--memory",
        default="512MB",
        show_default=True,
        metavar="SIZE",
        help="Budget of the whole process, such as 512MB or 2GiB.",
    ),
    THREADS,
    JSON,
    NO_PROGRESS,
    click.option("--verbose", "-v", count=True, help="Print the plan first; -vv: tracebacks."),
    click.option("--quiet", "-q", is_flag=True, help="Print errors only."),
    click.option("--safe-serialization/--no-safe-serialization", default=None, hidden=True),
    click.option("--lazy/--no-lazy", default=None, hidden=True),
)


def _with_options(function: _Function) -> _Function:
    for name in _FLAGS_WITHOUT_MEANING:
        function = click.option(f"{name}/--no-{name[2:]}", default=None, hidden=True)(function)
    for name in _VALUES_WITHOUT_MEANING:
        function = click.option(name, default=None, hidden=True)(function)
    for option in reversed((*_OUTPUT, *_MEANING, *_MACHINE)):
        function = option(function)
    return function


@click.command(cls=GroupedCommand, groups=_GROUPS)
@_with_options
def merge(**options: Any) -> None:
    """Merge checkpoints by RECIPE into the folder OUT.

    RECIPE is YAML in mergekit's schema (- is standard input), and all options of
    mergekit-yaml are accepted; those that mean nothing here say so in one line.
    OUT appears complete or not at all. A merge that was cut off goes on where it
    stopped when the same command is given again.

    \b
    Example:
      weightshare merge recipe.yml merged --overwrite
    """
    from weightshare import recipes

    out = _target(options)
    quiet = options["quiet"]
    if not quiet:
        _remark_ignored(options)
    if options["transformers_cache"] is not None:
        os.environ["HF_HUB_CACHE"] = options["transformers_cache"]
    planned = recipes.plan_merge(
        recipe_argument(options["recipe"]),
        max_shard_size=options["out_shard_size"],
        copy_tokenizer=options["copy_tokenizer"],
        write_model_card=options["write_model_card"],
        seed=options["random_seed"],
        lenient=options["lenient"],
    )
    if options["verbose"] and not quiet:
        click.echo(plan_text(planned), err=True)
    report = recipes.merge_checkpoints(
        planned,
        out,
        resume=options["resume"] and options["lazy"] is not False,
        overwrite=options["overwrite"],
        memory=options["memory"],
        threads=options["threads"],
        progress=not (quiet or options["no_progress"]),
        nan=options["nan"],
        intermediates=options["intermediates"],
        keep_intermediates=options["keep_intermediates"],
    )
    if not quiet:
        for warning in report.warnings:
            remark(f"warning: {warning}")
    done = f"{out}: the merge is complete"
    if options["as_json"]:
        print_json(report.to_json(), done)
    elif not quiet:
        show(facts_text("Merged", report.summary()), done)


def _target(options: dict[str, Any]) -> Path:
    out, path = options["out"], options["out_path"]
    if out is not None and path is not None:
        raise click.UsageError("OUT and --out-path: expected one of them, got both")
    out = path if out is None else out
    if out is None:
        raise click.UsageError("Missing argument 'OUT'.")
    if not out:
        raise click.UsageError("OUT: expected a path, got ''")
    if options["single_file"] and not out.endswith(".safetensors"):
        raise click.UsageError(f"--single-file: OUT must end in .safetensors, got {out!r}")
    return Path(out)


def _remark_ignored(options: dict[str, Any]) -> None:
    names = (*_FLAGS_WITHOUT_MEANING, *_VALUES_WITHOUT_MEANING)
    ignored = [name for name in names if options[name[2:].replace("-", "_")] is not None]
    if ignored:
        remark(f"no meaning here, ignored: {', '.join(sorted(ignored))}")
    if options["safe_serialization"] is False:
        remark("--no-safe-serialization is ignored: weights are always safetensors")

"""``weightshare inspect``."""

from __future__ import annotations

import math
import os
from collections import Counter

import click

from weightshare.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from weightshare.cli.output import facts_text, print_json, table_text
from weightshare.merging.sizes import format_bytes

_ROWS_SHOWN = 40


@click.command()
@click.argument("path", type=click.Path(readable=False))
@click.option("--all", "every", is_flag=True, help="List every tensor, not the first 40.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(path: str, every: bool, as_json: bool) -> None:
    """List the tensors of the checkpoint at PATH, a file or a folder.

    \b
    Example:
      weightshare inspect merged
    """
    with open_checkpoint(path) as checkpoint:
        infos = [checkpoint.info(name) for name in checkpoint]
        if as_json:
            print_json(_json(path, checkpoint, infos))
            return
        click.echo(facts_text(path, _facts(checkpoint, infos)))
    shown = infos if every else infos[:_ROWS_SHOWN]
    if shown:
        click.echo(table_text(_row(info) for info in shown))
    if len(shown) < len(infos):
        click.echo(f"and {len(infos) - len(shown)} more (--all lists them)")


def _facts(checkpoint: Checkpoint, infos: list[TensorInfo]) -> list[tuple[str, str]]:
    dtypes = Counter(info.dtype for info in infos)
    facts = [
        ("files", str(len(checkpoint.files))),
        ("tensors", str(len(infos))),
        ("parameters", f"{sum(math.prod(info.shape) for info in infos):,}"),
        ("bytes", format_bytes(sum(info.nbytes for info in infos))),
        ("dtypes", ", ".join(f"{code} x {count}" for code, count in dtypes.items()) or "none"),
    ]
    metadata = ", ".join(f"{key}={value}" for key, value in checkpoint.metadata.items())
    return [*facts, ("metadata", metadata[:500])] if metadata else facts


def _row(info: TensorInfo) -> tuple[str, str, str, str]:
    return info.name, info.dtype, str(list(info.shape)), format_bytes(info.nbytes)


def _json(path: str, checkpoint: Checkpoint, infos: list[TensorInfo]) -> dict[str, object]:
    return {
        "schema": 1,
        "path": path,
        "metadata": checkpoint.metadata,
        "bytes": sum(info.nbytes for info in infos),
        "tensors": [
            {
                "name": info.name,
                "dtype": info.dtype,
                "shape": list(info.shape),
                "bytes": info.nbytes,
                "file": os.path.basename(info.file),
            }
            for info in infos
        ],
    }

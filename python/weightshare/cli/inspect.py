"""``weightshare inspect``."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence

import click

from weightshare.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from weightshare.cli.layers import Layers, hints_of, layers_of, read_config
from weightshare.cli.options import JSON
from weightshare.cli.output import facts_text, print_json, show, table_text
from weightshare.merging.sizes import format_bytes

_ROWS_SHOWN = 40


@click.command()
@click.argument("path", type=click.Path(readable=False))
@click.option("--all", "every", is_flag=True, help="List every tensor, layer by layer.")
@JSON
def inspect(path: str, every: bool, as_json: bool) -> None:
    """Show what the checkpoint at PATH holds, a file or a folder.

    Only headers are read. Layers that are alike are shown once.

    \b
    Example:
      weightshare inspect merged
    """
    with open_checkpoint(path) as checkpoint:
        infos = [checkpoint.info(name) for name in checkpoint]
        groups = layers_of(infos)
        hints = hints_of(infos, groups, read_config(path))
        if as_json:
            print_json(_json(path, checkpoint, infos, groups, hints))
            return
        show(facts_text(path, [*_facts(checkpoint, infos), *(("hint", h) for h in hints)]))
    rows = [_row(info) for info in infos] if every else _tree(groups)
    shown = rows if every else rows[:_ROWS_SHOWN]
    if shown:
        show(table_text(shown))
    if len(shown) < len(rows):
        show(f"and {len(rows) - len(shown)} more lines (--all lists every tensor)")


def _facts(checkpoint: Checkpoint, infos: list[TensorInfo]) -> list[tuple[str, str]]:
    facts = [
        ("files", str(len(checkpoint.files))),
        ("tensors", str(len(infos))),
        ("parameters", f"{_parameters(infos):,}"),
        ("bytes", format_bytes(sum(info.nbytes for info in infos))),
        ("dtypes", ", ".join(f"{code} x {n}" for code, n in _dtypes(infos).items()) or "none"),
    ]
    metadata = ", ".join(f"{key}={value}" for key, value in checkpoint.metadata.items())
    return [*facts, ("metadata", metadata[:500])] if metadata else facts


def _dtypes(infos: Sequence[TensorInfo]) -> dict[str, int]:
    return dict(Counter(info.dtype for info in infos).most_common())


def _parameters(infos: Sequence[TensorInfo]) -> int:
    return sum(math.prod(info.shape) for info in infos)


def _tree(groups: Sequence[Layers]) -> list[tuple[str, str, str, str]]:
    rows = []
    for group in groups:
        if len(group.numbers) < 2:
            rows += [_row(info) for info in group.infos]
            continue
        size = format_bytes(group.nbytes)
        rows.append((group.name, f"x {len(group.numbers)}", f"{len(group.infos)} tensors", size))
        rows += [(f"  {group.local(info)}", *_row(info)[1:]) for info in group.infos]
    return rows


def _row(info: TensorInfo) -> tuple[str, str, str, str]:
    return info.name, info.dtype, str(list(info.shape)), format_bytes(info.nbytes)


def _json(
    path: str,
    checkpoint: Checkpoint,
    infos: list[TensorInfo],
    groups: list[Layers],
    hints: list[str],
) -> dict[str, object]:
    return {
        "schema": 1,
        "path": path,
        "metadata": checkpoint.metadata,
        "parameters": _parameters(infos),
        "bytes": sum(info.nbytes for info in infos),
        "dtypes": _dtypes(infos),
        "hints": hints,
        "layers": [
            {
                "stack": group.stack,
                "numbers": list(group.numbers),
                "tensors": [group.local(info) for info in group.infos],
                "parameters": group.parameters,
                "bytes": group.nbytes,
            }
            for group in groups
            if group.numbers
        ],
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

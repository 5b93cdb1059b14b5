"""Writing results to stdout and remarks to stderr."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from weightshare.merging.plan import MergePlan


def print_json(result: object, done: str = "") -> None:
    """Write one result as JSON to stdout; `done` as in `show`."""
    # In an encoding other than UTF-8 every letter beyond ASCII is an escape, and in UTF-8 the bytes
    # of a path that are no text.
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    text = json.dumps(result, indent=2, ensure_ascii=encoding != "utf-8")
    show(text.encode("utf-8", "backslashreplace").decode(), done)


def show(text: str, done: str = "") -> None:
    """Write lines to stdout.

    Parameters
    ----------
    text : str
        The lines.
    done : str
        What is complete even if they cannot be written, for the message.

    Raises
    ------
    OutputError
        Stdout cannot be written.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        from weightshare.merging.files import output_error

        # Python must not try to flush what is left at its end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise output_error(
            error, f"{done}, but standard output" if done else "standard output"
        ) from error


def remark(text: str) -> None:
    """Write one line to stderr."""
    click.echo(f"weightshare: {printable(text)}", err=True)


def facts_text(title: str, facts: Sequence[tuple[str, str]]) -> str:
    """Return pairs of a title and a sentence as aligned lines."""
    width = max(len(name) for name, _ in facts) + 2
    lines = (f"  {name:<{width}}{printable(fact)}" for name, fact in facts)
    return "\n".join([printable(title), *lines])


def plan_text(plan: MergePlan) -> str:
    """Return a plan's main facts, after those of the merges that come first."""
    plans = [*((f"Plan of {name}", stage) for name, stage in plan.stages), ("Plan", plan)]
    return "\n".join(facts_text(title, stage.summary()) for title, stage in plans)


def table_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of text as aligned columns.

    Examples
    --------
    >>> print(table_text([("a", "bc"), ("def", "g")]))
    a    bc
    def  g
    """
    cells = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str) -> str:
    """Return a name from a file without control characters, which could drive the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)

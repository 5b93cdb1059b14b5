"""How the demo speaks: short paragraphs and aligned tables, less than 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import click

from weightshare.cli.demo_sites import Site
from weightshare.cli.demo_training import Matrix, Outcome
from weightshare.cli.demo_verdict import FamilyVerdict

_WIDTH = 77
_HEADS = {"alone": "alone", "longer": "longer", "equally": "equally", "similarity": "by similarity"}


class Story:
    """Writes to stdout, or nowhere when it is silent."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent

    def title(self, text: str) -> None:
        """Write a heading."""
        self._write(f"{text}\n")

    def paragraph(self, text: str) -> None:
        """Write wrapped text."""
        lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
        self._write("\n".join(lines) + "\n")

    def lines(self, lines: Sequence[str]) -> None:
        """Write lines as they are, indented."""
        self._write("\n".join(f"  {line}".rstrip() for line in lines) + "\n")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write columns: the first to the left, numbers to the right."""
        self.lines(aligned([head, *rows]))

    def blank(self) -> None:
        """Write an empty line."""
        self._write("")

    def _write(self, text: str) -> None:
        if not self.silent:
            click.echo(text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines; columns whose body is numbers are set to the right.

    Examples
    --------
    >>> aligned([("site", "gain"), ("a", "1.5"), ("bb", "10.0")])
    ['site  gain', 'a      1.5', 'bb    10.0']
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [all(cell[:1] in "+-.0123456789" for cell in column[1:]) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


def site_rows(sites: Sequence[Site]) -> list[tuple[str, str, str, str]]:
    """Return the rows of the first table."""
    return [(site.name, site.sees, f"{len(site.y)}", f"{len(site.y_held):,}") for site in sites]


def matrix_rows(sites: Sequence[Site], values: Matrix, form: str) -> list[list[str]]:
    """Return the rows of a square table, named by the sites."""
    return [
        [site.name, *(form.format(value + 0.0) for value in row)]
        for site, row in zip(sites, values.round(4), strict=True)
    ]


def accuracy_table(
    outcomes: Sequence[Outcome], sites: Sequence[Site], verdict: FamilyVerdict
) -> tuple[list[str], list[list[str]]]:
    """Return the head and rows of mean accuracies, in per cent, and of the gain."""
    rows = []
    for k, site in enumerate(sites):
        means = [
            sum(outcome.accuracies[way][k] for outcome in outcomes) / len(outcomes)
            for way in _HEADS
        ]
        gain = verdict.sites[site.name]
        rows.append([site.name, *(f"{100 * mean:.1f}" for mean in means), gain.text])
    return ["site", *_HEADS.values(), "gain"], rows

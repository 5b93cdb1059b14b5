"""Options that several commands have, and help that groups them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
THREADS = click.option(
    "--threads",
    "--num-threads",
    "-j",
    type=click.IntRange(1, 1024),
    help="Threads; OMP_NUM_THREADS or all cores when not given.",
)
NO_PROGRESS = click.option("--no-progress", is_flag=True, help="Show no progress on stderr.")
LENIENT = click.option(
    "--lenient",
    is_flag=True,
    help="Unknown keys and parameters, and tensors that a model lacks, are warnings.",
)


class GroupedCommand(click.Command):
    """A command whose help has a section for each group of options.

    Parameters
    ----------
    groups : mapping of str to sequence of str
        Title: names of the parameters, in their order. Others stand under "Options".
    """

    def __init__(
        self, *arguments: Any, groups: Mapping[str, Sequence[str]] | None = None, **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self.groups = groups or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups, then the options that are in none."""
        options = [known for known in self.get_params(ctx) if isinstance(known, click.Option)]
        records = {option.name: option.get_help_record(ctx) for option in options}
        placed = {name for names in self.groups.values() for name in names}
        rest = [name for name in records if name not in placed]
        for title, names in (*self.groups.items(), ("Options", rest)):
            rows = [record for name in names if (record := records.get(name)) is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

"""The commands by name; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import click

import weightshare

# Group: {name: help in the list}. Listed here, so that --help imports no command.
_GROUPS = {
    "Merge": {
        "merge": "merge checkpoints by a recipe",
        "plan": "say what a merge would do; reads headers only",
        "methods": "list the merge methods, or tell all about one",
    },
    "Look at checkpoints": {
        "inspect": "show layers, tensors, dtypes and sizes",
        "diff": "say how two checkpoints differ, tensor by tensor",
        "similarity": "say how alike checkpoints are",
        "verify": "check headers, index, checksums, NaN",
    },
    "More": {
        "demo": "train, share, merge on real digits",
        "completion": "print the completion script of a shell",
    },
}
_COMMANDS = {name: text for commands in _GROUPS.values() for name, text in commands.items()}


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of their use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"weightshare.cli.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the lists of commands without importing them."""
        width = max(map(len, _COMMANDS))
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", text) for name, text in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one is nearest."""
        from weightshare.merging.registry import nearest

        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{nearest(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 79},
)
@click.version_option(weightshare.__version__, prog_name="weightshare")
def group() -> None:
    """Share weights between models.

    \b
    Example:
      weightshare merge recipe.yml merged

    Exit codes: 0 done, 1 unexpected, 2 usage or recipe, 3 bad or missing input
    file, 4 disk or memory, 5 output locked, 6 NaN policy, 130 interrupted, 143
    terminated.
    """

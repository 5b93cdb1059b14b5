"""The commands by name; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import click

import weightshare

# Name: (module, help in the list). Listed here, so that --help imports no command.
_COMMANDS = {
    "merge": ("weightshare.cli.merge", "merge checkpoints by a recipe"),
    "plan": ("weightshare.cli.plan", "say what a merge would do; reads headers only"),
    "inspect": ("weightshare.cli.inspect", "list the tensors of a checkpoint"),
    "methods": ("weightshare.cli.methods", "list the merge methods and their parameters"),
    "demo": ("weightshare.cli.demo", "train, share, merge on real digits"),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of their use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

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

    Exit codes: 0 done, 1 unexpected, 2 usage or recipe, 3 bad input file, 4 disk
    or memory, 5 output locked, 6 NaN policy, 130 interrupted, 143 terminated.
    """

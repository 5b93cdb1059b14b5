"""``weightshare completion``."""

from __future__ import annotations

import click

from weightshare.cli.output import show


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    \b
    Example:
      weightshare completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    from weightshare.cli.group import group

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"SHELL: this version of click knows no completion for {shell}")
    script = kind(group, {}, "weightshare", "_WEIGHTSHARE_COMPLETE")
    # Not source(): that asks the installed shell for its version, and there may be none.
    show(script.source_template % script.source_vars())

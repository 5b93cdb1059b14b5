"""The argument RECIPE: a path, or ``-`` for standard input."""

from __future__ import annotations

import sys
from pathlib import Path

import click


def recipe_argument(argument: str) -> Path | str:
    """Return the recipe to be planned: its path, or its text when it comes from stdin."""
    from weightshare.errors import RecipeError
    from weightshare.recipes.load import MAX_BYTES

    if not argument:
        raise click.UsageError("RECIPE: expected a path, or - for standard input, got ''")
    if argument != "-":
        return Path(argument)
    try:
        # The line break makes it a text even if it has but one line.
        return sys.stdin.buffer.read(MAX_BYTES + 1).decode("utf-8-sig") + "\n"
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe: standard input is not UTF-8 text: {error}") from error

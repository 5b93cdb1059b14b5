"""The command line: ``weightshare``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process when None.

    Raises
    ------
    SystemExit
        Always: 0 done, 1 unexpected, 2 usage or recipe, 3 bad input file, 4 disk or memory,
        5 output locked, 6 NaN policy, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(given))


def _run(arguments: list[str]) -> int:
    import click

    from weightshare.cli.group import group

    try:
        code = group.main(args=arguments, prog_name="weightshare", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("weightshare: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; Python must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _report(error, verbose=_is_verbose(arguments))


def _report(error: Exception, *, verbose: bool) -> int:
    from weightshare.cli.exit_codes import exit_code

    code = exit_code(error)
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    problems = getattr(error, "problems", ())
    text = str(error) if code != 1 else f"{type(error).__name__}: {error}"
    if len(problems) > 1:
        text = "\n  - ".join([f"{len(problems)} problems", *problems])
    print(f"weightshare: error: {text}", file=sys.stderr)
    if code == 1 and not verbose:
        print("weightshare: this is unexpected; -vv shows where it happened", file=sys.stderr)
    return code


def _is_verbose(arguments: Sequence[str]) -> bool:
    return arguments.count("-v") + arguments.count("--verbose") > 1 or "-vv" in arguments

"""The command line: ``weightshare``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process when None.

    Raises
    ------
    SystemExit
        Always: 0 done, 1 unexpected, 2 usage or recipe, 3 bad or missing input file, 4 disk or memory,
        5 output locked, 6 NaN policy, 130 interrupted, 143 terminated.
    """
    from weightshare.cli.streams import make_usable

    given = list(sys.argv[1:] if arguments is None else arguments)
    make_usable()
    try:
        with _terminable():
            code = _run(given)
    except _Terminated:
        print("weightshare: terminated", file=sys.stderr)
        code = 128 + signal.SIGTERM
    sys.exit(code)


class _Terminated(BaseException):
    """SIGTERM came; not an Exception, so that nothing but the end of the process takes it."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that unfinished output is removed before the end."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop the removal
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: signals are not ours
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    from weightshare.cli.output import printable

    code = exit_code(error)
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    problems = getattr(error, "problems", ())
    text = str(error) if code != 1 else f"{type(error).__name__}: {error}"
    if len(problems) > 1:
        indented = [problem.replace("\n", "\n    ") for problem in problems]
        text = "\n  - ".join([f"{len(problems)} problems", *indented])
    # Names from files stand in messages too.
    text = "\n".join(map(printable, text.split("\n")))
    print(f"weightshare: error: {text}", file=sys.stderr)
    if code == 1 and not verbose:
        print("weightshare: this is unexpected; -vv shows where it happened", file=sys.stderr)
    return code


def _is_verbose(arguments: Sequence[str]) -> bool:
    return arguments.count("-v") + arguments.count("--verbose") > 1 or "-vv" in arguments

"""Command lines: parsing, one-line errors and exit statuses."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

from tyro.conf import UseAppendAction

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.signals import Interrupted

T = TypeVar("T")

PluginNames = Annotated[tuple[str, ...], UseAppendAction]  # `--plugin A --plugin B`


def parse(
    kind: Callable[..., T],
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    default: T | None = None,
) -> T:
    """Fills the dataclass `kind` from command-line arguments, by tyro.

    `default` holds the values of fields that are not given.

    Raises:
      UserError: a flag is unknown, or a value has the wrong type or is out of range.
    """
    import tyro

    defaults: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind,
                args=arguments,
                prog=program,
                description=description,
                config=(tyro.conf.FlagCreatePairsOff,),
                **defaults,
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise
        # tyro draws a box with a title, lines of text, rules and a reference to the help.
        lines = [line.strip("│ ").strip() for line in errors.getvalue().splitlines()]
        lines = [line for line in lines if line and not re.match("[╭╰─]", line)]
        message = " ".join(line for line in lines if "full helptext" not in line)
        raise UserError(f"{message.rstrip('.')}; see {program} --help") from None


def status_of(main: Callable[[], int | None]) -> int | None:
    """Calls `main` and returns its exit status; a `UserError` is printed in one line, status 2."""
    try:
        status = main()
        sys.stdout.flush()  # a closed pipe must be noticed here, not at interpreter exit
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    except Interrupted as interrupted:
        print("stopped", file=sys.stderr)
        status = interrupted.status
    except BrokenPipeError:  # the reader of the output, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        print(f"error: {error}; give another path", file=sys.stderr)
        status = 2
    return status


def run_script(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Calls `main` with the command-line arguments and exits with its status."""
    sys.exit(status_of(lambda: main(sys.argv[1:])))

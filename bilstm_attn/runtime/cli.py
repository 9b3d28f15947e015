"""Command lines: parsing, one-line errors, exit statuses."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

from tyro.conf import UseAppendAction

from bilstm_attn.errors import UserError

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
    """Returns `kind`, a dataclass, filled from the command line by tyro.

    Raises:
      UserError: an unknown flag, or a value of the wrong type or out of range, in one line.
    """
    import tyro

    given: dict[str, Any] = {} if default is None else {"default": default}
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                kind,
                args=arguments,
                prog=program,
                description=description,
                config=(tyro.conf.FlagCreatePairsOff,),
                **given,
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        # tyro draws a box: its title, its lines, rules between them, and where the help is.
        lines = [line.strip("│ ").strip() for line in box.getvalue().splitlines()]
        lines = [line for line in lines if line and not re.match("[╭╰─]", line)]
        message = " ".join(line for line in lines if "full helptext" not in line)
        raise UserError(f"{message.rstrip('.')}; see {program} --help") from None


def status_of(main: Callable[[], int | None]) -> int | None:
    """Returns the exit status of `main`; a `UserError` becomes one line and status 2."""
    try:
        status = main()
        sys.stdout.flush()  # here, where a closed pipe is understood, not on the way out
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader, as head does, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        print(f"error: {error}; give another path", file=sys.stderr)
        status = 2
    return status


def run_script(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs `main` on the command line and exits with its status."""
    sys.exit(status_of(lambda: main(sys.argv[1:])))

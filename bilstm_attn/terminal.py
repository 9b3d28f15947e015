"""What a person sees: lines, bars, and one-line errors. On a file or a pipe, lines alone."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable
from unicodedata import category

from rich.color import Color
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.style import Style
from rich.text import Text

from bilstm_attn.errors import UserError

T = TypeVar("T")
YELLOW, BLUE, ORANGE = (255, 255, 0), (90, 160, 230), (255, 160, 60)


@runtime_checkable
class Bar(Protocol):
    """A bar that is being drawn."""

    def advance(self, units: int) -> None:
        """Moves on by `units`."""

    def describe(self, what: str) -> None:
        """Changes the words behind the bar."""


class _Speed(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed and speed >= 10 else "", style="progress.data.speed")


class Show:
    """Prints a run's progress to a terminal; a quiet one nothing."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False):
        self.console = console or Console(highlight=False, soft_wrap=True, quiet=quiet)

    def say(self, line: str) -> None:
        """Prints a line."""
        self.console.print(line, markup=False)

    def progress(self) -> Progress:
        """Returns a display for bars; it draws nothing where there is no terminal."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    @contextlib.contextmanager
    def bar(self, description: str, total: int, done: int) -> Iterator[Bar]:
        """Draws a bar of `total` units, `done` of them already done."""
        with self.progress() as progress:
            task = progress.add_task(description, total=total, completed=done, what="")

            class Drawn:
                def advance(self, units: int) -> None:
                    progress.advance(task, units)

                def describe(self, what: str) -> None:
                    progress.update(task, what=what)

            yield Drawn()

    def epoch(self, record: dict[str, Any], split: str, prefix: str = "") -> None:
        """Prints the line of an epoch."""
        self.say(
            f"{prefix}epoch {record['epoch']}  train loss {record['train_loss']:.4f} "
            f"accuracy {percent(record['train_accuracy'])}  "
            f"{split} loss {record[f'{split}_loss']:.4f} "
            f"accuracy {percent(record[f'{split}_accuracy'])}  "
            f"{record['reviews_per_second']:,.0f} reviews/s  {record['seconds']:.1f} s"
        )


def shades_of(weights: Sequence[float], *, signed: bool) -> list[float]:
    """Returns how strong each weight's shade is, from 0 to 1 for the largest.

    Signed weights' from a weight of 0; others' from the least, since attention may be nearly even.

    >>> shades_of([-1.0, 0.0, 2.0], signed=True)
    [0.5, 0.0, 1.0]
    >>> shades_of([0.25, 0.5], signed=False)
    [0.0, 1.0]
    """
    sizes = [abs(weight) for weight in weights]
    least = 0.0 if signed else min(sizes, default=0.0)
    span = max(sizes, default=0.0) - least
    return [(size - least) / span if span > 0 else 0.0 for size in sizes]


def shade_words(
    text: str, places: Sequence[tuple[int, int]], weights: Sequence[float], *, signed: bool
) -> Text:
    """Returns `text` with the words at `places` shaded by their weights' share of the largest.

    Yellow, or if weights are signed blue above 0 and orange below.
    """
    # rich drops control characters, and with them the places after would move.
    shaded = Text("".join(c if category(c) != "Cc" or c in "\n\t" else " " for c in text))
    shades = shades_of(weights, signed=signed)
    for (start, stop), weight, share in zip(places, weights, shades, strict=True):
        full = YELLOW if not signed else BLUE if weight > 0 else ORANGE
        background = Color.from_rgb(*(round(255 - share * (255 - part)) for part in full))
        shaded.stylize(Style(color="black", bgcolor=background), start, stop)
    return shaded


def percent(share: float) -> str:
    """Returns `0.87934` as `87.93 %`."""
    return f"{100 * share:.2f} %"


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

"""Terminal output: lines and progress bars. Into a file or a pipe, only lines are written."""

import contextlib
from collections.abc import Iterator
from typing import Protocol, TypeVar, runtime_checkable

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")


@runtime_checkable
class Bar(Protocol):
    """A progress bar."""

    def advance(self, units: int) -> None:
        """Adds `units` to the finished units."""

    def describe(self, text: str) -> None:
        """Sets the text after the bar."""


class _Speed(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed and speed >= 10 else "", style="progress.data.speed")


class Console:
    """Prints lines and progress bars to a terminal; a quiet console prints nothing."""

    def __init__(self, rich: RichConsole | None = None, *, quiet: bool = False):
        self.rich = rich or RichConsole(highlight=False, soft_wrap=True, quiet=quiet)

    def print(self, line: str) -> None:
        """Prints one line; square brackets are not markup."""
        self.rich.print(line, markup=False)

    def progress(self) -> Progress:
        """Returns a display for progress bars, which is blank if the output is not a terminal."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.rich,
            transient=True,
            disable=not self.rich.is_terminal,
        )

    @contextlib.contextmanager
    def bar(self, description: str, total: int, done: int) -> Iterator[Bar]:
        """Draws a progress bar of `total` units, of which `done` are finished."""
        with self.progress() as progress:
            task = progress.add_task(description, total=total, completed=done, text="")

            class RichBar:
                def advance(self, units: int) -> None:
                    progress.advance(task, units)

                def describe(self, text: str) -> None:
                    progress.update(task, text=text)

            yield RichBar()


def percent(fraction: float) -> str:
    """Formats a fraction: `0.87934` as `87.93 %`."""
    return f"{100 * fraction:.2f} %"

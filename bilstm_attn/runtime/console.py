"""What a person sees: lines, bars, and one-line errors. On a file or a pipe, lines alone."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

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


class Console:
    """Prints a run's progress to a terminal; a quiet one nothing."""

    def __init__(self, rich: RichConsole | None = None, *, quiet: bool = False):
        self.rich = rich or RichConsole(highlight=False, soft_wrap=True, quiet=quiet)

    def print(self, line: str) -> None:
        """Prints a line."""
        self.rich.print(line, markup=False)

    def progress(self) -> Progress:
        """Returns a display for bars; it draws nothing where there is no terminal."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}"),
            console=self.rich,
            transient=True,
            disable=not self.rich.is_terminal,
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
        self.print(
            f"{prefix}epoch {record['epoch']}  train loss {record['train_loss']:.4f} "
            f"accuracy {percent(record['train_accuracy'])}  "
            f"{split} loss {record[f'{split}_loss']:.4f} "
            f"accuracy {percent(record[f'{split}_accuracy'])}  "
            f"{record['examples_per_second']:,.0f} reviews/s  {record['seconds']:.1f} s"
        )


def percent(share: float) -> str:
    """Returns `0.87934` as `87.93 %`."""
    return f"{100 * share:.2f} %"

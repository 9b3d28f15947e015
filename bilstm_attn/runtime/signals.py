"""Stopping when asked to: SIGTERM and Ctrl-C, after which the state is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yields the signals that asked to stop: SIGTERM, or Ctrl-C (the second stops at once)."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if number in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    asking = (signal.SIGINT, signal.SIGTERM)
    # None is a handler that is not Python's.
    before = [signal.signal(number, receive) or signal.SIG_DFL for number in asking]
    try:
        yield received
    finally:
        for number, handler in zip(asking, before, strict=True):
            signal.signal(number, handler)


class Interrupted(Exception):
    """A signal asked to stop; the state at `step` is saved."""

    def __init__(self, step: int, signal_number: int):
        self.step = step
        self.status = 128 + signal_number  # of the program, as shells have it

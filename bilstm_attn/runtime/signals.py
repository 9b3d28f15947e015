"""SIGTERM and Ctrl-C as requests to save the state and stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C in the list it yields; a second Ctrl-C interrupts at once.

    Python delivers signals to the main thread only: in another thread, such as a tuner's, the list
    stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, frame: Any) -> None:
        if number in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    # `signal.signal` returns None for a handler that was not installed from Python.
    previous = [signal.signal(number, receive) or signal.SIG_DFL for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


class Interrupted(Exception):
    """Raised after a signal stopped a training and the state at `step` was saved."""

    def __init__(self, step: int, signal_number: int):
        self.step = step
        self.status = 128 + signal_number  # the exit status, by the shells' convention

"""Headless Chromium, spoken to in its own protocol through a pipe."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",  # with the next ones: nothing but what a page asks for
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--remote-debugging-pipe",
]

START = """  # with the pipes where Chromium looks for them
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for at, pipe in enumerate(pipes, start=3):
    os.dup2(pipe, at)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A page that has loaded, what went wrong in it, and what it asked for."""

    def __init__(self, incoming: Any, outgoing: Any):
        self._incoming, self._outgoing, self._number, self._buffer = incoming, outgoing, 0, b""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._session: dict[str, str] = {}
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Returns the browser's answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | self._session
        os.write(self._outgoing, json.dumps(message).encode() + b"\0")
        return self._read(lambda answer: answer.get("id") == self._number)

    def _read(self, wanted: Any) -> dict[str, Any]:
        while True:
            while b"\0" not in self._buffer:
                piece = os.read(self._incoming, 1 << 20)
                assert piece, "the browser has ended"
                self._buffer += piece
            line, self._buffer = self._buffer.split(b"\0", 1)
            message = json.loads(line)
            self._note(message)
            if wanted(message):
                assert "error" not in message, message
                return message.get("result", {})

    def _note(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(given["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.errors.append(given["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.errors.append(str(given["args"]))
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])

    def open(self, address: str) -> None:
        """Goes to an address and waits until it has loaded."""
        self.ask("Page.navigate", url=address)
        self._read(lambda message: message.get("method") == "Page.loadEventFired")

    def run(self, script: str) -> Any:
        """Returns the value of a JavaScript expression."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Yields an empty page of a new browser, whose files lie in `folder`."""
    assert CHROMIUM
    to_browser, outgoing = os.pipe()
    incoming, from_browser = os.pipe()
    given = [str(to_browser), str(from_browser)]
    words = [sys.executable, "-c", START, *given, CHROMIUM, *FLAGS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        words, pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Page(incoming, outgoing)
    finally:
        process.kill()
        process.wait()
        os.close(outgoing)
        os.close(incoming)

"""Headless Chromium, controlled with the DevTools protocol through a pipe."""

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
    "--disable-background-networking",  # this and the next three: only requests of the page
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--remote-debugging-pipe",
]

# Starts Chromium with the pipes as file descriptors 3 and 4, which --remote-debugging-pipe needs.
START = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for descriptor, pipe in enumerate(pipes, start=3):
    os.dup2(pipe, descriptor)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A browser page, and its errors and network requests since the start of the browser."""

    def __init__(self, incoming: Any, outgoing: Any):
        self._incoming, self._outgoing, self._number, self._buffer = incoming, outgoing, 0, b""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._session: dict[str, str] = {}
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a DevTools command and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | self._session
        os.write(self._outgoing, json.dumps(message).encode() + b"\0")
        return self._read(lambda message: message.get("id") == self._number)

    def _read(self, matches: Any) -> dict[str, Any]:
        while True:
            while b"\0" not in self._buffer:
                chunk = os.read(self._incoming, 1 << 20)
                assert chunk, "the browser exited"
                self._buffer += chunk
            line, self._buffer = self._buffer.split(b"\0", 1)
            message = json.loads(line)
            self._record(message)
            if matches(message):
                assert "error" not in message, message
                return message.get("result", {})

    def _record(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.errors.append(str(parameters["args"]))
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def open(self, address: str) -> None:
        """Opens an address and waits until it has loaded."""
        self.command("Page.navigate", url=address)
        self._read(lambda message: message.get("method") == "Page.loadEventFired")

    def run(self, script: str) -> Any:
        """Returns the value of a JavaScript expression."""
        result = self.command("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Yields an empty page of a new browser, whose profile is stored in `folder`."""
    assert CHROMIUM
    to_browser, outgoing = os.pipe()
    incoming, from_browser = os.pipe()
    pipes = [str(to_browser), str(from_browser)]
    command = [sys.executable, "-c", START, *pipes, CHROMIUM, *FLAGS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        command, pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
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

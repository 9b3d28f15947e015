"""Forked processes that can be killed at a chosen time or before a chosen write to disk.

The parent imports every module that the children need but never runs JAX, so that a child starts
without delay.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.pyplot  # noqa: F401  imported once, like the next two, for all children
import tyro  # noqa: F401
from orbax import checkpoint as _orbax  # noqa: F401

from bilstm_attn.runtime.cli import status_of

TIMEOUT_SECONDS = 120
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "fcntl.flock"}
OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class ProcessResult(NamedTuple):
    """The exit status and output of a process."""

    status: int  # negative: the signal that ended the process
    output: str
    seconds: float
    writes: int  # attempted changes on disk

    def problem(self) -> str:
        """Returns what is wrong unless the process succeeded or failed with one error line."""
        if self.status == 0:
            return ""
        errors = [line for line in self.output.splitlines() if line.startswith("error: ")]
        if self.status == 2 and len(errors) == 1 and "Traceback" not in self.output:
            return ""
        return self.describe()

    def describe(self) -> str:
        """Returns the status and the end of the output."""
        return f"status {self.status}: {self.output[-300:]}"


class ForkedProcess:
    """A process that runs `main` after `prepare`, killed before its `kill_at_write`-th write.

    The number of writes is stored in `write_count`, a file that every child overwrites.
    """

    def __init__(
        self,
        main: Callable[[], int],
        write_count: Path,
        prepare: Callable[[], object] = lambda: None,
        kill_at_write: int | None = None,
    ):
        self._write_count = write_count
        self._output, sink = os.pipe()  # a file would be lost on a full disk
        fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._started, self._pid = time.monotonic(), os.fork()
        if self._pid:
            os.close(sink)
        else:
            self._run(main, sink, prepare, kill_at_write)

    def _run(
        self,
        main: Callable[[], int],
        sink: int,
        prepare: Callable[[], object],
        kill_at_write: int | None,
    ) -> None:
        status = 1
        try:
            for stream in (1, 2):
                os.dup2(sink, stream)
            os.close(sink)
            jax.config.update("jax_num_cpu_devices", 2)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            _count_writes(self._write_count, kill_at_write)
            prepare()
            status = status_of(main) or 0
        except BaseException as error:
            print(f"Traceback: {error!r}", file=sys.stderr)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def wait(self, kill_after_seconds: float = TIMEOUT_SECONDS) -> ProcessResult:
        """Waits for the end of the process, which is killed `kill_after_seconds` after its start.

        A process that outlives the default is taken to hang.
        """
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > self._started + kill_after_seconds:
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.005)
        seconds = time.monotonic() - self._started
        writes = int(self._write_count.read_text() or 0) if self._write_count.exists() else 0
        return ProcessResult(os.waitstatus_to_exitcode(status), self._read(), seconds, writes)

    def _read(self) -> str:
        output = b""
        os.set_blocking(self._output, False)
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._output, 1 << 16):
                output += chunk
        os.close(self._output)
        return output.decode()


def _count_writes(write_count: Path, kill_at_write: int | None) -> None:
    """Counts the changes on disk; kills this process before the change `kill_at_write`."""
    descriptor = os.open(write_count, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in WRITES or (event == "open" and (arguments[2] or 0) & OPENED_TO_WRITE):
            count += 1
            os.pwrite(descriptor, str(count).encode(), 0)
            if count == kill_at_write:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)

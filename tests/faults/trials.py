"""Where runs are broken: processes forked from one that has imported everything and used nothing.

So that a trial takes a second.
"""

import contextlib
import fcntl
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.pyplot  # noqa: F401  like the next two: what every trial would import
import tiny_run
import tyro  # noqa: F401
from orbax import checkpoint as _orbax  # noqa: F401

from bilstm_attn.runtime.cli import status_of
from bilstm_attn.training.run_dir import RunDir

EPOCHS = 6  # of 6 steps
SECONDS = 120  # after which a trial hangs
TIMES = {"seconds", "measure_seconds", "examples_per_second"}
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "fcntl.flock"}


class Ended(NamedTuple):
    """How a process ended."""

    status: int  # negative: by that signal
    said: str
    seconds: float
    writes: int  # times that it was about to change something on disk


class Lab:
    """A folder with prepared data, and a run in it that nothing has happened to."""

    def __init__(self, folder: Path, seed: int, data_dir: Path):
        self.folder, self.numbers = folder, random.Random(seed)
        self.data_dir = data_dir
        self.writes = folder / "writes"  # how many the last process was about to make
        os.environ["XDG_CACHE_HOME"] = str(folder / "xdg")
        self.cache = tiny_run.write_cache(folder / "cache").parent
        self.finish(self.new())  # what is built and compiled once
        self.reference = self.finish(self.new())
        run = self.run_of(self.reference.at)
        self.expected = self.results(self.reference.at)
        assert self.expected is not None, self.reference.ended.said
        assert run.model.is_file()

    class Finished(NamedTuple):
        """Where a run lies, and how its last process ended."""

        at: Path
        ended: Ended

    def new(self) -> Path:
        """Returns a new folder for a run, with data."""
        at = Path(tempfile.mkdtemp(dir=self.folder))
        (at / "cache").symlink_to(self.cache)
        return at

    def run_of(self, at: Path) -> RunDir:
        """Returns the run in a folder."""
        return tiny_run.tiny_run(at)

    def finish(self, at: Path) -> "Lab.Finished":
        """Trains, or goes on training, to the end."""
        return self.Finished(at, self.train(at))

    def train(self, at: Path, *more: object, **how: object) -> Ended:
        """Trains in a process, which goes on where there is a run already."""
        begun = self.run_of(at).config_file.exists()
        words = ["--name", "tiny", *(["--resume"] if begun else []), *more]
        return self.process(lambda: tiny_run.train(at, *words, train__epochs=EPOCHS), **how)

    def evaluate(self, at: Path, **how: object) -> Ended:
        """Writes predictions in a process."""
        words = [self.run_of(at).folder, "--split", "validation", "--cache", at / "cache"]
        return self.process(lambda: tiny_run.load_script("evaluate")(*words), **how)

    def results(self, at: Path) -> tuple | None:
        """Returns everything that a finished run came to, or None if it cannot be had."""
        if self.evaluate(at).status != 0:
            return None
        run = self.run_of(at)
        lines = [{k: r[k] for k in r if k not in TIMES} for r in run.records()]
        newest = max(run.checkpoints.iterdir(), key=lambda path: int(path.name))
        state = json.loads((newest / "record/metadata").read_text())["state_sha256"]
        files = [run.model.read_bytes(), run.predictions("validation").read_bytes()]
        return lines, newest.name, state, *files

    def is_whole(self, at: Path) -> str:
        """Returns what is wrong with a run after it has been resumed to its end, or nothing."""
        finished = self.finish(at)
        if finished.ended.status != 0:
            return f"it cannot be resumed: {finished.ended.said[-300:]}"
        names = ("metrics", "last step", "state", "model", "predictions")
        results = self.results(at)
        if results is None:
            return "it cannot be evaluated"
        wrong = [n for n, a, b in zip(names, results, self.expected, strict=True) if a != b]
        return f"other {', '.join(wrong)}" if wrong else ""

    def process(
        self,
        main: Callable[[], int],
        *,
        prepare: Callable[[], object] = lambda: None,
        kill_after_seconds: float | None = None,
        kill_at_write: int | None = None,
    ) -> Ended:
        """Returns how a forked process ended that ran `main`, after `prepare`."""
        return self.end(self.fork(main, prepare, kill_at_write), kill_after_seconds)

    def end(self, started: "Lab.Started", kill_after_seconds: float | None = None) -> Ended:
        """Waits for a process, or kills it."""
        until = started.begun + (SECONDS if kill_after_seconds is None else kill_after_seconds)
        while True:
            pid, status = os.waitpid(started.child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > until:
                os.kill(started.child, signal.SIGKILL)
            time.sleep(0.005)
        seconds, said = time.monotonic() - started.begun, b""
        os.set_blocking(started.out, False)
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(started.out, 1 << 16):
                said += piece
        os.close(started.out)
        count = int(self.writes.read_text() or 0) if self.writes.exists() else 0
        return Ended(os.waitstatus_to_exitcode(status), said.decode(), seconds, count)

    class Started(NamedTuple):
        """A process: its number, where it says what it has to notify, and when it began."""

        child: int
        out: int
        begun: float

    def fork(
        self,
        main: Callable[[], int],
        prepare: Callable[[], object] = lambda: None,
        kill_at_write: int | None = None,
    ) -> "Lab.Started":
        """Starts a process that runs `main` after `prepare`."""
        out, sink = os.pipe()  # not a file: a disk may be full
        fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 1 << 20)
        begun, child = time.monotonic(), os.fork()
        if child:
            os.close(sink)
            return self.Started(child, out, begun)
        status = 1
        try:
            for stream in (1, 2):
                os.dup2(sink, stream)
            os.close(sink)
            jax.config.update("jax_num_cpu_devices", 2)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            counted = os.open(self.writes, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            _watch_writes(kill_at_write, counted)
            prepare()
            status = status_of(main) or 0
        except BaseException as error:
            print(f"Traceback: {error!r}", file=sys.stderr)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)


def _watch_writes(kill_at: int | None, counted: int) -> None:
    """Kills this process before its `kill_at`-th change on disk, and keeps count of them."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        writes = event in WRITES or (
            event == "open"
            and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        if writes:
            count += 1
            os.pwrite(counted, str(count).encode(), 0)
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)

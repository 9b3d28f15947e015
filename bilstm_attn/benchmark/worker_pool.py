"""Starts the worker processes, and exchanges commands and measurements with them."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bilstm_attn.benchmark.peer import Setting
from bilstm_attn.benchmark.worker import setting_to_json
from bilstm_attn.benchmark.workload import Workload, save_workload
from bilstm_attn.runtime.console import Console

Record = dict[str, Any]  # one measurement: peer, command, round, seconds, ...
SLOW_SECONDS = 30.0  # an implementation whose first step takes longer is timed on that step alone


class Worker:
    """An implementation in its own process.

    Attributes:
      name: its name in `PEERS`.
      missing: why it cannot be measured, or None.
      slow: whether its first step took more than `SLOW_SECONDS`.
    """

    def __init__(self, name: str, workload_path: Path, caches: Path, setting: Setting):
        environment = os.environ | {
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
            "JAX_PLATFORMS": "cuda" if setting.on_gpu else "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
            "XDG_CACHE_HOME": str(caches),
        }
        command = [sys.executable, "-m", "bilstm_attn.benchmark.worker"]
        command += [name, str(workload_path), setting_to_json(setting)]
        self._start = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.name, self.slow = name, False
        self.missing: str | None = self._read().get("missing")

    def measure(self, command: str, round_number: int = 0) -> Record:
        """Runs `command` in the process and returns its measurement."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended; `_read` reports it
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        return {"peer": self.name, "command": command, "round": round_number} | self._read()

    def take_first_step(self, start_number: int) -> list[Record]:
        """Takes the first training step.

        Returns the record of the time since the process began, and, if the implementation is slow,
        that of the step as well. Sets `missing` and `slow`.
        """
        step: Record = self.measure("first step", 1) | {"command": "train"}
        self.missing = step.get("missing")
        if self.missing is not None:
            return []
        self.slow = step["seconds"] > SLOW_SECONDS
        seconds = time.perf_counter() - self._start
        start = step | {"command": "start", "round": start_number, "seconds": seconds}
        return [start, step] if self.slow else [start]

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> Record:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"missing": "its process ended"}


@contextlib.contextmanager
def start_workers(
    names: Sequence[str],
    workload: Workload,
    setting: Setting,
    console: Console,
    *,
    starts: int = 1,
) -> Iterator[tuple[list[Worker], list[Record]]]:
    """Yields the workers after their first step, and its records; ends all processes.

    Each implementation has its own compilation cache. It is started `starts` times: with an empty
    cache, then with what the earlier starts cached. A slow one is started once.
    """
    workers: list[Worker] = []
    records: list[Record] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_workload(folder / "workload.npz", workload)
        for name in names:
            for number in range(starts):
                caches = folder / name.replace(" ", "-")
                worker = Worker(name, folder / "workload.npz", caches, setting)
                stack.callback(worker.end)
                if worker.missing is None:
                    records += worker.take_first_step(number)
                if worker.missing is not None:
                    console.print(f"{name}: unmeasured ({worker.missing})")
                    break
                if worker.slow or number + 1 == starts:
                    workers.append(worker)
                    break
                worker.end()
        yield workers, records

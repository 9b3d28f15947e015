"""Interleaved rounds over all implementations, and the tables of their medians."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_attn.benchmark.float64_model import reference_logits
from bilstm_attn.benchmark.worker import Work, make_params, save_work
from bilstm_attn.config import ModelConfig
from bilstm_attn.runtime.console import Console

Record = dict[str, Any]
SLOW = 30.0  # seconds: an implementation whose first step takes longer is timed on it alone
SINGLE = 5  # single reviews a round


class Worker:
    """An implementation in a process of its own."""

    def __init__(self, name: str, file: Path, caches: Path, setting: dict[str, Any]):
        environment = os.environ | {
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
            "JAX_PLATFORMS": "cuda" if setting["on_gpu"] else "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
            "XDG_CACHE_HOME": str(caches),
        }
        command = [sys.executable, "-m", "bilstm_attn.benchmark.worker"]
        command += [name, str(file), json.dumps(setting)]
        self._begun = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=-1, stdout=-1, stderr=-3, text=True, env=environment
        )
        self.name, self.slow = name, False
        self.missing: str | None = self._read().get("missing")

    def ask(self, command: str, number: int = 0) -> Record:
        """Returns what the worker measured while it ran `command`; `number` is the round."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its process has ended: the answer says so
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        return {"peer": self.name, "command": command, "round": number} | self._read()

    def take_first_step(self, number: int) -> list[Record]:
        """Returns the seconds since the process began; if it is slow, those of the step too."""
        step: Record = self.ask("first step", 1) | {"command": "train"}
        self.missing = step.get("missing")
        if self.missing is not None:
            return []
        self.slow = step["seconds"] > SLOW
        seconds = time.perf_counter() - self._begun
        start = step | {"command": "start", "round": number, "seconds": seconds}
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
def start(
    names: Sequence[str],
    work: Work,
    console: Console,
    *,
    starts: int = 1,
    **setting: Any,
) -> Iterator[tuple[list[Worker], list[Record]]]:
    """Yields the workers that took their first step, and the records of that; ends them all.

    Each has caches of its own. Of several starts the first finds them empty, the others what it
    left there. `setting` is fields of the model's config, `devices` and `on_gpu`.
    """
    setting = {"devices": None, "on_gpu": False} | setting
    workers: list[Worker] = []
    records: list[Record] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_work(folder / "work.npz", work)
        for name in names:
            for number in range(starts):
                caches = folder / name.replace(" ", "-")
                worker = Worker(name, folder / "work.npz", caches, setting)
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


def compare(
    names: Sequence[str],
    work: Work,
    console: Console,
    *,
    rounds: int,
    starts: int,
    config: ModelConfig,
    on_gpu: bool = False,
) -> list[Record]:
    """Returns a record of every timed call.

    After the starts and a first call of each kind, the implementations take turns: in a round each
    takes a training step, then each an inference, and so on. The steps of an epoch come last.
    """
    expected = reference_logits(make_params(config), work.batch)
    setting = {
        "hidden_size": config.hidden_size,
        "matmul_precision": config.matmul_precision,
        "on_gpu": on_gpu,
    }
    with start(names, work, console, starts=starts, **setting) as (workers, records):

        def ask(worker: Worker, command: str, number: int) -> None:
            record = worker.ask(command, number)
            logits = record.pop("logits", None)
            if command == "logits" and logits:
                record["error"] = float(np.abs(np.array(logits) - expected).max())
            if "missing" not in record:
                records.append(record)

        for worker in workers:
            if worker.slow:
                for command in ("logits", "one"):
                    ask(worker, command, 1)
        with console.bar("rounds", rounds + 1, 0) as bar:
            for number in range(rounds + 1):
                for command in ("train", "logits", "layers", *["one"] * SINGLE):
                    for worker in workers:
                        if not worker.slow:
                            ask(worker, command, number)
                records.append(multiply(number))
                bar.advance(1)
        with console.bar("epoch", 2 * len(workers), 0) as bar:
            for number in range(2 if work.epoch else 0):
                for worker in workers:
                    if not worker.slow:
                        ask(worker, "epoch", number)
                    bar.advance(1)
    return records


def multiply(number: int) -> Record:
    """Times NumPy's product of two matrices, the yardstick of this machine's arithmetic."""
    size = 2048
    matrix = np.ones((size, size), np.float32)
    begun = time.perf_counter()
    np.matmul(matrix, matrix)
    seconds = time.perf_counter() - begun
    return {
        "peer": "numpy",
        "command": "product",
        "round": number,
        "seconds": seconds,
        "gflops": 2e-9 * size**3 / seconds,
    }


def values_of(
    records: Sequence[Record], peer: str, command: str, field: str = "seconds", *, first: int = 1
) -> list[float]:
    """Returns a field of an implementation's records, from round `first` on."""
    return [
        record[field]
        for record in records
        if (record["peer"], record["command"]) == (peer, command) and record["round"] >= first
    ]


def table(records: Sequence[Record], steps_an_epoch: float) -> str:
    """Returns a Markdown table: medians over the rounds after the first call, with their range.

    `steps_an_epoch` is by how much an epoch is longer than the steps of it that were timed.
    """
    lines = [
        "| | training step, s | inference, s | an epoch, s: warm, compiling | one review, ms | "
        "start to first step, s: cold, cached | error | faults a step | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(record["peer"] for record in records if "error" in record):
        epochs = values_of(records, name, "epoch", first=0)
        if len(epochs) == 2:  # the first one compiled
            warm = steps_an_epoch * epochs[1]
            epochs = [warm, warm + max(epochs[0] - epochs[1], 0)]
        cells = [
            name,
            _spread(values_of(records, name, "train")),
            _spread(values_of(records, name, "logits")),
            ", ".join(f"{seconds:.0f}" for seconds in epochs) or "–",
            _median([1e3 * seconds for seconds in values_of(records, name, "one")], ".1f"),
            ", ".join(f"{s:.1f}" for s in values_of(records, name, "start", first=0)),
            f"{max(values_of(records, name, 'logits', 'error', first=0)):.0e}",
            _median(values_of(records, name, "train", "faults"), ",.0f"),
            f"{max(values_of(records, name, 'train', 'peak_mib')):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(values: Sequence[float], format_: str) -> str:
    return format(statistics.median(values), format_) if values else "–"


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "–"
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f}-{max(seconds):.3f})"


def share_of_peak(records: Sequence[Record], work: Work, config: ModelConfig) -> str:
    """Returns lines that say how much of the machine's arithmetic our recurrent layers use.

    Counted are the products over the reviews' own tokens, once forward and twice backward.
    """
    peak = max(record["gflops"] for record in records if record["command"] == "product")
    rows = [size + config.hidden_size for size in (config.embedding_size, config.states_size)]
    tokens, gates = int(np.sum(work.batch.length)), 4 * config.hidden_size
    gflop = 3 * 2e-9 * 2 * tokens * sum(rows) * gates  # two directions
    lines = [f"a product of two matrices in NumPy: {peak:.0f} GFLOP/s at best"]
    for name in dict.fromkeys(r["peer"] for r in records if r["command"] == "layers"):
        seconds = statistics.median(values_of(records, name, "layers"))
        lines.append(
            f"{name}: the recurrent layers forward and backward {seconds:.3f} s, {gflop:.1f} GFLOP "
            f"on own tokens, {100 * gflop / seconds / peak:.0f} % of that"
        )
    return "\n".join(lines)


def grow(
    names: Sequence[str],
    make_work: Callable[[int, int], Work],
    console: Console,
    *,
    rounds: int,
    on_gpu: bool,
) -> list[Record]:
    """Returns a record of every training step as one thing at a time grows.

    `make_work` takes the batch's reviews and the tokens that they are padded to.
    """
    base = {"tokens": 250, "reviews": 128, "hidden": 64, "devices": 0}
    grown = [base | {field: value} for field, values in GROWTH.items() for value in values]
    settings = [setting for at, setting in enumerate(grown) if setting not in grown[:at]]
    records = []
    with console.bar("settings", len(settings), 0) as bar:
        for setting in settings:
            work = make_work(setting["reviews"], setting["tokens"])
            sizes = {"hidden_size": setting["hidden"], "devices": setting["devices"] or None}
            with start(names, work, console, on_gpu=on_gpu, **sizes) as (workers, _):
                for number in range(rounds + 1):
                    for worker in workers:
                        record = worker.ask("train", number) | {"setting": setting}
                        records += [record] if "missing" not in record else []
            bar.advance(1)
    return records


GROWTH = {
    "tokens": (125, 250, 500, 1000),
    "reviews": (64, 128, 256, 512),
    "hidden": (32, 64, 128, 256),
    "devices": (1, 2),
}


def growth_table(records: Sequence[Record]) -> str:
    """Returns a Markdown table: the median seconds of a training step in each setting."""
    settings = {json.dumps(record["setting"]): record["setting"] for record in records}
    names = list(dict.fromkeys(record["peer"] for record in records))
    lines = [
        f"| tokens | reviews | hidden | devices | {' | '.join(names)} |",
        "|---" * (4 + len(names)) + "|",
    ]
    for key, setting in settings.items():
        own = [record for record in records if json.dumps(record["setting"]) == key]
        times = [_median(values_of(own, name, "train"), ".3f") for name in names]
        devices = setting["devices"] or "all"
        sizes = (setting["tokens"], setting["reviews"], setting["hidden"], devices)
        lines.append(f"| {' | '.join([*map(str, sizes), *times])} |")
    return "\n".join(lines)

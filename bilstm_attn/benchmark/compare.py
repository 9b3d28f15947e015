"""Interleaved rounds over all implementations, and the table of their medians."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_attn.benchmark.worker import make_params
from bilstm_attn.metrics import sigmoid
from bilstm_attn.terminal import Show
from bilstm_attn.types import Batch, Params

Record = dict[str, Any]


def reference_logits(params: Params, batch: Batch) -> np.ndarray:
    """Returns each review's logit by a NumPy float64 loop over its own tokens alone."""
    tokens, lengths = np.asarray(batch.tokens), np.asarray(batch.length)
    x = np.asarray(params["embedding"], np.float64)[tokens].transpose(1, 0, 2)
    mask = np.arange(len(x))[:, None] < lengths
    last = np.zeros(0)
    for layer in params["encoder"]["layers"].values():
        ways = ("forward", "backward")
        walks = [_walk(layer[way], x, mask, reverse=way == "backward") for way in ways]
        x = np.concatenate([states for states, _ in walks], axis=-1)
        last = np.concatenate([end for _, end in walks], axis=-1)
    p = {name: np.asarray(value, np.float64) for name, value in params["attention"].items()}
    units = np.tanh(x @ p["states_kernel"] + last @ p["query_kernel"] + p["bias"])
    scores = np.where(mask, (units @ p["vector"])[..., 0], -np.inf)
    weights = np.exp(scores - scores.max(axis=0))
    context = (weights[..., None] * x).sum(axis=0) / weights.sum(axis=0)[:, None]
    dense, logit = params["dense"], params["logit"]
    return (np.maximum(context @ dense["kernel"] + dense["bias"], 0) @ logit["kernel"])[:, 0] + (
        logit["bias"]
    )


def _walk(
    params: Params, x: np.ndarray, mask: np.ndarray, *, reverse: bool
) -> tuple[np.ndarray, np.ndarray]:
    kernel, recurrent, bias = (
        np.asarray(params[name], np.float64)
        for name in ("input_kernel", "recurrent_kernel", "bias")
    )
    h = c = np.zeros((x.shape[1], recurrent.shape[0]))
    states = np.zeros((*x.shape[:2], h.shape[1]))
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        i, f, g, o = np.split(x[t] @ kernel + h @ recurrent + bias, 4, axis=-1)
        now = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        own = mask[t][:, None]
        c, h = np.where(own, now, c), np.where(own, sigmoid(o) * np.tanh(now), h)
        states[t] = np.where(own, h, 0)
    return states, h


class Worker:
    """An implementation in a process of its own."""

    def __init__(self, name: str, batch_file: Path):
        environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        command = [sys.executable, "-m", "bilstm_attn.benchmark.worker", name, str(batch_file)]
        self.process = subprocess.Popen(
            command, stdin=-1, stdout=-1, stderr=-3, text=True, env=environment
        )
        self.name, self.made = name, self._read()

    def ask(self, command: str) -> Record:
        """Returns what the worker measured while it ran `command`."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Record:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"peer": self.name, "missing": "its process ended"}


@contextlib.contextmanager
def start(names: Sequence[str], batch: Batch, show: Show) -> Iterator[list[Worker]]:
    """Yields the workers that started; ends them all."""
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "batch.npz"
        arrays: dict[str, Any] = {name: np.asarray(part) for name, part in batch._asdict().items()}
        np.savez(file, **arrays)
        try:
            for name in names:
                workers.append(Worker(name, file))
                if "missing" in workers[-1].made:
                    show.say(f"{name}: unmeasured ({workers[-1].made['missing']})")
            yield [worker for worker in workers if "missing" not in worker.made]
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.communicate()


def compare(names: Sequence[str], batch: Batch, rounds: int, show: Show) -> list[Record]:
    """Returns a record of every timed call: `rounds` rounds over all, after a first call each."""
    expected = reference_logits(make_params(), batch)
    records = []
    with start(names, batch, show) as workers, show.bar("rounds", rounds + 1, 0) as bar:
        for number in range(rounds + 1):
            for command in ("logits", "train"):
                for worker in workers:
                    record = worker.ask(command) | {"round": number}
                    logits = record.pop("logits", None)
                    if logits is not None and number == 0:  # before the parameters move
                        record["error"] = float(np.abs(np.array(logits) - expected).max())
                    records.append(record)
            bar.advance(1)
    return records


def table(records: Sequence[Record]) -> str:
    """Returns a Markdown table: medians over the rounds after the first call, with their range."""
    lines = [
        "| | training step, s | inference, s | first step, s | error | faults a step | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(record["peer"] for record in records):
        own = [record for record in records if record["peer"] == name]
        times = {
            command: [
                record["seconds"]
                for record in own
                if record["command"] == command and record["round"] > 0
            ]
            for command in ("train", "logits")
        }
        first = next(record for record in own if record["command"] == "train")
        steps = [record for record in own if record["command"] == "train" and record["round"] > 0]
        error = max(record["error"] for record in own if "error" in record)
        faults = statistics.median(record["faults"] for record in steps)
        cells = [
            name,
            *(_spread(times[command]) for command in ("train", "logits")),
            f"{first['seconds']:.1f}",
            f"{error:.0e}",
            f"{faults:,.0f}",
            f"{max(record['peak_mib'] for record in own):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f}-{max(seconds):.3f})"

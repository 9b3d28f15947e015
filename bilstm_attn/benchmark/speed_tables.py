"""Markdown tables of the benchmark's measurements."""

import json
import statistics
from collections.abc import Sequence

import numpy as np

from bilstm_attn.benchmark.worker_pool import Record
from bilstm_attn.benchmark.workload import Workload
from bilstm_attn.config import ModelConfig


def select_values(
    records: Sequence[Record], peer: str, command: str, field: str = "seconds", *, first: int = 1
) -> list[float]:
    """Returns a field of an implementation's records of one command, from round `first` on."""
    return [
        record[field]
        for record in records
        if (record["peer"], record["command"]) == (peer, command) and record["round"] >= first
    ]


def speed_table(records: Sequence[Record], epoch_factor: float) -> str:
    """Returns a Markdown table: medians over the rounds after the first call, with their range.

    Args:
      records: the measurements of `compare`.
      epoch_factor: number of steps of an epoch, divided by the number of timed ones.
    """
    lines = [
        "| | training step, s | inference, s | epoch, s: warm, compiling | one text, ms | "
        "start to first step, s: cold, cached | error | faults per step | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(record["peer"] for record in records if "error" in record):
        epochs = select_values(records, name, "epoch", first=0)
        if len(epochs) == 2:  # the first one includes compilation
            warm = epoch_factor * epochs[1]
            epochs = [warm, warm + max(epochs[0] - epochs[1], 0)]
        starts = select_values(records, name, "start", first=0)
        cells = [
            name,
            _median_and_range(select_values(records, name, "train")),
            _median_and_range(select_values(records, name, "logits")),
            ", ".join(f"{seconds:.0f}" for seconds in epochs) or "–",
            _median([1e3 * s for s in select_values(records, name, "single")], ".1f"),
            ", ".join(f"{seconds:.1f}" for seconds in starts),
            f"{max(select_values(records, name, 'logits', 'error', first=0)):.0e}",
            _median(select_values(records, name, "train", "faults"), ",.0f"),
            f"{max(select_values(records, name, 'train', 'peak_mib')):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(values: Sequence[float], format_spec: str) -> str:
    return format(statistics.median(values), format_spec) if values else "–"


def _median_and_range(seconds: Sequence[float]) -> str:
    if not seconds:
        return "–"
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f}-{max(seconds):.3f})"


def share_of_peak(records: Sequence[Record], workload: Workload, config: ModelConfig) -> str:
    """Returns lines on how much of the machine's arithmetic the recurrent layers use.

    Counts the matmuls over tokens, without padding: once forward, twice backward.
    """
    peak = max(record["gflops"] for record in records if record["command"] == "matmul")
    rows = [size + config.hidden_size for size in (config.embedding_size, config.states_size)]
    tokens, columns = int(np.sum(workload.batch.length)), 4 * config.hidden_size
    gflop = 3 * 2e-9 * 2 * tokens * sum(rows) * columns  # two directions
    lines = [f"NumPy matmul: at best {peak:.0f} GFLOP/s"]
    for name in dict.fromkeys(r["peer"] for r in records if r["command"] == "layers"):
        seconds = statistics.median(select_values(records, name, "layers"))
        lines.append(
            f"{name}: recurrent layers forward and backward {seconds:.3f} s, {gflop:.1f} GFLOP "
            f"without padding, {100 * gflop / seconds / peak:.0f} % of NumPy's matmul"
        )
    return "\n".join(lines)


def growth_table(records: Sequence[Record]) -> str:
    """Returns a Markdown table: the median seconds of a training step at each setting."""
    settings = {json.dumps(record["setting"]): record["setting"] for record in records}
    names = list(dict.fromkeys(record["peer"] for record in records))
    lines = [
        f"| tokens | examples | hidden | devices | {' | '.join(names)} |",
        "|---" * (4 + len(names)) + "|",
    ]
    for setting in settings.values():
        measured = [record for record in records if record["setting"] == setting]
        times = [_median(select_values(measured, name, "train"), ".3f") for name in names]
        devices = setting["devices"] or "all"
        sizes = (setting["tokens"], setting["examples"], setting["hidden"], devices)
        lines.append(f"| {' | '.join([*map(str, sizes), *times])} |")
    return "\n".join(lines)

"""Interleaved measurements of all implementations, at one size or as sizes grow."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from bilstm_attn.benchmark.benchmark_options import BenchmarkOptions
from bilstm_attn.benchmark.float64_model import reference_logits
from bilstm_attn.benchmark.peer import Setting
from bilstm_attn.benchmark.worker_pool import Record, Worker, start_workers
from bilstm_attn.benchmark.workload import Workload, make_params
from bilstm_attn.config import ModelConfig
from bilstm_attn.runtime.console import Console

SINGLE_TEXTS = 5  # inferences of a single text per round
MATMUL_SIZE = 2048
GROWTH_ROUNDS = 2
GROWTH_BASE = {"tokens": 250, "examples": 128, "hidden": 64, "devices": 0}  # 0 is all devices
GROWTH = {
    "tokens": (125, 250, 500, 1000),
    "examples": (64, 128, 256, 512),
    "hidden": (32, 64, 128, 256),
    "devices": (1, 2),
}


def compare(
    names: Sequence[str],
    workload: Workload,
    config: ModelConfig,
    options: BenchmarkOptions,
    console: Console,
) -> list[Record]:
    """Returns a record of every timed call.

    After the starts and a first call of each kind, the implementations take turns: in every round
    each takes a training step, then each an inference, and so on. The epochs come last.
    """
    expected = reference_logits(make_params(config), workload.batch)
    setting = Setting(config, workload.rows, on_gpu=options.on_gpu)
    with start_workers(names, workload, setting, console, starts=options.starts) as started:
        workers, records = started
        fast = [worker for worker in workers if not worker.slow]

        def measure(worker: Worker, command: str, number: int) -> None:
            record = worker.measure(command, number)
            logits = record.pop("logits", None)
            if command == "logits" and logits:
                record["error"] = float(np.abs(np.array(logits) - expected).max())
            if "missing" not in record:
                records.append(record)

        for worker in workers:
            if worker.slow:
                for command in ("logits", "single"):
                    measure(worker, command, 1)
        with console.bar("rounds", options.rounds + 1, 0) as bar:
            for number in range(options.rounds + 1):
                for command in ("train", "logits", "layers", *["single"] * SINGLE_TEXTS):
                    for worker in fast:
                        measure(worker, command, number)
                records.append(time_matmul(number))
                bar.advance(1)
        epochs = 2 if workload.epoch else 0  # the first one compiles
        with console.bar("epoch", epochs * len(fast), 0) as bar:
            for number in range(epochs):
                for worker in fast:
                    measure(worker, "epoch", number)
                    bar.advance(1)
    return records


def time_matmul(round_number: int) -> Record:
    """Times a NumPy matmul of two square matrices, as a measure of this machine's arithmetic."""
    matrix = np.ones((MATMUL_SIZE, MATMUL_SIZE), np.float32)
    start = time.perf_counter()
    np.matmul(matrix, matrix)
    seconds = time.perf_counter() - start
    return {
        "peer": "numpy",
        "command": "matmul",
        "round": round_number,
        "seconds": seconds,
        "gflops": 2e-9 * MATMUL_SIZE**3 / seconds,
    }


def measure_growth(
    names: Sequence[str],
    make_workload: Callable[[int, int], Workload],
    options: BenchmarkOptions,
    console: Console,
) -> list[Record]:
    """Returns a record of every training step as one size of `GROWTH_BASE` changes at a time.

    Args:
      names: names in `PEERS`.
      make_workload: returns a workload from the batch size and the padded length in tokens.
      options: decides the device.
      console: shows the progress.
    """
    every = [GROWTH_BASE | {name: size} for name, sizes in GROWTH.items() for size in sizes]
    distinct = [sizes for index, sizes in enumerate(every) if sizes not in every[:index]]
    records = []
    with console.bar("settings", len(distinct), 0) as bar:
        for sizes in distinct:
            workload = make_workload(sizes["examples"], sizes["tokens"])
            config = ModelConfig(hidden_size=sizes["hidden"])
            setting = Setting(config, workload.rows, sizes["devices"] or None, options.on_gpu)
            with start_workers(names, workload, setting, console) as (workers, _):
                for number in range(GROWTH_ROUNDS + 1):
                    for worker in workers:
                        record = worker.measure("train", number) | {"setting": sizes}
                        records += [record] if "missing" not in record else []
            bar.advance(1)
    return records

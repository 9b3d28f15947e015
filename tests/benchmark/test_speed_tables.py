"""The tables of the benchmark, computed from made-up measurements."""

import numpy as np

from bilstm_attn.benchmark.speed_tables import growth_table, share_of_peak, speed_table
from bilstm_attn.benchmark.workload import Workload
from bilstm_attn.config import ModelConfig
from bilstm_attn.types import Batch


def make_record(peer, command, number, seconds, **fields):
    return {"peer": peer, "command": command, "round": number, "seconds": seconds} | fields


def worker_record(command, number, seconds, **fields):
    return make_record("a", command, number, seconds, faults=10.0, peak_mib=100.0, **fields)


def test_speed_table_has_medians_of_the_rounds_after_the_first_call():
    records = [worker_record("start", 0, 8.0), worker_record("start", 1, 3.0)]
    records += [worker_record("logits", 0, 9.0, error=2e-7), worker_record("train", 0, 9.0)]
    for number, seconds in enumerate((0.3, 0.1, 0.2), start=1):
        records += [
            worker_record("logits", number, seconds / 2, error=1e-7),
            worker_record("train", number, seconds),
            worker_record("single", number, seconds / 100),
        ]
    records += [worker_record("epoch", 0, 5.0), worker_record("epoch", 1, 2.0)]
    assert speed_table(records, epoch_factor=10.0).splitlines()[-1] == (
        "| a | 0.200 (0.100-0.300) | 0.100 (0.050-0.150) | 20, 23 | 2.0 | 8.0, 3.0 | 2e-07 | 10 "
        "| 100 |"
    )


def test_share_of_peak_counts_the_matmuls_over_tokens_without_padding():
    lengths = np.array([1, 3], np.int32)
    batch = Batch(np.zeros((2, 9), np.int32), lengths, lengths, np.ones(2, np.float32))
    records = [
        make_record("numpy", "matmul", 0, 1.0, gflops=8.0),
        make_record("a", "layers", 1, 0.001),
    ]
    # Three passes, two directions, 4 tokens, two layers of (128 + 64) x 256, two operations each.
    gflop = 3 * 2 * 4 * 2 * (192 * 256) * 2 / 1e9
    lines = share_of_peak(records, Workload(batch, batch, []), ModelConfig())
    assert lines.endswith(f"{100 * gflop / 0.001 / 8:.0f} % of NumPy's matmul")


def test_growth_table_has_a_row_for_each_setting():
    small, large = (
        {"tokens": 5, "examples": n, "hidden": 64, "devices": devices}
        for n, devices in ((1, 0), (2, 2))
    )
    records = [make_record("a", "train", n, n / 4, setting=small) for n in range(3)]
    records += [make_record("a", "train", n, 1.0, setting=large) for n in range(3)]
    assert growth_table(records).splitlines()[2:] == [
        "| 5 | 1 | 64 | all | 0.375 |",
        "| 5 | 2 | 64 | 2 | 1.000 |",
    ]

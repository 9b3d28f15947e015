"""The benchmark command: its tables, what it leaves out, and its errors."""

import json

import pytest
from tiny_run import error_of, load_script, write_cache

from bilstm_attn.benchmark import compare
from bilstm_attn.benchmark.benchmark_command import select_peers
from bilstm_attn.benchmark.benchmark_options import QUICK_PEERS, BenchmarkOptions
from bilstm_attn.benchmark.peers import PEERS

benchmark = load_script("benchmark")


@pytest.mark.slow
def test_command_prints_one_row_per_measured_peer_and_names_the_others(
    tmp_path, capsys, monkeypatch
):
    write_cache(tmp_path)
    (tmp_path / "keras.py").write_text("raise ImportError('no keras here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS")  # the test suite's flags would make 500 steps slow
    locations = ["--cache", tmp_path, "--out", tmp_path / "records.json"]
    sizes = ["--batch-size", 4, "--rounds", 2, "--epoch-steps", 2]
    assert benchmark(*locations, *sizes, "--peers", "scan", "pallas", "keras on jax") == 0
    out = capsys.readouterr().out
    assert "keras on jax: unmeasured (no keras here)" in out
    assert "| keras on jax" not in out
    assert "ours, pallas: unmeasured (it runs on gpu or tpu only)" in out
    *_, row, matmul, layers = out.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    name, *_, epoch, single, starts, error, _, _ = cells
    assert name == "ours, scan"
    assert len(epoch.split(", ")) == 2
    assert float(single) > 0
    assert all(float(seconds) > 0 for seconds in starts.split(", "))
    assert 0 < float(error) < 5e-6
    assert "GFLOP/s" in matmul
    assert layers.startswith("ours, scan: recurrent layers")
    records = json.loads((tmp_path / "records.json").read_text())
    assert {record["setting"]["hidden"] for record in records} == {64}


@pytest.mark.slow
def test_growth_prints_one_row_per_setting(tmp_path, capsys, monkeypatch):
    write_cache(tmp_path)
    monkeypatch.setattr(compare, "GROWTH", {"examples": (4,)})
    assert benchmark("--cache", tmp_path, "--grow", "--peers", "native") == 0
    head, _, row = capsys.readouterr().out.splitlines()[-3:]
    assert head == "| tokens | examples | hidden | devices | ours, native |"
    assert row.startswith("| 250 | 4 | 64 | all | 0.")


def test_each_quick_peer_is_exactly_one_implementation():
    assert [len(select_peers([part])) for part in QUICK_PEERS] == [1] * len(QUICK_PEERS)
    assert select_peers([]) == list(PEERS)


def test_quick_shrinks_the_sizes_but_not_the_named_peers():
    quick = BenchmarkOptions(quick=True).with_quick_sizes()
    assert (quick.peers, quick.rounds, quick.batch_size, quick.epoch_steps) == (
        QUICK_PEERS,
        2,
        128,
        0,
    )
    assert quick.starts == 1
    named = BenchmarkOptions(quick=True, peers=("scan",)).with_quick_sizes()
    assert named.peers == ("scan",)
    assert BenchmarkOptions().with_quick_sizes() == BenchmarkOptions()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--peers", "toch"], "--peers must be parts of ours, native; ours, pallas"),
        (["--rounds", "0"], "--rounds must be above 0, got 0"),
        (["--batch-size", "0"], "--batch-size must be above 0, got 0"),
        (["--hidden-size", "64", "0"], "--hidden-size must be above 0, got 0"),
        (["--epoch-steps", "-1"], "--epoch-steps must be at least 0, got -1"),
    ],
)
def test_option_out_of_range_is_a_one_line_error(arguments, expected):
    assert expected in error_of(benchmark, *arguments)

"""The benchmark's implementations compute the model, and its table says where one does not."""

import numpy as np
import pytest
from tiny import error_of, script, write_cache

from bilstm_attn.benchmark.compare import reference_logits, table
from bilstm_attn.benchmark.peers import PEERS
from bilstm_attn.benchmark.worker import make_params
from bilstm_attn.types import Batch

benchmark = script("benchmark")
LENGTHS = np.array([9, 1, 4, 9])


@pytest.fixture(scope="module")
def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(4, 10_000, (4, 9)).astype(np.int32)
    tokens = np.where(np.arange(9) < LENGTHS[:, None], tokens, 0)
    numbers = {"length": LENGTHS.astype(np.int32), "label": np.array([0, 1, 1, 0], np.int32)}
    return Batch(tokens=tokens, **numbers, weight=np.ones(4, np.float32))


@pytest.mark.parametrize("name", ["ours, native", "flax nnx.RNN"])
def test_implementation_is_the_float64_loop_and_its_step_moves_it(name, batch):
    params = make_params()
    peer = PEERS[name](params, batch)
    expected = reference_logits(params, batch)
    assert np.abs(expected).max() > 0.3  # else agreement says little
    # float32 rounding of logits of size 1.
    np.testing.assert_allclose(peer.logits(), expected, atol=5e-6)
    peer.train()


def test_one_command_prints_a_row_each_with_its_error(tmp_path, capsys):
    write_cache(tmp_path)
    where = ["--cache", tmp_path, "--batch-size", 4, "--rounds", 1, "--out", tmp_path / "all.json"]
    assert benchmark(*where, "--peers", "native") == 0
    [row] = capsys.readouterr().out.splitlines()[-1:]
    name, *_, error, _, _ = [cell.strip() for cell in row.strip("|").split("|")]
    assert name == "ours, native"
    assert 0 < float(error) < 5e-6
    assert (tmp_path / "all.json").read_text().startswith("[{")


def test_table_has_medians_of_the_rounds_after_the_first_call():
    def record(command, number, seconds):
        return {
            "peer": "one",
            "command": command,
            "round": number,
            "seconds": seconds,
            "faults": 10,
            "peak_mib": 100.0,
        }

    records = [record("logits", 0, 9.0) | {"error": 2e-7}, record("train", 0, 8.0)]
    for number, seconds in enumerate((0.3, 0.1, 0.2), start=1):
        records += [record("logits", number, seconds / 2), record("train", number, seconds)]
    assert table(records).splitlines()[-1] == (
        "| one | 0.200 (0.100-0.300) | 0.100 (0.050-0.150) | 8.0 | 2e-07 | 10 | 100 |"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--peers", "toch"], "--peers must be parts of ours, native, ours, scan"),
        (["--rounds", "0"], "--rounds must be above 0, got 0"),
        (["--batch-size", "0"], "--batch-size must be above 0, got 0"),
    ],
)
def test_mistake_is_one_line(words, says):
    assert says in error_of(benchmark, *words)

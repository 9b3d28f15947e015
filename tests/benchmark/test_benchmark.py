"""The benchmark's implementations compute the model, and its tables say where one does not."""

import importlib.util
import json

import numpy as np
import pytest
from jax.experimental import rnn
from tiny_run import error_of, load_script, write_cache

from bilstm_attn.benchmark import compare
from bilstm_attn.benchmark.compare import growth_table, share_of_peak, table
from bilstm_attn.benchmark.float64_model import reference_logits
from bilstm_attn.benchmark.keras_peer import pad_in_front
from bilstm_attn.benchmark.peer import Setting, join
from bilstm_attn.benchmark.peers import PEERS
from bilstm_attn.benchmark.worker import Work, load_work, make_params, save_work
from bilstm_attn.command_line import benchmark_cli
from bilstm_attn.config import ModelConfig
from bilstm_attn.types import Batch

pytestmark = pytest.mark.slow

benchmark = load_script("benchmark")
LENGTHS = np.array([9, 1, 4, 9])
SETTING = Setting(ModelConfig(), rows=4)


def make_batch(lengths, steps=9) -> Batch:
    lengths = np.asarray(lengths, np.int32)
    tokens = np.random.default_rng(0).integers(4, 10_000, (len(lengths), steps)).astype(np.int32)
    tokens = np.where(np.arange(steps) < lengths[:, None], tokens, 0)
    labels = (np.arange(len(lengths)) % 2).astype(np.int32)
    on_host = (tokens, lengths, labels, np.ones(len(lengths), np.float32))
    return Batch(*on_host)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(LENGTHS)


@pytest.fixture
def no_cudnn(monkeypatch):
    """Puts JAX's own reference in the place of cuDNN, which wants a GPU."""

    def lstm(x, h_0, c_0, weights, lengths, *sizes):
        inputs_size, hidden, layers, _, both_ways = sizes
        split = rnn.unpack_lstm_weights(weights, inputs_size, hidden, layers, both_ways)
        return rnn.lstm_ref(x, h_0, c_0, *split, lengths, *sizes)

    monkeypatch.setattr(rnn, "lstm", lstm)


@pytest.mark.parametrize(
    "name",
    ["ours, native", "flax nnx.RNN", "jax cudnn", "torch packed", "torch flipped", "torch padded"],
)
def test_implementation_is_the_float64_loop_and_its_step_moves_it(name, batch, no_cudnn):
    if name.startswith("torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed; it is in .[peers]")
    params = make_params(ModelConfig())
    peer = PEERS[name](params, SETTING._replace(on_gpu=name == "jax cudnn"))
    expected = reference_logits(params, batch)
    assert np.abs(expected).max() > 0.3  # else agreement says little
    off = np.abs(peer.logits(batch) - expected)
    # float32 rounding of logits of size 1; torch without a mask is right on unpadded rows alone.
    assert off[LENGTHS == 9].max() < 5e-6
    assert off.max() < 5e-6 or name == "torch padded"
    peer.train(batch)
    peer.epoch([(batch,)])
    if name.startswith("ours"):
        peer.layers(batch)
    else:
        assert np.abs(peer.logits(batch) - expected).max() > 0.01
        peer.fill(params)
    np.testing.assert_allclose(peer.logits(batch)[LENGTHS == 9], expected[LENGTHS == 9], atol=5e-6)


def test_keras_reads_each_review_at_the_end_of_its_row(batch):
    tokens = pad_in_front(batch)
    for row, length in enumerate(LENGTHS):
        assert list(tokens[row]) == [0] * (9 - length) + list(batch.tokens[row, :length])


def test_groups_joined_are_the_batch(batch):
    short = batch._replace(tokens=batch.tokens[:, :5])
    whole = join([short, batch])
    assert whole.tokens.shape == (8, 9)
    np.testing.assert_array_equal(whole.tokens[:4, :5], short.tokens)
    assert not whole.tokens[:4, 5:].any()
    np.testing.assert_array_equal(whole.length, [*LENGTHS, *LENGTHS])


def test_work_is_read_back_as_it_was_saved(tmp_path, batch):
    work = Work(batch, make_batch([3], 3), [(batch, make_batch([2, 1])), (batch,)])
    save_work(tmp_path / "work.npz", work)
    again = load_work(tmp_path / "work.npz")
    assert work.rows == again.rows == 2
    assert [len(groups) for groups in again.epoch] == [2, 1]
    for one, other in ((work.one, again.one), (work.epoch[0][1], again.epoch[0][1])):
        for field, value in one._asdict().items():
            np.testing.assert_array_equal(value, getattr(other, field))


@pytest.mark.slow
def test_one_command_prints_a_row_each_and_says_what_is_unmeasured(tmp_path, capsys, monkeypatch):
    write_cache(tmp_path)
    (tmp_path / "keras.py").write_text("raise ImportError('no keras here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS")  # the loops of 500 steps are worth compiling well
    where = ["--cache", tmp_path, "--batch-size", 4, "--out", tmp_path / "all.json"]
    short = ["--rounds", 2, "--epoch-steps", 0]
    assert benchmark(*where, *short, "--peers", "scan", "pallas", "keras on jax") == 0
    said = capsys.readouterr().out
    assert "keras on jax: unmeasured (no keras here)" in said
    assert "| keras on jax" not in said
    assert "ours, pallas: unmeasured (it is for gpu or tpu)" in said
    *_, row, product, layers = said.splitlines()
    name, *_, epoch, one, starts, error, _, _ = [cell.strip() for cell in row.strip("|").split("|")]
    assert name == "ours, scan"
    assert epoch == "–"
    assert float(one) > 0
    assert all(float(seconds) > 0 for seconds in starts.split(", "))
    assert 0 < float(error) < 5e-6
    assert "GFLOP/s" in product
    assert layers.startswith("ours, scan: the recurrent layers")
    assert json.loads((tmp_path / "all.json").read_text())


@pytest.mark.slow
def test_growth_has_a_row_for_each_length(tmp_path, capsys, monkeypatch):
    write_cache(tmp_path)
    monkeypatch.setattr(compare, "GROWTH", {"reviews": (4,)})
    assert benchmark("--cache", tmp_path, "--grow", "--peers", "native") == 0
    head, _, row = capsys.readouterr().out.splitlines()[-3:]
    assert head == "| tokens | reviews | hidden | devices | ours, native |"
    assert row.startswith("| 250 | 4 | 64 | all | 0.")


def test_quick_form_times_implementations_that_there_are(tmp_path):
    quick = benchmark_cli.QUICK
    assert all(sum(part in name for name in PEERS) == 1 for part in quick)
    write_cache(tmp_path)
    says = "movie_reviews has 60 reviews for batches of 128"
    assert says in error_of(benchmark, "--cache", tmp_path, "--quick")


def record(peer, command, number, seconds, **more):
    return {"peer": peer, "command": command, "round": number, "seconds": seconds} | more


def of_process(command, number, seconds, **more):
    return record("one", command, number, seconds, faults=10.0, peak_mib=100.0, **more)


def test_table_has_medians_of_the_rounds_after_the_first_call():
    records = [of_process("start", 0, 8.0), of_process("start", 1, 3.0)]
    records += [of_process("logits", 0, 9.0, error=2e-7), of_process("train", 0, 9.0)]
    for number, seconds in enumerate((0.3, 0.1, 0.2), start=1):
        records += [
            of_process("logits", number, seconds / 2, error=1e-7),
            of_process("train", number, seconds),
            of_process("one", number, seconds / 100),
        ]
    records += [of_process("epoch", 0, 5.0), of_process("epoch", 1, 2.0)]
    assert table(records, steps_an_epoch=10.0).splitlines()[-1] == (
        "| one | 0.200 (0.100-0.300) | 0.100 (0.050-0.150) | 20, 23 | 2.0 | 8.0, 3.0 | 2e-07 | 10 "
        "| 100 |"
    )


def test_share_of_peak_counts_the_products_over_own_tokens():
    work = Work(make_batch([1, 3], 9), make_batch([1], 1), [])
    records = [record("numpy", "product", 0, 1.0, gflops=8.0), record("one", "layers", 1, 0.001)]
    # Three passes, two directions, 4 tokens, (128 + 64) x 256 and (128 + 64) x 256, times 2.
    gflop = 3 * 2 * 4 * 2 * (192 * 256) * 2 / 1e9
    assert f"{100 * gflop / 0.001 / 8:.0f} % of that" in share_of_peak(records, work, ModelConfig())


def test_growth_table_has_a_row_for_each_setting():
    small, large = (
        {"tokens": 5, "reviews": n, "hidden": 64, "devices": devices}
        for n, devices in ((1, 0), (2, 2))
    )
    records = [record("a", "train", n, n / 4, setting=small) for n in range(3)]
    records += [record("a", "train", n, 1.0, setting=large) for n in range(3)]
    assert growth_table(records).splitlines()[2:] == [
        "| 5 | 1 | 64 | all | 0.375 |",
        "| 5 | 2 | 64 | 2 | 1.000 |",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--peers", "toch"], "--peers must be parts of ours, native, ours, pallas"),
        (["--rounds", "0"], "--rounds must be above 0, got 0"),
        (["--batch-size", "0"], "--batch-size must be above 0, got 0"),
        (["--hidden-size", "64", "0"], "--hidden-size must be above 0, got 0"),
        (["--epoch-steps", "-1"], "--epoch-steps must be at least 0, got -1"),
    ],
)
def test_mistake_is_one_line(words, says):
    assert says in error_of(benchmark, *words)

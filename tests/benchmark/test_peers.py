"""Every implementation computes the logits of the float64 model, and its steps change them."""

import importlib.util

import numpy as np
import pytest
from jax.experimental import rnn

from bilstm_attn.benchmark.float64_model import reference_logits
from bilstm_attn.benchmark.keras_peer import pad_in_front
from bilstm_attn.benchmark.peer import Setting, join_groups
from bilstm_attn.benchmark.peers import PEERS
from bilstm_attn.benchmark.workload import make_params
from bilstm_attn.config import ModelConfig
from bilstm_attn.types import Batch

STEPS, LENGTHS = 9, np.array([9, 1, 4, 9])
SETTING = Setting(ModelConfig(), rows=4)


@pytest.fixture(scope="module")
def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(4, 10_000, (4, STEPS)).astype(np.int32)
    tokens = np.where(np.arange(STEPS) < LENGTHS[:, None], tokens, 0)
    labels = np.array([0, 1, 0, 1], np.int32)
    return Batch(tokens, LENGTHS.astype(np.int32), labels, np.ones(4, np.float32))


@pytest.fixture
def no_cudnn(monkeypatch):
    """Replaces cuDNN, which needs a GPU, by JAX's own reference implementation."""

    def lstm(x, h_0, c_0, params, lengths, *sizes):
        inputs_size, hidden, layers, _, bidirectional = sizes
        split = rnn.unpack_lstm_weights(params, inputs_size, hidden, layers, bidirectional)
        return rnn.lstm_ref(x, h_0, c_0, *split, lengths, *sizes)

    monkeypatch.setattr(rnn, "lstm", lstm)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["ours, native", "flax nnx.RNN", "jax cudnn", "torch packed", "torch flipped", "torch padded"],
)
def test_logits_match_the_float64_model_and_training_changes_them(name, batch, no_cudnn):
    if name.startswith("torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed; it is in .[peers]")
    params = make_params(ModelConfig())
    peer = PEERS[name](params, SETTING._replace(on_gpu=name == "jax cudnn"))
    expected = reference_logits(params, batch)
    assert np.abs(expected).max() > 0.3  # agreement of logits near 0 would show little
    errors = np.abs(peer.logits(batch) - expected)
    # float32 rounding of logits of size 1; torch without a mask is right on unpadded rows only.
    assert errors[LENGTHS == STEPS].max() < 5e-6
    assert errors.max() < 5e-6 or name == "torch padded"
    peer.train_step(batch)
    peer.train_epoch([(batch,)])
    if name.startswith("ours"):
        peer.encoder_gradient(batch)
    else:
        assert np.abs(peer.logits(batch) - expected).max() > 0.01
        peer.set_params(params)
    unpadded = LENGTHS == STEPS
    np.testing.assert_allclose(peer.logits(batch)[unpadded], expected[unpadded], atol=5e-6)


def test_keras_padding_is_before_each_text(batch):
    tokens = pad_in_front(batch)
    for row, length in enumerate(LENGTHS):
        assert list(tokens[row]) == [0] * (STEPS - length) + list(batch.tokens[row, :length])


def test_joined_groups_have_all_rows_padded_to_the_longest(batch):
    short = batch._replace(tokens=batch.tokens[:, :5])
    joined = join_groups([short, batch])
    assert joined.tokens.shape == (8, STEPS)
    np.testing.assert_array_equal(joined.tokens[:4, :5], short.tokens)
    assert not joined.tokens[:4, 5:].any()
    np.testing.assert_array_equal(joined.tokens[4:], batch.tokens)
    np.testing.assert_array_equal(joined.length, [*LENGTHS, *LENGTHS])

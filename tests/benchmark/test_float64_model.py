"""The float64 model against scalar arithmetic, its own symmetries, and the package's model."""

import math

import jax
import numpy as np
import pytest

from bilstm_attn.benchmark.float64_model import (
    additive_scores,
    lstm,
    reference_logits,
    softmax_without_padding,
)
from bilstm_attn.config import ModelConfig
from bilstm_attn.nn.model import Model
from bilstm_attn.types import Batch

STEPS, ROWS, INPUTS, HIDDEN, VOCABULARY = 7, 5, 4, 3, 11
LENGTHS = np.array([7, 0, 1, 4, 6])
PADDING = np.arange(STEPS)[:, None] >= LENGTHS
CONFIG = ModelConfig(embedding_size=4, hidden_size=3, attention_size=5, dense_size=2)


def random_params(seed=0):
    numbers = np.random.default_rng(seed)
    return {
        "input_kernel": numbers.normal(size=(INPUTS, 4 * HIDDEN)),
        "recurrent_kernel": numbers.normal(size=(HIDDEN, 4 * HIDDEN)),
        "bias": numbers.normal(size=4 * HIDDEN),
    }


def random_inputs(seed=1):
    return np.random.default_rng(seed).normal(size=(STEPS, ROWS, INPUTS))


def random_batch(seed=2) -> Batch:
    tokens = np.random.default_rng(seed).integers(4, VOCABULARY, (ROWS, STEPS)).astype(np.int32)
    tokens = np.where(PADDING.T, 0, tokens)
    weights = np.ones(ROWS, np.float32)
    return Batch(tokens, LENGTHS.astype(np.int32), np.zeros(ROWS, np.int32), weights)


def random_model_params(seed=3):
    shapes = jax.eval_shape(lambda: Model(CONFIG, VOCABULARY).init(jax.random.key(0)))
    numbers = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape).astype(np.float32), shapes)


def test_one_unit_lstm_matches_scalar_arithmetic():
    params = {
        "input_kernel": np.array([[0.5, -0.25, 1.0, 0.75]]),
        "recurrent_kernel": np.array([[-1.0, 0.5, 0.25, 2.0]]),
        "bias": np.array([0.1, 1.0, -0.2, 0.3]),
    }
    h = c = 0.0
    expected = []
    for x in (2.0, -1.5):
        i = 1 / (1 + math.exp(-(0.5 * x - 1.0 * h + 0.1)))
        f = 1 / (1 + math.exp(-(-0.25 * x + 0.5 * h + 1.0)))
        g = math.tanh(1.0 * x + 0.25 * h - 0.2)
        o = 1 / (1 + math.exp(-(0.75 * x + 2.0 * h + 0.3)))
        c = f * c + i * g
        h = o * math.tanh(c)
        expected.append(h)
    states, last = lstm(params, np.array([2.0, -1.5]).reshape(2, 1, 1), np.array([2]))
    np.testing.assert_allclose(states[:, 0, 0], expected, rtol=1e-14)
    np.testing.assert_allclose(last[0, 0], h, rtol=1e-14)


@pytest.mark.parametrize("reverse", [False, True])
def test_nan_at_padding_changes_no_state(reverse):
    inputs = random_inputs()
    states, last = lstm(random_params(), inputs, LENGTHS, reverse)
    inputs[PADDING] = np.nan
    padded_states, padded_last = lstm(random_params(), inputs, LENGTHS, reverse)
    np.testing.assert_array_equal(padded_states, states)
    np.testing.assert_array_equal(padded_last, last)
    assert (states[PADDING] == 0).all()
    assert (last[LENGTHS == 0] == 0).all()


def test_reverse_direction_is_the_forward_one_on_reversed_tokens():
    inputs, reversed_inputs = random_inputs(), np.zeros((STEPS, ROWS, INPUTS))
    for row, length in enumerate(LENGTHS):
        reversed_inputs[:length, row] = inputs[:length, row][::-1]
    states, last = lstm(random_params(), inputs, LENGTHS, reverse=True)
    expected_states, expected_last = lstm(random_params(), reversed_inputs, LENGTHS)
    for row, length in enumerate(LENGTHS):
        # rtol: a matmul of other rows may add its terms in another order.
        np.testing.assert_allclose(
            states[:length, row], expected_states[:length, row][::-1], rtol=1e-12
        )
    np.testing.assert_allclose(last, expected_last, rtol=1e-12)


def test_additive_score_of_one_unit_matches_scalar_arithmetic():
    params = {
        "states_kernel": np.array([[2.0], [0.5]]),
        "query_kernel": np.array([[-1.0], [0.25]]),
        "bias": np.array([0.125]),
        "vector": np.array([[3.0]]),
    }
    scores = additive_scores(params, np.array([[[0.5, -1.0]]]), np.array([[2.0, 4.0]]))
    unit = math.tanh(2.0 * 0.5 + 0.5 * -1.0 - 1.0 * 2.0 + 0.25 * 4.0 + 0.125)
    np.testing.assert_allclose(scores, [[3.0 * unit]], rtol=1e-14)


def test_softmax_of_log_counts_is_their_fractions():
    scores = np.log([[1.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
    weights = softmax_without_padding(scores, np.array([3, 2]))
    np.testing.assert_allclose(weights, [[1 / 8, 1 / 2], [3 / 8, 1 / 2], [1 / 2, 0]], rtol=1e-14)


def test_logits_do_not_depend_on_the_rest_of_the_batch():
    params, batch = random_model_params(), random_batch()
    logits = reference_logits(params, batch)
    for row, length in enumerate(LENGTHS):
        alone = Batch(
            *(array[row : row + 1] for array in (batch.tokens[:, : max(length, 1)], *batch[1:4]))
        )
        np.testing.assert_allclose(reference_logits(params, alone), logits[[row]], rtol=1e-12)


def test_logits_match_the_plain_backend():
    params, batch = random_model_params(), random_batch()
    on_device = jax.device_put((params, batch.tokens, batch.length))
    logits = Model(CONFIG, VOCABULARY, "plain")(*on_device).logits
    expected = reference_logits(params, batch)
    assert np.abs(expected).max() > 0.3  # agreement of logits near 0 would show little
    np.testing.assert_allclose(logits, expected, atol=5e-6)  # float32 rounding of logits of size 1

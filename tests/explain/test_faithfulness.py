"""Faithfulness measures compared with values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from bilstm_attn.config import ModelConfig
from bilstm_attn.explain.agreement import kendall
from bilstm_attn.explain.faithfulness import (
    aopc,
    fraction_to_flip,
    infidelity,
    overlap_at,
    rank,
    toward_prediction,
)
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.recurrence import gather
from bilstm_attn.types import Output


class BagOfWords(Model):
    """A model whose logit is the sum of one value per word."""

    def __call__(self, params, tokens, lengths, keys=None):
        return self.classify(params, self.embed(params, tokens), lengths)

    def embed(self, params, tokens, keys=None):
        return params[tokens.T][..., None]

    def classify(self, params, inputs, lengths, keys=None):
        mask = jnp.arange(len(inputs))[:, None] < lengths[None]
        logits = (inputs[..., 0] * mask).sum(axis=0)
        unused = inputs.transpose(1, 0, 2)
        return Output(logits, unused[..., 0], unused, unused[:, 0], unused[:, 0])

    def make_reencoder(self, params, tokens):
        inputs = self.embed(params, tokens)
        return lambda positions, lengths: self.classify(params, gather(inputs, positions), lengths)


MODEL = BagOfWords(ModelConfig(), vocabulary_size=6)
VALUES = jnp.array([0.0, 2.0, -1.0, 0.5, 0.25, -3.0])
TOKENS = jnp.array([[1, 2, 3, 4], [5, 1, 0, 0], [0, 0, 0, 0]])
LENGTHS = jnp.array([4, 2, 0])  # logits 1.75, -1, 0
WEIGHTS = VALUES[TOKENS]
KEYS = jax.random.split(jax.random.key(0), 3)
DIRECTION = MODEL.task.toward_predicted(MODEL(VALUES, TOKENS, LENGTHS).logits)
SCORES = toward_prediction(WEIGHTS, DIRECTION, signed=True)


def test_scores_point_toward_the_predicted_label():
    assert SCORES[:2].tolist() == [[2, -1, 0.5, 0.25], [3, -2, 0, 0]]
    unsigned = toward_prediction(WEIGHTS, DIRECTION, signed=False)
    np.testing.assert_array_equal(unsigned, WEIGHTS)


def test_rank_puts_padding_last_and_keeps_the_order_of_ties():
    scores = jnp.array([[0.0, 1.0, 0.0, -5.0], [-1.0, -2.0, 9.0, 9.0]])
    assert rank(scores, jnp.array([4, 2])).tolist() == [[1, 0, 2, 3], [0, 1, 2, 3]]


def test_comprehensiveness_and_sufficiency_equal_values_computed_by_hand():
    measures = aopc(MODEL, VALUES, TOKENS, LENGTHS, SCORES, fractions=(0.25, 0.5))
    # Row 0 has 4 tokens: the top token is word 1, the top two are words 1 and 3.
    full_text = expit(1.75)
    expected = full_text - np.mean(expit([-0.25, -0.75])), full_text - np.mean(expit([2.0, 2.5]))
    # Row 1 has 2 tokens and predicted label 0: the top token is word 5 for both fractions.
    expected += expit(1.0) - expit(-2.0), expit(1.0) - expit(3.0)
    actual = [measure[row] for row in (0, 1) for measure in measures]
    np.testing.assert_allclose(actual, expected, atol=1e-6)  # float32 rounding of probabilities
    assert [float(measure[2]) for measure in measures] == [0, 0]  # nothing to delete


def test_fraction_to_flip_equals_values_computed_by_hand():
    # Without word 1 the first logit is -0.25; without word 5 the second is 2. An empty text
    # never flips.
    assert fraction_to_flip(MODEL, VALUES, TOKENS, LENGTHS, SCORES).tolist() == [0.25, 0.5, 1]
    # With negated scores, opposing words are deleted first and the prediction becomes stronger.
    negated = fraction_to_flip(MODEL, VALUES, TOKENS, LENGTHS, -SCORES)
    assert negated.tolist() == [1, 1, 1]


def test_infidelity_is_zero_for_weights_proportional_to_the_true_contributions():
    for scale in (1.0, 7.0):
        errors = infidelity(MODEL, VALUES, TOKENS, LENGTHS, scale * WEIGHTS, KEYS)
        np.testing.assert_allclose(errors, 0, atol=1e-10)
    zero = infidelity(MODEL, VALUES, TOKENS, LENGTHS, 0 * WEIGHTS, KEYS, samples=4000)
    # Mean square of a sum of independent terms, each present with probability 1/2.
    row = np.asarray(WEIGHTS[0], np.float64)
    assert zero[0] == pytest.approx((row.sum() / 2) ** 2 + (row**2).sum() / 4, rel=0.1)
    assert infidelity(MODEL, VALUES, TOKENS, LENGTHS, -SCORES[:, ::-1], KEYS)[0] > 0.1


def test_infidelity_of_weights_with_the_wrong_sign_equals_that_of_zero_weights():
    wrong, zero = (
        infidelity(MODEL, VALUES, TOKENS, LENGTHS, scale * WEIGHTS, KEYS) for scale in (-1, 0)
    )
    np.testing.assert_allclose(wrong, zero, rtol=1e-6)
    assert zero[0] > 0.1


def test_overlap_counts_the_tokens_in_both_top_sets():
    first = jnp.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    second = jnp.array([[3.0, 1.0, 4.0, 2.0], [1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert overlap_at(first, second, LENGTHS, 2).tolist() == [0.5, 1, 1]
    assert overlap_at(first, second, LENGTHS, 1).tolist() == [0, 1, 1]


def test_kendall_ignores_padding():
    first = np.array([[1.0, 2.0, 3.0, 4.0, 0.0], [1.0, 5.0, 7.0, 8.0, 9.0]])
    second = np.array([[1.0, 2.0, 4.0, 3.0, 9.0], [3.0, 1.0, 1.0, 1.0, 1.0]])
    agreement = kendall(first, second, np.array([4, 1]))
    assert agreement.taus[0] == pytest.approx((5 - 1) / 6)  # concordant minus discordant pairs
    assert agreement.p_values[0] == pytest.approx(1 / 3)  # 8 of 24 orders are as extreme
    assert np.isnan(agreement.taus[1])
    assert agreement.mean == agreement.taus[0]
    assert agreement.significant == 0


def test_agreement_reports_mean_spread_and_significant_fraction():
    generator = np.random.default_rng(0)
    first = generator.normal(size=(3, 30))
    second = np.stack([first[0], -first[1], generator.normal(size=30)])
    agreement = kendall(first, second, np.full(3, 30))
    assert agreement.taus[:2].tolist() == pytest.approx([1, -1])
    assert agreement.significant == pytest.approx(2 / 3)
    assert agreement.mean == pytest.approx(agreement.taus[2] / 3)
    assert agreement.spread == pytest.approx(np.std(agreement.taus))

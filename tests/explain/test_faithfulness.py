"""Measures of faithfulness against cases that were computed by hand."""

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
    toward_answer,
)
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.recurrence import gather
from bilstm_attn.types import Output


class BagOfWords(Model):
    """Each word has a number, and the logit is their sum."""

    def embed(self, params, tokens, keys=None):
        return params[tokens.T][..., None]

    def classify(self, params, inputs, lengths, keys=None):
        own = jnp.arange(len(inputs))[:, None] < lengths[None]
        logits = (inputs[..., 0] * own).sum(axis=0)
        nothing = inputs.transpose(1, 0, 2)
        return Output(logits, nothing[..., 0], nothing, nothing[:, 0], nothing[:, 0])

    def make_reencoder(self, params, tokens):
        inputs = self.embed(params, tokens)
        return lambda positions, lengths: self.classify(params, gather(inputs, positions), lengths)


MODEL = BagOfWords(ModelConfig(), vocabulary_size=6)
VALUES = jnp.array([0.0, 2.0, -1.0, 0.5, 0.25, -3.0])
TOKENS = jnp.array([[1, 2, 3, 4], [5, 1, 0, 0], [0, 0, 0, 0]])
LENGTHS = jnp.array([4, 2, 0])  # logits 1.75, -1, 0
WEIGHTS = VALUES[TOKENS]
KEYS = jax.random.split(jax.random.key(0), 3)
GIVEN = MODEL(VALUES, TOKENS, LENGTHS).logits
SCORES = toward_answer(WEIGHTS, GIVEN, signed=True)


def test_scores_speak_for_the_answer_that_was_given():
    assert SCORES[:2].tolist() == [[2, -1, 0.5, 0.25], [3, -2, 0, 0]]
    unsigned = toward_answer(WEIGHTS, GIVEN, signed=False)
    np.testing.assert_array_equal(unsigned, WEIGHTS)


def test_rank_puts_padding_last_and_of_ties_the_first_first():
    scores = jnp.array([[0.0, 1.0, 0.0, -5.0], [-1.0, -2.0, 9.0, 9.0]])
    assert rank(scores, jnp.array([4, 2])).tolist() == [[1, 0, 2, 3], [0, 1, 2, 3]]


def test_comprehensiveness_and_sufficiency_by_hand():
    found = aopc(MODEL, VALUES, TOKENS, LENGTHS, SCORES, fractions=(0.25, 0.5))
    # Review 1: of 4 tokens the top 1 is word 1, the top 2 words 1 and 3.
    first = expit(1.75)
    expected = first - np.mean(expit([-0.25, -0.75])), first - np.mean(expit([2.0, 2.5]))
    # Review 2, negative: of 2 tokens the top 1 is word 5, for both fractions.
    expected += expit(1.0) - expit(-2.0), expit(1.0) - expit(3.0)
    got = [measure[row] for row in (0, 1) for measure in found]
    np.testing.assert_allclose(got, expected, atol=1e-6)  # float32 rounding of probabilities
    assert [float(measure[2]) for measure in found] == [0, 0]  # nothing to delete


def test_least_share_that_flips_the_answer_by_hand():
    # Word 1 of four gone: the logit is -0.25. Word 5 of two: 2. The empty review never flips.
    assert fraction_to_flip(MODEL, VALUES, TOKENS, LENGTHS, SCORES).tolist() == [0.25, 0.5, 1]
    worst = fraction_to_flip(MODEL, VALUES, TOKENS, LENGTHS, -SCORES)
    assert worst.tolist() == [1, 1, 1]  # the evidence against goes first: all of it, and then 0


def test_infidelity_is_zero_for_weights_in_proportion_to_the_truth():
    for scale in (1.0, 7.0):
        found = infidelity(MODEL, VALUES, TOKENS, LENGTHS, scale * WEIGHTS, KEYS)
        np.testing.assert_allclose(found, 0, atol=1e-10)
    nothing = infidelity(MODEL, VALUES, TOKENS, LENGTHS, 0 * WEIGHTS, KEYS, samples=4000)
    # The mean square of a sum of independent terms, each there at even chances.
    own = np.asarray(WEIGHTS[0], np.float64)
    assert nothing[0] == pytest.approx((own.sum() / 2) ** 2 + (own**2).sum() / 4, rel=0.1)
    assert infidelity(MODEL, VALUES, TOKENS, LENGTHS, -SCORES[:, ::-1], KEYS)[0] > 0.1


def test_weights_of_the_other_sign_are_no_better_than_none():
    wrong, none = (
        infidelity(MODEL, VALUES, TOKENS, LENGTHS, each, KEYS) for each in (-WEIGHTS, 0 * WEIGHTS)
    )
    np.testing.assert_allclose(wrong, none, rtol=1e-6)
    assert none[0] > 0.1


def test_overlap_counts_the_tokens_in_both_tops():
    ones = jnp.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    others = jnp.array([[3.0, 1.0, 4.0, 2.0], [1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert overlap_at(ones, others, LENGTHS, 2).tolist() == [0.5, 1, 1]
    assert overlap_at(ones, others, LENGTHS, 1).tolist() == [0, 1, 1]


def test_kendall_is_over_own_tokens():
    ones = np.array([[1.0, 2.0, 3.0, 4.0, 0.0], [1.0, 5.0, 7.0, 8.0, 9.0]])
    others = np.array([[1.0, 2.0, 4.0, 3.0, 9.0], [3.0, 1.0, 1.0, 1.0, 1.0]])
    found = kendall(ones, others, np.array([4, 1]))
    assert found.taus[0] == pytest.approx((5 - 1) / 6)  # pairs in order less pairs that are not
    assert found.p_values[0] == pytest.approx(1 / 3)  # 8 of 24 orders are as far from 0
    assert np.isnan(found.taus[1])
    assert found.mean == found.taus[0]
    assert found.significant == 0


def test_agreement_of_many_reviews_has_a_mean_a_spread_and_a_share():
    numbers = np.random.default_rng(0)
    ones = numbers.normal(size=(3, 30))
    others = np.stack([ones[0], -ones[1], numbers.normal(size=30)])
    found = kendall(ones, others, np.full(3, 30))
    assert found.taus[:2].tolist() == pytest.approx([1, -1])
    assert found.significant == pytest.approx(2 / 3)
    assert found.mean == pytest.approx(found.taus[2] / 3)
    assert found.spread == pytest.approx(np.std(found.taus))

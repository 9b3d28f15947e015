"""What is asked of one model's attention, against asking it review by review."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kendalltau
from synthetic_task import CONFIG, QUIET, planted

from bilstm_attn.explain.attribution import ATTRIBUTIONS, completeness_error
from bilstm_attn.explain.faithfulness import aopc, fraction_to_flip, infidelity
from bilstm_attn.runtime.prng import stream
from bilstm_attn.studies.attention_as_explanation.measurements import (
    Attributions,
    Examiner,
    examine_attention,
    examine_attributions,
)
from bilstm_attn.studies.attention_as_explanation.reference_loops import Naive
from bilstm_attn.studies.attention_as_explanation.study_run import take

FEW = np.arange(5)


@pytest.fixture(scope="module")
def asked():
    """The planted model, some reviews, and who asks about them."""
    made = planted()
    examples = take(made.held_out, FEW)
    return Examiner(made.model, made.params, examples, CONFIG.data, made.mesh, QUIET)


def given_to_model():
    made = planted()
    lengths = jnp.asarray(made.held_out.lengths[FEW], jnp.int32)
    return made.params, jnp.asarray(made.tokens[FEW]), lengths


def keys_of_rows(examples):
    key = stream(jax.random.key(0), "explain")
    return jnp.stack([jax.random.fold_in(key, row) for row in examples.rows])


def probability(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


@pytest.mark.slow
def test_agreements_are_of_attention_gradient_and_a_word_left_out(asked):
    made, (params, tokens, lengths) = planted(), given_to_model()
    output = made.model(params, tokens, lengths)
    found = examine_attention(asked)
    np.testing.assert_allclose(found.logits, output.logits, atol=1e-5)
    np.testing.assert_allclose(found.greatest_weight, output.weights.max(axis=1), atol=1e-6)
    naive = Naive(made.model, params, CONFIG.data.max_tokens)

    @jax.grad
    def gradient_of(inputs, review):
        # The attention is held: it is that of the inputs as they are.
        states, last = made.model.encode(params, inputs, lengths[review])
        attention = output.weights.T[:, review]
        logits = made.model.logits_from_states(params, states, last, attention, lengths[review])
        return jax.nn.sigmoid(logits)[0]

    for row in FEW:
        ids, logit = np.asarray(tokens[row, : lengths[row]]), output.logits[row]
        change = np.abs(probability(logit - naive.leave_one_out(ids)) - probability(logit))
        inputs = made.model.embed(params, tokens[row : row + 1])
        gradient = np.abs((inputs * gradient_of(inputs, jnp.array([row]))).sum(axis=-1))[:, 0]
        attention = np.asarray(output.weights[row])
        own = slice(len(ids))
        for name, one, other in (
            ("attention, gradient", attention[own], gradient[own]),
            ("attention, leave one out", attention[own], change),
            ("gradient, leave one out", gradient[own], change),
        ):
            expected = kendalltau(one, other)
            # Changes that differ by float32's rounding alone may change places.
            assert found.agreements[name].taus[row] == pytest.approx(expected.statistic, abs=0.05)


@pytest.mark.slow
def test_measures_of_faithfulness_are_each_their_own(asked):
    made, given = planted(), given_to_model()
    keys, own = keys_of_rows(asked.examples), ("attention", "integrated_gradients")
    found = examine_attributions(asked, {name: ATTRIBUTIONS[name]() for name in own})
    side = jnp.sign(made.model(*given).logits)[:, None]
    for name in own:
        one = ATTRIBUTIONS[name]()
        weights = one(made.model, *given, keys)
        scores, signed = (weights * side, weights) if one.signed else (weights, weights * side)
        expected = {
            **aopc(made.model, *given, scores)._asdict(),
            "fraction_to_flip": fraction_to_flip(made.model, *given, scores),
            "infidelity": infidelity(made.model, *given, signed, keys),
        }
        for measure, numbers in found.faithful[name]._asdict().items():
            np.testing.assert_allclose(numbers, expected[measure], rtol=1e-4, atol=1e-5)
        means = {round(float(each.mean()), 3) for each in expected.values()}
        assert len(means) == 4  # so that none passes for another
    errors = completeness_error(made.model, *given, weights)
    np.testing.assert_allclose(found.completeness_errors, errors, atol=1e-5)
    assert found.completeness_errors.max() > 0


def test_what_is_kept_part_by_part_is_what_is_found_of_the_whole(asked):
    everyone = {name: ATTRIBUTIONS[name]() for name in ("attention", "gradient", "random")}

    def ask(reviews):
        part = dataclasses.replace(asked, examples=take(asked.examples, reviews))
        return examine_attributions(part, everyone)

    parts = [json.loads(json.dumps(ask(each).as_json())) for each in (FEW[:2], FEW[2:])]
    joined, whole = Attributions.from_json(parts), ask(FEW)
    assert list(joined.faithful) == list(whole.faithful) == list(everyone)
    assert list(joined.alike) == list(whole.alike)
    for found, expected in zip(jax.tree.leaves(joined), jax.tree.leaves(whole), strict=True):
        assert found.shape == (len(FEW),)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

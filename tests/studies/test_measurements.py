"""Measurements over many examples against measurements of single examples."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kendalltau
from synthetic_task import CONFIG, QUIET, synthetic_task

from bilstm_attn.explain.attribution import ATTRIBUTIONS, completeness_error
from bilstm_attn.explain.faithfulness import aopc, fraction_to_flip, infidelity
from bilstm_attn.runtime.prng import stream
from bilstm_attn.studies.attention_as_explanation.measurements import (
    AttributionMeasures,
    Evaluator,
    measure_attention,
    measure_attributions,
)
from bilstm_attn.studies.attention_as_explanation.reference_loops import ReferenceLoops

ROWS = np.arange(5)


@pytest.fixture(scope="module")
def evaluator():
    """An evaluator of the synthetic task's model on some held-out examples."""
    task = synthetic_task()
    examples = task.held_out.take(ROWS)
    return Evaluator(task.model, task.params, examples, CONFIG.data, task.mesh, QUIET)


def model_inputs():
    task = synthetic_task()
    lengths = jnp.asarray(task.held_out.lengths[ROWS], jnp.int32)
    return task.params, jnp.asarray(task.tokens[ROWS]), lengths


def keys_of_rows(examples):
    key = stream(jax.random.key(0), "explain")
    return jnp.stack([jax.random.fold_in(key, row) for row in examples.rows])


def probability(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


@pytest.mark.slow
def test_agreements_equal_kendalls_tau_of_single_examples(evaluator):
    task, (params, tokens, lengths) = synthetic_task(), model_inputs()
    output = task.model(params, tokens, lengths)
    measures = measure_attention(evaluator)
    np.testing.assert_allclose(measures.logits, output.logits, atol=1e-5)
    np.testing.assert_allclose(measures.max_weight, output.weights.max(axis=1), atol=1e-6)
    loops = ReferenceLoops(task.model, params, CONFIG.data.max_tokens)

    @jax.grad
    def gradient_of(inputs, row):
        # The attention is held constant at that of the unperturbed inputs.
        states, last = task.model.encode(params, inputs, lengths[row])
        attention = output.weights.T[:, row]
        logits = task.model.logits_from_states(params, states, last, attention, lengths[row])
        return jax.nn.sigmoid(logits)[0]

    for row in ROWS:
        ids, logit = np.asarray(tokens[row, : lengths[row]]), output.logits[row]
        change = np.abs(probability(logit - loops.leave_one_out(ids)) - probability(logit))
        inputs = task.model.embed(params, tokens[row : row + 1])
        gradient = np.abs((inputs * gradient_of(inputs, jnp.array([row]))).sum(axis=-1))[:, 0]
        attention = np.asarray(output.weights[row])
        own = slice(len(ids))
        for name, first, second in (
            ("attention, gradient", attention[own], gradient[own]),
            ("attention, leave one out", attention[own], change),
            ("gradient, leave one out", gradient[own], change),
        ):
            expected = kendalltau(first, second)
            # Changes that differ only by float32 rounding may swap ranks.
            assert measures.agreements[name].taus[row] == pytest.approx(
                expected.statistic, abs=0.05
            )


@pytest.mark.slow
def test_faithfulness_equals_that_of_each_attribution_alone(evaluator):
    task, inputs = synthetic_task(), model_inputs()
    keys, names = keys_of_rows(evaluator.examples), ("attention", "integrated_gradients")
    measures = measure_attributions(evaluator, {name: ATTRIBUTIONS[name]() for name in names})
    sign = jnp.sign(task.model(*inputs).logits)[:, None]
    for name in names:
        attribution = ATTRIBUTIONS[name]()
        weights = attribution(task.model, *inputs, keys)
        scores, signed = weights, weights * sign
        if attribution.signed:
            scores, signed = signed, scores
        expected = {
            **aopc(task.model, *inputs, scores)._asdict(),
            "fraction_to_flip": fraction_to_flip(task.model, *inputs, scores),
            "infidelity": infidelity(task.model, *inputs, signed, keys),
        }
        for measure, values in measures.faithfulness[name]._asdict().items():
            np.testing.assert_allclose(values, expected[measure], rtol=1e-4, atol=1e-5)
        means = {round(float(each.mean()), 3) for each in expected.values()}
        assert len(means) == 4  # so that none can be mistaken for another
    errors = completeness_error(task.model, *inputs, weights)
    np.testing.assert_allclose(measures.completeness_errors, errors, atol=1e-5)
    assert measures.completeness_errors.max() > 0


@pytest.mark.slow
def test_measures_cached_in_parts_equal_those_of_the_whole(evaluator):
    attributions = {name: ATTRIBUTIONS[name]() for name in ("attention", "gradient", "random")}

    def measure(rows):
        part = dataclasses.replace(evaluator, examples=evaluator.examples.take(rows))
        return measure_attributions(part, attributions)

    parts = [json.loads(json.dumps(measure(rows).as_json())) for rows in (ROWS[:2], ROWS[2:])]
    joined, whole = AttributionMeasures.from_json(parts), measure(ROWS)
    assert list(joined.faithfulness) == list(whole.faithfulness) == list(attributions)
    assert list(joined.agreements) == list(whole.agreements)
    for actual, expected in zip(jax.tree.leaves(joined), jax.tree.leaves(whole), strict=True):
        assert actual.shape == (len(ROWS),)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)

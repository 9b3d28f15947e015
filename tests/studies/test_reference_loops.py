"""Vectorised experiments against the reference loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_variants import make_model
from test_jain_wallace import KEYS, LENGTHS, STEPS, TOKENS

from bilstm_attn.explain.attribution import IntegratedGradients, LeaveOneOut, Lime, SmoothGrad
from bilstm_attn.explain.faithfulness import SAMPLES, aopc, fraction_to_flip, infidelity
from bilstm_attn.runtime.prng import draw_per_token, stream
from bilstm_attn.studies.attention_as_explanation.jain_wallace import (
    INITIAL_SCALE,
    adversaries,
    draw_orders,
    permutation_change,
)
from bilstm_attn.studies.attention_as_explanation.reference_loops import (
    ReferenceLoops,
    time_reference_loops,
)

pytestmark = pytest.mark.slow

ROWS = (0, 3)  # with six and four tokens
IDS = [np.asarray(TOKENS[row, : LENGTHS[row]]) for row in ROWS]


@pytest.fixture(scope="module")
def loops():
    return ReferenceLoops(*make_model("cell-lstm"), STEPS)


def jitted(experiment):
    model, params = make_model("cell-lstm")
    return jax.jit(partial(experiment, model))(params, TOKENS, LENGTHS, KEYS)


def test_leave_one_out_equals_the_loop(loops):
    expected = jitted(LeaveOneOut())
    for row, ids in zip(ROWS, IDS, strict=True):
        np.testing.assert_allclose(
            loops.leave_one_out(ids), expected[row, : len(ids)], atol=2e-6
        )  # float32 rounding of logits of size 1


def test_integrated_gradients_equal_the_loop(loops):
    expected = jitted(IntegratedGradients())
    for row, ids in zip(ROWS, IDS, strict=True):
        weights = loops.integrated_gradients(ids)
        np.testing.assert_allclose(weights, expected[row, : len(ids)], atol=2e-6)


def test_smooth_gradient_equals_the_loop(loops):
    expected, smooth = jitted(SmoothGrad()), SmoothGrad()
    size = make_model("cell-lstm")[0].config.embedding_size
    draw = partial(jax.random.normal, shape=(size,))
    noises = np.array(
        [draw_per_token(KEYS, STEPS, draw, jnp.int32(at)) for at in range(smooth.samples)]
    )
    for row, ids in zip(ROWS, IDS, strict=True):
        weights = loops.smooth_gradient(ids, noises[:, row, : len(ids)])
        np.testing.assert_allclose(weights, expected[row, : len(ids)], atol=2e-6)


def test_lime_equals_the_loop(loops):
    expected, copies = jitted(Lime()), np.asarray(Lime().copies(TOKENS, LENGTHS, KEYS))
    for row, ids in zip(ROWS, IDS, strict=True):
        weights = loops.lime(ids, copies[:, row, : len(ids)])
        np.testing.assert_allclose(weights, expected[row, : len(ids)], atol=2e-6)


def test_faithfulness_equals_the_loop(loops):
    model, params = make_model("cell-lstm")
    weights = np.random.default_rng(0).normal(size=TOKENS.shape).astype(np.float32)
    inputs, scores = (model, params, TOKENS, LENGTHS), jnp.asarray(weights)
    drops, fractions = aopc(*inputs, scores), fraction_to_flip(*inputs, scores)
    infidelities = infidelity(*inputs, scores, KEYS)
    keys = jax.vmap(lambda key: stream(key, "infidelity"))(KEYS)
    draws = np.array(
        [draw_per_token(keys, STEPS, jax.random.bernoulli, jnp.int32(at)) for at in range(SAMPLES)]
    )
    for row, ids in zip(ROWS, IDS, strict=True):
        own = slice(len(ids))
        expected = [each[row] for each in (*drops, fractions)]
        np.testing.assert_allclose(loops.faithfulness(ids, weights[row, own]), expected, atol=2e-6)
        error = loops.infidelity(ids, weights[row, own], draws[:, row, own])
        assert error == pytest.approx(float(infidelities[row]), abs=2e-6)
        assert error > 1e-5  # much larger than the tolerance


def test_permutation_change_equals_the_loop(loops):
    draws = 5
    expected = jitted(partial(permutation_change, draws=draws))
    orders = [np.asarray(draw_orders(KEYS, LENGTHS, STEPS, at)) for at in range(draws)]
    for row, ids in zip(ROWS, IDS, strict=True):
        own = [order[: len(ids), row] for order in orders]
        assert loops.permutation_change(ids, own) == pytest.approx(float(expected[row]), abs=1e-6)


def test_adversaries_equal_the_loop(loops):
    count, steps = 3, 30
    expected = jitted(partial(adversaries, count=count, steps=steps))
    scores = [
        INITIAL_SCALE * np.asarray(draw_per_token(KEYS, STEPS, jax.random.normal, at))
        for at in range(count)
    ]
    for row, ids in zip(ROWS, IDS, strict=True):
        changes = loops.adversaries(ids, np.stack([each[row] for each in scores]), steps)
        both = jnp.stack([expected.change[:, row], expected.divergence[:, row]], axis=1)
        # Adam's first steps have the same size for any gradient, which amplifies rounding.
        np.testing.assert_allclose(changes, both, atol=1e-3)


def test_every_experiment_is_timed():
    seconds = time_reference_loops(*make_model("cell-lstm"), STEPS, IDS[:1])
    assert list(seconds) == ["leave one out", "permutation", "adversaries", "attributions"]
    assert all(each > 0 for each in seconds.values())

"""Vectorised experiments against loops over one review, one word and one draw."""

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
    SPREAD,
    adversaries,
    draw_orders,
    permutation_change,
)
from bilstm_attn.studies.attention_as_explanation.reference_loops import Naive, time_naive

pytestmark = pytest.mark.slow

SHARDED = (0, 3)  # of six and of four tokens
IDS = [np.asarray(TOKENS[row, : LENGTHS[row]]) for row in SHARDED]


@pytest.fixture(scope="module")
def naive():
    return Naive(*make_model("cell-lstm"), STEPS)


def jitted(experiment):
    model, params = make_model("cell-lstm")
    return jax.jit(partial(experiment, model))(params, TOKENS, LENGTHS, KEYS)


def test_leaving_one_out(naive):
    found = jitted(LeaveOneOut())
    for row, ids in zip(SHARDED, IDS, strict=True):
        np.testing.assert_allclose(
            naive.leave_one_out(ids), found[row, : len(ids)], atol=2e-6
        )  # float32 rounding of logits of size 1


def test_integrated_gradients(naive):
    found = jitted(IntegratedGradients())
    for row, ids in zip(SHARDED, IDS, strict=True):
        weights = naive.integrated_gradients(ids)
        np.testing.assert_allclose(weights, found[row, : len(ids)], atol=2e-6)


def test_smooth_gradient(naive):
    found, one = jitted(SmoothGrad()), SmoothGrad()
    size = make_model("cell-lstm")[0].config.embedding_size
    draw = partial(jax.random.normal, shape=(size,))
    noises = np.array(
        [draw_per_token(KEYS, STEPS, draw, jnp.int32(at)) for at in range(one.samples)]
    )
    for row, ids in zip(SHARDED, IDS, strict=True):
        weights = naive.smooth_gradient(ids, noises[:, row, : len(ids)])
        np.testing.assert_allclose(weights, found[row, : len(ids)], atol=2e-6)


def test_lime(naive):
    found, copies = jitted(Lime()), np.asarray(Lime().copies(TOKENS, LENGTHS, KEYS))
    for row, ids in zip(SHARDED, IDS, strict=True):
        weights = naive.lime(ids, copies[:, row, : len(ids)])
        np.testing.assert_allclose(weights, found[row, : len(ids)], atol=2e-6)


def test_faithfulness(naive):
    model, params = make_model("cell-lstm")
    weights = np.random.default_rng(0).normal(size=TOKENS.shape).astype(np.float32)
    given, scores = (model, params, TOKENS, LENGTHS), jnp.asarray(weights)
    without, alone = aopc(*given, scores)
    shares, wrong = fraction_to_flip(*given, scores), infidelity(*given, scores, KEYS)
    keys = jax.vmap(lambda key: stream(key, "infidelity"))(KEYS)
    draws = np.array(
        [draw_per_token(keys, STEPS, jax.random.bernoulli, jnp.int32(at)) for at in range(SAMPLES)]
    )
    for row, ids in zip(SHARDED, IDS, strict=True):
        own = slice(len(ids))
        expected = [each[row] for each in (without, alone, shares)]
        np.testing.assert_allclose(naive.faithfulness(ids, weights[row, own]), expected, atol=2e-6)
        found = naive.infidelity(ids, weights[row, own], draws[:, row, own])
        assert found == pytest.approx(float(wrong[row]), abs=2e-6)
        assert found > 1e-5  # of which the tolerance is a small part


def test_permutation(naive):
    draws = 5
    found = jitted(partial(permutation_change, draws=draws))
    orders = [np.asarray(draw_orders(KEYS, LENGTHS, STEPS, at)) for at in range(draws)]
    for row, ids in zip(SHARDED, IDS, strict=True):
        own = [order[: len(ids), row] for order in orders]
        assert naive.permutation_change(ids, own) == pytest.approx(float(found[row]), abs=1e-6)


def test_adversaries(naive):
    count, steps = 3, 30
    found = jitted(partial(adversaries, count=count, steps=steps))
    scores = [
        SPREAD * np.asarray(draw_per_token(KEYS, STEPS, jax.random.normal, at))
        for at in range(count)
    ]
    for row, ids in zip(SHARDED, IDS, strict=True):
        judged = naive.adversaries(ids, np.stack([one[row] for one in scores]), steps)
        expected = jnp.stack([found.change[:, row], found.divergence[:, row]], axis=1)
        # 30 steps of Adam, whose first ones are of a size whatever the gradient's.
        np.testing.assert_allclose(judged, expected, atol=1e-3)


def test_times_are_of_each_experiment():
    seconds = time_naive(*make_model("cell-lstm"), STEPS, IDS[:1])
    assert list(seconds) == ["leave one out", "permutation", "adversaries", "attributions"]
    assert all(each > 0 for each in seconds.values())

"""Permuted and adversarial attention against NumPy loops; divergences against SciPy."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_variants import VOCABULARY, make_model
from scipy.spatial.distance import jensenshannon

from bilstm_attn.studies.attention_as_explanation.jain_wallace import (
    Adversaries,
    adversaries,
    draw_orders,
    jensen_shannon,
    permutation_change,
)

STEPS = 6
LENGTHS = jnp.array([6, 0, 1, 4])
MASK = np.arange(STEPS)[None] < np.asarray(LENGTHS)[:, None]
TOKENS = jnp.asarray(MASK * np.random.default_rng(3).integers(1, VOCABULARY, MASK.shape), jnp.int32)
KEYS = jax.random.split(jax.random.key(0), len(LENGTHS))


def test_jensen_shannon_equals_scipys():
    generator = np.random.default_rng(0)
    p, q = (generator.dirichlet(np.ones(5), size=3) for _ in range(2))
    p[0, :2], q[1] = 0, [0, 0, 0, 0, 1]
    p[0] /= p[0].sum()
    expected = jensenshannon(p, q, axis=1) ** 2
    np.testing.assert_allclose(
        jensen_shannon(jnp.asarray(p), jnp.asarray(q), axis=1), expected, atol=1e-6
    )
    disjoint = jensen_shannon(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    assert float(disjoint) == pytest.approx(np.log(2))


def test_jensen_shannon_of_subnormal_weights_is_finite():
    p, q = jnp.array([1.3e-38, 1.0]), jnp.array([0.0, 1.0])
    assert float(jensen_shannon(p, q)) == pytest.approx(0, abs=1e-7)
    assert np.isfinite(jax.grad(lambda p: jensen_shannon(p, q))(p)).all()


@cache
def run(name):
    model, params = make_model(name)
    return jax.device_get(jax.jit(model.__call__)(params, TOKENS, LENGTHS))


def probabilities_by_loop(name, weights):
    """Returns the probability of label 1 under weights `[b t]`, by NumPy loops over tokens."""
    params = jax.device_get(make_model(name)[1])
    states = np.asarray(run(name).states, np.float64).transpose(1, 0, 2)
    probabilities = []
    for row in range(len(LENGTHS)):
        context = sum(weights[row, t] * states[t, row] for t in range(STEPS))
        units = np.maximum(context @ params["dense"]["kernel"] + params["dense"]["bias"], 0)
        logit = units @ params["logit"]["kernel"][:, 0] + params["logit"]["bias"][0]
        probabilities.append(1 / (1 + np.exp(-logit)))
    return np.array(probabilities)


def attention_of(name) -> np.ndarray:
    return np.asarray(run(name).weights, np.float64)


def test_permutation_change_equals_the_loop_over_permutations():
    model, params = make_model("cell-lstm")
    draws = 7
    actual = jax.jit(partial(permutation_change, model, draws=draws))(params, TOKENS, LENGTHS, KEYS)
    weights = attention_of("cell-lstm")
    unpermuted = probabilities_by_loop("cell-lstm", weights)
    orders = [np.asarray(draw_orders(KEYS, LENGTHS, STEPS, at)).T for at in range(draws)]
    changes = [
        np.abs(
            probabilities_by_loop("cell-lstm", np.take_along_axis(weights, order, axis=1))
            - unpermuted
        )
        for order in orders
    ]
    # float32 rounding of probabilities
    np.testing.assert_allclose(actual, np.median(changes, axis=0), atol=1e-6)


def test_orders_are_uniform_permutations_of_own_tokens():
    draw = jax.jit(jax.vmap(lambda at: draw_orders(KEYS, LENGTHS, STEPS, at)))
    orders = np.asarray(draw(jnp.arange(600))).transpose(0, 2, 1)
    for row, length in enumerate(LENGTHS.tolist()):
        assert (np.sort(orders[:, row, :length], axis=1) == np.arange(length)).all()
        assert (orders[:, row, length:] == np.arange(length, STEPS)).all()
    assert len(np.unique(orders[:, 3, :4], axis=0)) == 24
    # Each position holds each token a quarter of the time; five standard deviations.
    fractions = [(orders[:, 3, t] == token).mean() for t in range(4) for token in range(4)]
    assert np.abs(np.array(fractions) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 600)


def test_permuting_uniform_attention_changes_nothing():
    model, params = make_model("attention-uniform")
    run = jax.jit(partial(permutation_change, model, draws=5))
    change = run(params, TOKENS, LENGTHS, KEYS)
    np.testing.assert_allclose(change, 0, atol=1e-6)


@pytest.fixture(scope="module")
def adversarial() -> Adversaries:
    model, params = make_model("cell-lstm")
    run = jax.jit(partial(adversaries, model, count=3, steps=300))
    return run(params, TOKENS, LENGTHS, KEYS)


def test_adversaries_are_normalised_attention_weights(adversarial):
    weights = np.asarray(adversarial.weights)
    assert weights.shape == (3, *MASK.shape)
    assert (weights[:, ~MASK] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=2), np.tile(LENGTHS > 0, (3, 1)), atol=1e-6)


def test_reported_change_and_divergence_are_those_of_the_weights(adversarial):
    attention = attention_of("cell-lstm")
    probability = probabilities_by_loop("cell-lstm", attention)
    for k in range(3):
        weights = np.asarray(adversarial.weights[k], np.float64)
        change = np.abs(probabilities_by_loop("cell-lstm", weights) - probability)
        np.testing.assert_allclose(adversarial.change[k], change, atol=1e-6)
        for row in (0, 2, 3):
            expected = jensenshannon(weights[row], attention[row]) ** 2
            np.testing.assert_allclose(adversarial.divergence[k, row], expected, atol=1e-5)


def test_adversaries_diverge_far_where_the_prediction_permits(adversarial):
    attention = attention_of("cell-lstm")[0]
    # The largest divergence has all weight on the token with the smallest weight.
    upper = jensenshannon(np.eye(STEPS)[attention.argmin()], attention) ** 2
    divergence = np.asarray(adversarial.max_divergence())
    assert 0.8 * upper < divergence[0] < upper + 1e-5
    assert abs(divergence[2]) < 1e-6  # a single token has only one possible attention


def test_max_divergence_considers_only_small_changes_of_the_probability():
    change, divergence = jnp.array([[0.01, 0.2], [0.3, 0.2]]), jnp.array([[0.1, 0.6], [0.5, 0.6]])
    adversarial = Adversaries(jnp.zeros((2, 2, 3)), change, divergence)
    np.testing.assert_allclose(adversarial.max_divergence(), [0.1, 0])
    np.testing.assert_allclose(adversarial.max_divergence(slack=0.25), [0.1, 0.6])

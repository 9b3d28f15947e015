"""Permuted and adversarial attention against loops, and SciPy's divergence."""

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
OWN = np.arange(STEPS)[None] < np.asarray(LENGTHS)[:, None]
TOKENS = jnp.asarray(OWN * np.random.default_rng(3).integers(1, VOCABULARY, OWN.shape), jnp.int32)
KEYS = jax.random.split(jax.random.key(0), len(LENGTHS))


def test_divergence_is_scipys():
    numbers = np.random.default_rng(0)
    p, q = (numbers.dirichlet(np.ones(5), size=3) for _ in range(2))
    p[0, :2], q[1] = 0, [0, 0, 0, 0, 1]
    p[0] /= p[0].sum()
    expected = jensenshannon(p, q, axis=1) ** 2
    np.testing.assert_allclose(
        jensen_shannon(jnp.asarray(p), jnp.asarray(q), axis=1), expected, atol=1e-6
    )
    apart = jensen_shannon(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    assert float(apart) == pytest.approx(np.log(2))


def test_divergence_of_weights_near_the_least_float_is_finite():
    p, q = jnp.array([1.3e-38, 1.0]), jnp.array([0.0, 1.0])
    assert float(jensen_shannon(p, q)) == pytest.approx(0, abs=1e-7)
    assert np.isfinite(jax.grad(lambda p: jensen_shannon(p, q))(p)).all()


@cache
def run(name):
    model, params = make_model(name)
    return jax.device_get(jax.jit(model.__call__)(params, TOKENS, LENGTHS))


def decide_by_loop(name, weights):
    """Returns the probability of each review under weights `[b t]`, by NumPy loops over tokens."""
    params = jax.device_get(make_model(name)[1])
    states = np.asarray(run(name).states, np.float64).transpose(1, 0, 2)
    probabilities = []
    for row in range(len(LENGTHS)):
        context = sum(weights[row, t] * states[t, row] for t in range(STEPS))
        units = np.maximum(context @ params["dense"]["kernel"] + params["dense"]["bias"], 0)
        logit = units @ params["logit"]["kernel"][:, 0] + params["logit"]["bias"][0]
        probabilities.append(1 / (1 + np.exp(-logit)))
    return np.array(probabilities)


def own_weights(name) -> np.ndarray:
    return np.asarray(run(name).weights, np.float64)


def test_permutation_is_the_loop_over_orders():
    model, params = make_model("cell-lstm")
    draws = 7
    found = jax.jit(partial(permutation_change, model, draws=draws))(params, TOKENS, LENGTHS, KEYS)
    weights = own_weights("cell-lstm")
    given = decide_by_loop("cell-lstm", weights)
    orders = [np.asarray(draw_orders(KEYS, LENGTHS, STEPS, at)).T for at in range(draws)]
    changes = [
        np.abs(decide_by_loop("cell-lstm", np.take_along_axis(weights, order, axis=1)) - given)
        for order in orders
    ]
    # float32 rounding of probabilities
    np.testing.assert_allclose(found, np.median(changes, axis=0), atol=1e-6)


def test_orders_are_permutations_of_own_tokens_all_as_likely():
    draw = jax.jit(jax.vmap(lambda at: draw_orders(KEYS, LENGTHS, STEPS, at)))
    orders = np.asarray(draw(jnp.arange(600))).transpose(0, 2, 1)
    for row, length in enumerate(LENGTHS.tolist()):
        assert (np.sort(orders[:, row, :length], axis=1) == np.arange(length)).all()
        assert (orders[:, row, length:] == np.arange(length, STEPS)).all()
    assert len(np.unique(orders[:, 3, :4], axis=0)) == 24
    # Each place holds each token a quarter of the time; five standard deviations.
    shares = [(orders[:, 3, place] == token).mean() for place in range(4) for token in range(4)]
    assert np.abs(np.array(shares) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 600)


def test_even_attention_has_nothing_to_permute():
    model, params = make_model("attention-uniform")
    find = jax.jit(partial(permutation_change, model, draws=5))
    change = find(params, TOKENS, LENGTHS, KEYS)
    np.testing.assert_allclose(change, 0, atol=1e-6)


@pytest.fixture(scope="module")
def found() -> Adversaries:
    model, params = make_model("cell-lstm")
    run = jax.jit(partial(adversaries, model, count=3, steps=300))
    return run(params, TOKENS, LENGTHS, KEYS)


def test_adversaries_are_attention_weights(found):
    weights = np.asarray(found.weights)
    assert weights.shape == (3, *OWN.shape)
    assert (weights[:, ~OWN] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=2), np.tile(LENGTHS > 0, (3, 1)), atol=1e-6)


def test_what_adversaries_report_is_what_they_do(found):
    own = own_weights("cell-lstm")
    given = decide_by_loop("cell-lstm", own)
    for k in range(3):
        weights = np.asarray(found.weights[k], np.float64)
        change = np.abs(decide_by_loop("cell-lstm", weights) - given)
        np.testing.assert_allclose(found.change[k], change, atol=1e-6)
        for row in (0, 2, 3):
            expected = jensenshannon(weights[row], own[row]) ** 2
            np.testing.assert_allclose(found.divergence[k, row], expected, atol=1e-5)


def test_adversaries_go_far_where_the_answer_lets_them(found):
    own = own_weights("cell-lstm")
    # No attention over n tokens is further from this one than all weight on its least token.
    furthest = [jensenshannon(np.eye(STEPS)[own[0].argmin()], own[0]) ** 2]
    greatest = np.asarray(found.greatest())
    assert 0.8 * furthest[0] < greatest[0] < furthest[0] + 1e-5
    assert abs(greatest[2]) < 1e-6  # one token: there is but one attention


def test_greatest_divergence_is_among_those_that_keep_the_answer():
    change, divergence = jnp.array([[0.01, 0.2], [0.3, 0.2]]), jnp.array([[0.1, 0.6], [0.5, 0.6]])
    one = Adversaries(jnp.zeros((2, 2, 3)), change, divergence)
    np.testing.assert_allclose(one.greatest(), [0.1, 0])  # at worst the attention itself
    np.testing.assert_allclose(one.greatest(slack=0.25), [0.1, 0.6])

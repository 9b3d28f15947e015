"""Every attention and pooling compared with a reference loop; edge cases of the softmax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import attention_scores, pool, softmax_without_padding

from bilstm_attn.nn.attention import ATTENTIONS, masked_softmax
from bilstm_attn.nn.pooling import POOLINGS
from bilstm_attn.nn.recurrence import length_mask

STEPS, ROWS, STATES, UNITS = 7, 5, 6, 3
LENGTHS = np.array([7, 0, 1, 4, 6])
MASK = length_mask(jnp.asarray(LENGTHS), STEPS)


def random_states(seed=0):
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(STEPS, ROWS, STATES)).astype(np.float32)
    return states, generator.normal(size=(ROWS, STATES)).astype(np.float32)


def make_attention(name):
    attention = ATTENTIONS[name](states_size=STATES, attention_size=UNITS, rngs=nnx.Rngs(0))
    graph, state = nnx.split(attention)
    generator = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32),
        nnx.to_pure_dict(state),
    )
    return nnx.merge(graph, params), params


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_matches_the_reference_loop(name):
    attention, params = make_attention(name)
    states, query = random_states()
    expected = softmax_without_padding(attention_scores(name, params, states, query), LENGTHS)
    weights = attention(jnp.asarray(states), jnp.asarray(query), MASK)
    np.testing.assert_allclose(weights, expected, atol=1e-6)  # float32 rounding of weights below 1


@pytest.mark.parametrize("name", ATTENTIONS)
def test_weights_sum_to_one_and_are_zero_at_padding(name):
    attention, _ = make_attention(name)
    states, query = random_states()
    weights = np.asarray(attention(jnp.asarray(states), jnp.asarray(query), MASK))
    np.testing.assert_allclose(weights.sum(axis=0), LENGTHS > 0, atol=1e-6)
    assert (weights[~np.asarray(MASK)] == 0).all()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_states_at_padding_change_no_bit_of_the_weights(name):
    attention, _ = make_attention(name)
    states, query = random_states()
    changed = np.where(np.asarray(MASK)[..., None], states, 1e3).astype(np.float32)
    np.testing.assert_array_equal(
        attention(jnp.asarray(changed), jnp.asarray(query), MASK),
        attention(jnp.asarray(states), jnp.asarray(query), MASK),
    )


@pytest.mark.parametrize("size", [1.0, 1e4, 1e38])
def test_softmax_and_its_gradient_are_finite_for_scores_of_any_size(size):
    scores = size * jnp.asarray(np.random.default_rng(0).normal(size=(STEPS, ROWS)), jnp.float32)
    scores = jnp.clip(scores, -3e38, 3e38)
    weights, backward = jax.vjp(lambda scores: masked_softmax(scores, MASK), scores)
    (d_scores,) = backward(jnp.ones_like(weights))
    assert np.isfinite(weights).all()
    assert np.isfinite(d_scores).all()
    np.testing.assert_allclose(weights.sum(axis=0), LENGTHS > 0, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_derivative_of_the_softmax_matches_its_equation(size):
    scores = size * np.random.default_rng(0).normal(size=(STEPS, ROWS)).astype(np.float32)
    direction = np.random.default_rng(1).normal(size=(STEPS, ROWS)).astype(np.float32)
    softmax = partial(masked_softmax, mask=MASK)
    weights, derivative = jax.jvp(softmax, (jnp.asarray(scores),), (jnp.asarray(direction),))
    # d w[t] = w[t] (d s[t] - sum_u w[u] d s[u]): zero where one token has all the weight.
    expected = weights * (direction - (weights * direction).sum(axis=0, keepdims=True))
    np.testing.assert_allclose(derivative, expected, atol=1e-6)  # float32 rounding of order 1
    assert (np.asarray(derivative)[:, LENGTHS == 1] == 0).all()


def test_equal_scores_give_uniform_weights_over_tokens():
    weights = masked_softmax(jnp.full((STEPS, ROWS), -7.0), MASK)
    expected = np.asarray(MASK) / np.maximum(LENGTHS, 1)
    np.testing.assert_allclose(weights, expected, atol=1e-7)


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_matches_the_reference_loop(name):
    states, last = random_states()
    states = states * np.asarray(MASK)[..., None]
    weights = softmax_without_padding(random_states(2)[0][..., 0], LENGTHS)
    pooling = POOLINGS[name](states_size=STATES, rngs=nnx.Rngs(0))
    context = pooling(
        jnp.asarray(states, jnp.float32), jnp.asarray(last), jnp.asarray(weights, jnp.float32), MASK
    )
    expected = pool(name, states, last, weights, LENGTHS)
    np.testing.assert_allclose(context, expected, atol=1e-6)


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_of_an_empty_example_has_a_finite_gradient(name):
    states, last = random_states()
    weights = jnp.asarray(softmax_without_padding(states[..., 0], LENGTHS), jnp.float32)
    pooling = POOLINGS[name](states_size=STATES, rngs=nnx.Rngs(0))
    gradient = jax.grad(lambda states: pooling(states, jnp.asarray(last), weights, MASK).sum())(
        jnp.asarray(states)
    )
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[~np.asarray(MASK)] == 0).all()

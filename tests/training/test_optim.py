"""The optimiser: schedules, Adam and AMSGrad as their sources have them, decay and penalty."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilstm_attn.config import OptimConfig
from bilstm_attn.training.optim import make_optimizer, make_schedule


def test_schedules_rise_hold_and_fall():
    constant = make_schedule(OptimConfig(learning_rate=0.5), 100)
    assert [float(constant(step)) for step in (0, 50, 99)] == [0.5, 0.5, 0.5]
    cosine = make_schedule(OptimConfig(learning_rate=0.5, schedule="cosine", warmup_steps=10), 110)
    assert [float(cosine(step)) for step in (0, 5, 10)] == pytest.approx([0, 0.25, 0.5])
    assert float(cosine(60)) == pytest.approx(0.25)
    assert float(cosine(110)) == pytest.approx(0, abs=1e-7)


def test_adam_is_keras_where_gradients_are_as_small_as_epsilon():
    config = OptimConfig(learning_rate=0.01, epsilon=1e-7)
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.zeros((2, 3))}
    state, numbers = optimizer.init(params), np.random.default_rng(0)
    m = v = place = np.zeros((2, 3))
    for t in range(1, 9):
        gradient = 1e-7 * numbers.normal(size=(2, 3))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        place = place - rate * m / (np.sqrt(v) + 1e-7)
        updates, state = optimizer.update(
            {"kernel": jnp.asarray(gradient, jnp.float32)}, state, params
        )
        params = jax.tree.map(jnp.add, params, updates)
        # float32: 1 - 0.999^t is good to some 1e-4 of itself at first.
        np.testing.assert_allclose(params["kernel"], place, rtol=1e-3)


def test_decay_shrinks_matrices_and_leaves_biases():
    config = OptimConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_amsgrad_divides_by_the_greatest_mean_so_far():
    config = OptimConfig(learning_rate=0.01, epsilon=1e-12, amsgrad=True)
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.zeros((2, 3))}
    state, numbers = optimizer.init(params), np.random.default_rng(0)
    m = v = most = place = np.zeros((2, 3))
    for t, size in enumerate((1.0, 10.0, 0.1, 0.1), start=1):
        gradient = size * numbers.normal(size=(2, 3))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        most = np.maximum(most, v)
        place = place - 0.01 * m / (1 - 0.9**t) * np.sqrt((1 - 0.999**t) / most)
        updates, state = optimizer.update(
            {"kernel": jnp.asarray(gradient, jnp.float32)}, state, params
        )
        params = jax.tree.map(jnp.add, params, updates)
        np.testing.assert_allclose(params["kernel"], place, rtol=1e-3)  # as above


def test_penalty_joins_the_gradient_of_all_but_the_attention():
    config = OptimConfig(l2_penalty=0.5, amsgrad=True)
    plain = dataclasses.replace(config, l2_penalty=0.0)
    params = {name: {"kernel": jnp.full((2, 3), 0.7)} for name in ("attention", "logit")}
    still = jax.tree.map(jnp.zeros_like, params)
    penalised = make_optimizer(config, 10)
    found, _ = penalised.update(still, penalised.init(params), params)
    by_hand = make_optimizer(plain, 10)
    gradient = still | {"logit": {"kernel": jnp.full((2, 3), 0.5 * 0.7)}}
    expected, _ = by_hand.update(gradient, by_hand.init(params), params)
    assert float(jnp.abs(expected["logit"]["kernel"]).min()) > 0
    np.testing.assert_array_equal(found["attention"]["kernel"], 0)
    np.testing.assert_allclose(found["logit"]["kernel"], expected["logit"]["kernel"], rtol=1e-6)

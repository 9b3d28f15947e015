"""Models trained beside another one: adversaries, guided perceptrons, frozen attention."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import CONFIG, WORDS, bar, planted
from scipy.stats import entropy

from bilstm_attn.explain.jain_wallace import jensen_shannon
from bilstm_attn.explain.wiegreffe_pinter import (
    Adversary,
    Labels,
    divergence,
    fit,
    logits_under,
)
from bilstm_attn.model import Model
from bilstm_attn.types import Batch


def held_out() -> Batch:
    made = planted()
    labels = jnp.asarray(made.held_out.labels, jnp.int32)
    lengths = jnp.asarray(made.held_out.lengths, jnp.int32)
    return Batch(jnp.asarray(made.tokens), lengths, labels, jnp.ones(len(labels)))


def accuracy(logits) -> float:
    return float(((np.asarray(logits) > 0) == planted().held_out.labels).mean())


def output(model, params):
    return jax.jit(model.__call__)(params, held_out().tokens, held_out().length)


def test_divergence_is_scipys():
    numbers = np.random.default_rng(0)
    p, q = (numbers.dirichlet(np.ones(5), size=3).astype(np.float32) for _ in range(2))
    expected = entropy(p, q, axis=1)
    np.testing.assert_allclose(divergence(jnp.asarray(p), jnp.asarray(q)), expected, atol=1e-5)
    padded = [jnp.pad(jnp.asarray(each), ((0, 0), (0, 2))) for each in (p, q)]
    np.testing.assert_allclose(divergence(*padded), expected, atol=1e-5)


def test_model_that_is_fitted_learns():
    made = planted()
    assert accuracy(output(made.model, made.params).logits) > 0.97


@cache
def adversary(strength: float) -> dict:
    made = planted()
    given = made.model, made.params, made.training, dataclasses.replace(CONFIG, seed=1), made.mesh
    return fit(Adversary(strength), *given, bar, epochs=12)


def apart(params) -> tuple[float, float]:
    """Returns mean JSD of attention and mean change of probability from the base's."""
    made = planted()
    own, base = (output(made.model, each) for each in (params, made.params))
    change = jnp.abs(jax.nn.sigmoid(own.logits) - jax.nn.sigmoid(base.logits))
    return float(jensen_shannon(own.weights, base.weights, axis=1).mean()), float(change.mean())


@pytest.mark.slow
def test_adversary_gives_the_bases_answers_and_the_stronger_it_is_other_attention():
    (jsd_weak, change_weak), (jsd_strong, change_strong) = (
        apart(adversary(0.0)),
        apart(adversary(0.1)),
    )
    assert change_weak < 0.05
    assert change_strong < 0.1
    assert jsd_strong > 1.5 * jsd_weak
    assert jsd_strong > 0.3


@pytest.mark.slow
def test_base_stays_as_it_is_and_frozen_parameters_too():
    made = planted()
    before = jax.device_get(made.params)
    fitted = fit(
        Adversary(0.1),
        made.model,
        made.params,
        made.training,
        CONFIG,
        made.mesh,
        bar,
        epochs=1,
        frozen=("attention",),
    )
    jax.tree.map(np.testing.assert_array_equal, before, made.params)
    # It began as the base did, whose attention has moved since.
    first = fit(Labels(), made.model, {}, made.training, CONFIG, made.mesh, bar, epochs=0)
    jax.tree.map(np.testing.assert_array_equal, fitted["attention"], first["attention"])
    assert not np.array_equal(fitted["logit"]["kernel"], first["logit"]["kernel"])
    assert not np.array_equal(made.params["attention"]["kernel"], first["attention"]["kernel"])


def test_imposed_weights_are_those_that_count():
    made, batch = planted(), held_out()
    states, last = made.model.encode(
        made.params, made.model.embed(made.params, batch.tokens), batch.length
    )
    weights = output(made.model, made.params).weights.T
    own = made.model.decide(made.params, states, last, weights, batch.length)
    np.testing.assert_allclose(
        logits_under(made.model, made.params, batch.tokens, batch.length, weights),
        own,
        atol=1e-5,
        rtol=1e-5,
    )
    turned = logits_under(
        made.model, made.params, batch.tokens, batch.length, jnp.roll(weights, 1, axis=0)
    )
    assert float(jnp.abs(turned - own).max()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("guided", [True, False])
def test_perceptron_learns_under_a_guide_and_alone(guided):
    made = planted()
    config = dataclasses.replace(CONFIG.model, encoder="token_wise")
    perceptron = Model(config, WORDS)
    objective = Labels(made.model if guided else None)
    params = fit(
        objective, perceptron, made.params, made.training, CONFIG, made.mesh, bar, epochs=6
    )
    imposed = output(made.model, made.params).weights.T if guided else None
    given = held_out().tokens, held_out().length
    assert accuracy(logits_under(perceptron, params, *given, imposed)) > 0.95

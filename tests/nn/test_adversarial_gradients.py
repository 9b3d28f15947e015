"""The gradients of adversarial training on every backend (Miyato et al., 2017).

A perturbation along the gradient of the loss, held constant, is added to the embeddings; the loss
of the perturbed embeddings is then differentiated in the parameters.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient
from tiny_run import error_of

from bilstm_attn.config import ModelConfig
from bilstm_attn.nn.backend import prepare_native
from bilstm_attn.nn.model import Model

prepare_native()

CONFIG = ModelConfig(embedding_size=4, hidden_size=3, layers=2, attention_size=5, dense_size=2)
VOCABULARY = 11
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, VOCABULARY, (3, 6)))
LENGTHS = jnp.asarray([6, 2, 0])
LABELS = jnp.asarray([1, 0, 1])
BACKENDS = ("scan", "native", pytest.param("pallas", marks=pytest.mark.slow))


def loss_of_embeddings(model, params, embeddings):
    logits = model.classify(params, embeddings, LENGTHS).logits
    return model.task.loss(logits, LABELS).sum()


def perturbation(model, params, size=0.5):
    """Returns `size * d / |d|` per example; d is the gradient of the loss in the embeddings."""
    embeddings = model.embed(params, TOKENS)
    d_embeddings = jax.grad(lambda inputs: loss_of_embeddings(model, params, inputs))(embeddings)
    norm = jnp.sqrt((d_embeddings**2).sum(axis=(0, 2), keepdims=True) + 1e-12)
    return size * d_embeddings / norm


def adversarial_loss(model, params):
    noise = perturbation(model, stop_gradient(params))
    return loss_of_embeddings(model, params, model.embed(params, TOKENS) + noise)


def loss_with_differentiated_perturbation(model, params):
    noise = perturbation(model, params)
    return loss_of_embeddings(model, params, model.embed(params, TOKENS) + noise)


def make_model(backend):
    model = Model(CONFIG, VOCABULARY, backend)
    params = model.init(jax.random.key(0))
    # Embeddings of order 1, so that the perturbation has a direction well above rounding.
    return model, params | {"embedding": 20 * params["embedding"]}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_adversarial_gradient_matches_the_plain_backend(backend, jit):
    def gradient(backend):
        model, params = make_model(backend)
        call = jax.value_and_grad(lambda params: adversarial_loss(model, params))
        return (jax.jit(call) if jit else call)(params)

    # float32 rounding of sums of dozens of terms of order 1
    compare = partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)
    jax.tree.map(compare, gradient(backend), gradient("plain"))


@pytest.mark.parametrize("backend", ["plain", "scan", "native"])
def test_adversarial_gradient_treats_the_perturbation_as_constant(backend):
    model, params = make_model(backend)
    noise = perturbation(model, params)
    assert float(jnp.abs(noise).max()) > 0.05
    expected = jax.grad(
        lambda params: loss_of_embeddings(model, params, model.embed(params, TOKENS) + noise)
    )(params)
    actual = jax.grad(lambda params: adversarial_loss(model, params))(params)
    # The same operations, which JAX traces and orders differently
    compare = partial(np.testing.assert_allclose, atol=2e-6, rtol=1e-5)
    jax.tree.map(compare, actual, expected)


@pytest.mark.parametrize("backend", ["native", pytest.param("pallas", marks=pytest.mark.slow)])
def test_gradient_through_the_perturbation_is_a_one_line_error(backend):
    model, params = make_model(backend)
    message = error_of(
        jax.grad(lambda params: loss_with_differentiated_perturbation(model, params)), params
    )
    assert message == (
        f"backend {backend} does not support second derivatives; apply jax.lax.stop_gradient to "
        "the parameters and inputs of the inner gradient, or use backend scan or plain"
    )

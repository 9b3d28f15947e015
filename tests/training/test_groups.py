"""Groups of a batch run inside conditions on a CPU, but never a convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bilstm_attn.config import ModelConfig
from bilstm_attn.nn import encoder
from bilstm_attn.nn.encoder import Encoder
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.recurrence import length_mask
from bilstm_attn.runtime.devices import make_mesh, replicate, shard_rows
from bilstm_attn.training.objectives import CrossEntropy
from bilstm_attn.training.step import initial_state, make_train_step
from bilstm_attn.types import Batch

SIZES = {"embedding_size": 4, "hidden_size": 3, "attention_size": 5, "layers": 1}
SIZES |= {"dense_size": 0, "head_dropout": 0.0}


class Convolution(Encoder):
    """A convolution of width 3."""

    def __init__(self, config, backend, *, rngs):
        shape = (3, config.embedding_size, config.states_size)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape))

    def __call__(self, inputs, lengths, keys):
        states = jax.lax.conv_general_dilated(
            inputs, self.kernel[...], [1], "SAME", dimension_numbers=("WNC", "WIO", "WNC")
        )
        states = jnp.where(length_mask(lengths, len(inputs))[..., None], jnp.tanh(states), 0)
        return states, states.sum(axis=0)


@pytest.fixture
def convolution(monkeypatch):
    monkeypatch.setitem(encoder.ENCODERS, "convolution", Convolution)


def group(steps: int) -> Batch:
    tokens = np.random.default_rng(steps).integers(3, 11, (8, steps)).astype(np.int32)
    label = (tokens[:, 0] % 2).astype(np.int32)
    return Batch(tokens, np.full(8, steps, np.int32), label, np.ones(8, np.float32))


def make_step(name: str):
    mesh, adam = make_mesh(8, 2), optax.adam(0.05)
    model = Model(ModelConfig(**SIZES, encoder=name), 11)
    step = make_train_step(model, CrossEntropy(), adam, mesh)
    state = replicate(initial_state(model, CrossEntropy(), adam, 0), mesh)
    batch = shard_rows((group(5), group(7)), mesh)
    return step, state, batch, replicate(jax.random.key(0), mesh)


def test_a_recurrent_encoder_runs_each_group_inside_a_condition():
    step, *arguments = make_step("recurrent")
    assert step.lower(*arguments).as_text().count("stablehlo.case") == 2


def test_a_convolution_runs_outside_of_conditions(convolution):
    step, *arguments = make_step("convolution")
    text = step.lower(*arguments).as_text()
    assert "stablehlo.convolution" in text
    assert "stablehlo.case" not in text


def test_a_convolution_encoder_trains_on_two_devices(convolution):
    step, state, batch, key = make_step("convolution")
    losses = []
    for _ in range(30):
        state, terms = step(state, batch, key)
        term = terms["cross_entropy"]
        losses.append(float(term.sum / term.count))
    assert losses[-1] < 0.8 * losses[0]

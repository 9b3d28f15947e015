"""Cells with gate parameters (peepholes) or with noise per time step (zoneout)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bilstm_attn.config import ModelConfig
from bilstm_attn.nn import cells
from bilstm_attn.nn.cells import LSTM, CellParams
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.recurrence import run_direction

STEPS, ROWS, INPUTS, HIDDEN = 7, 3, 4, 5
LENGTHS = np.array([7, 0, 4])


class Peephole(LSTM):
    """Gers and Schmidhuber, 2000: `i` and `f` also depend on `c`, and `o` depends on `c'`."""

    def __init__(self, inputs_size, hidden_size, *, rngs):
        super().__init__(inputs_size, hidden_size, rngs=rngs)
        self.peepholes = nnx.Param(jax.random.normal(rngs.params(), (3, hidden_size)))

    def params(self):
        return super().params()._replace(gate=self.peepholes[...])

    @staticmethod
    def gate(params, gates, carry, noise=None):
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        i, f = i + params[0][None] * carry[0], f + params[1][None] * carry[0]
        cell = jax.nn.sigmoid(f) * carry[0] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return cell, jax.nn.sigmoid(o + params[2][None] * cell) * jnp.tanh(cell)


class Zoneout(LSTM):
    """Krueger et al., 2017, arXiv:1606.01305: some units keep their previous hidden state."""

    def noise(self, keys, steps):
        shape = (steps, self.hidden_size)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, shape))(keys)
        return keep.transpose(1, 0, 2)

    @staticmethod
    def gate(params, gates, carry, noise=None):
        cell, hidden = LSTM.gate(params, gates, carry)
        return cell, hidden if noise is None else jnp.where(noise, carry[1], hidden)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def peephole_loop(cell, inputs):
    """Returns the states [t b h] by a float64 loop from the equations."""
    (kernel, bias), peepholes = jax.tree.map(np.float64, tuple(cell.params()))
    states = np.zeros((STEPS, ROWS, HIDDEN))
    for row, length in enumerate(LENGTHS):
        c, h = np.zeros(HIDDEN), np.zeros(HIDDEN)
        for t in range(length):
            i, f, g, o = np.split(np.concatenate([inputs[t, row], h]) @ kernel + bias, 4)
            forget, add = sigmoid(f + peepholes[1] * c), sigmoid(i + peepholes[0] * c)
            c = forget * c + add * np.tanh(g)
            h = sigmoid(o + peepholes[2] * c) * np.tanh(c)
            states[t, row] = h
    return states


def random_inputs():
    return np.random.default_rng(0).normal(size=(STEPS, ROWS, INPUTS)).astype(np.float32)


def test_peephole_cell_matches_the_reference_loop():
    cell = Peephole(INPUTS, HIDDEN, rngs=nnx.Rngs(0))
    states, _ = run_direction(cell, jnp.asarray(random_inputs()), jnp.asarray(LENGTHS))
    # float32 rounding over 7 steps of values below 1.
    np.testing.assert_allclose(states, peephole_loop(cell, random_inputs()), atol=2e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_of_gate_parameters_matches_plain_jax(reverse):
    graph, params = nnx.split(Peephole(INPUTS, HIDDEN, rngs=nnx.Rngs(0)))

    def loss(backend, params, inputs):
        cell = nnx.merge(graph, params)
        lengths = jnp.asarray(LENGTHS)
        states, last = run_direction(cell, inputs, lengths, reverse=reverse, backend=backend)
        return jnp.sin(states).sum() + jnp.cos(last).sum()

    scan, plain = (
        jax.jit(jax.grad(partial(loss, backend), (0, 1)))(params, random_inputs())
        for backend in ("scan", "plain")
    )
    assert float(jnp.abs(scan[0]["peepholes"][...]).min()) > 0
    # float32 rounding of sums of dozens of terms of order 1.
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), scan, plain)


@pytest.fixture
def zoneout(monkeypatch) -> Model:
    monkeypatch.setitem(cells.CELLS, "zoneout", Zoneout)
    sizes = {"embedding_size": 4, "hidden_size": 3, "attention_size": 5, "dense_size": 0}
    return Model(ModelConfig(**sizes, cell="zoneout", input_dropout=0.0, layers=1), 11)


def test_step_noise_needs_keys_and_does_not_depend_on_the_other_rows(zoneout):
    params = zoneout.init(jax.random.key(0))
    tokens, keys = jnp.array([[4, 5, 6], [7, 8, 0]]), jax.random.split(jax.random.key(1), 2)
    lengths = jnp.array([3, 2])
    evaluation = zoneout(params, tokens, lengths).logits
    training = zoneout(params, tokens, lengths, keys).logits
    assert (jnp.abs(training - evaluation) > 1e-5).all()
    swapped = zoneout(params, tokens[::-1], lengths[::-1], keys[::-1]).logits
    np.testing.assert_allclose(swapped[::-1], training, atol=1e-6)  # float32 rounding


def test_gradient_with_step_noise_matches_plain_jax(zoneout):
    params = zoneout.init(jax.random.key(0))
    tokens, keys = jnp.array([[4, 5, 6], [7, 8, 0]]), jax.random.split(jax.random.key(1), 2)

    def loss(backend, params):
        model = Model(zoneout.config, 11, backend)
        return model(params, tokens, jnp.array([3, 2]), keys).logits.sum()

    scan, plain = (jax.grad(partial(loss, backend))(params) for backend in ("scan", "plain"))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-5), scan, plain)


def test_a_cell_has_no_gate_parameters_by_default():
    assert isinstance(LSTM(INPUTS, HIDDEN, rngs=nnx.Rngs(0)).params(), CellParams)
    assert LSTM(INPUTS, HIDDEN, rngs=nnx.Rngs(0)).params().gate == ()

"""Every cell compared with a loop from its equations, Flax's cell and finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import RECURRENCES

from bilstm_attn.nn.cells import CELLS
from bilstm_attn.nn.recurrence import Noise, run_direction

# float32 rounding over at most 7 steps of values below 1.
TOLERANCE = 2e-6
STEPS, ROWS, INPUTS, HIDDEN = 7, 5, 4, 6
LENGTHS = np.array([7, 0, 1, 4, 6])


def make_cell(name, seed=0, scale=1.0):
    """Returns a cell with random parameters, biases included."""
    cell = CELLS[name](inputs_size=INPUTS, hidden_size=HIDDEN, rngs=nnx.Rngs(seed))
    graph, state = nnx.split(cell)
    generator = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(scale * generator.normal(size=leaf.shape), jnp.float32),
        nnx.to_pure_dict(state),
    )
    return graph, params


def random_inputs(seed=1):
    return np.random.default_rng(seed).normal(size=(STEPS, ROWS, INPUTS)).astype(np.float32)


@partial(jax.jit, static_argnums=0, static_argnames=("reverse", "backend", "options"))
def run(graph, params, inputs, lengths, noise=None, **static):
    return run_direction(nnx.merge(graph, params), inputs, lengths, noise=Noise(noise), **static)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_cell_matches_the_reference_loop(name, reverse):
    graph, params = make_cell(name)
    inputs = random_inputs()
    states, last = run(graph, params, inputs, LENGTHS, reverse=reverse)
    expected_states, expected_last = RECURRENCES[name](params, inputs, LENGTHS, reverse)
    np.testing.assert_allclose(states, expected_states, atol=TOLERANCE)
    np.testing.assert_allclose(last, expected_last, atol=TOLERANCE)


def flax_cell(name, params):
    """Returns Flax's cell with our parameters."""
    rngs = nnx.Rngs(0)
    if name == "lstm":
        cell = nnx.LSTMCell(INPUTS, HIDDEN, rngs=rngs)
        for gate, letter in enumerate("ifgo"):
            columns = slice(gate * HIDDEN, (gate + 1) * HIDDEN)
            input_gate = cell.if_ if letter == "f" else getattr(cell, f"i{letter}")
            hidden_gate = getattr(cell, f"h{letter}")
            input_gate.kernel[...] = params["input_kernel"][:, columns]
            hidden_gate.kernel[...] = params["recurrent_kernel"][:, columns]
            hidden_gate.bias[...] = params["bias"][columns]
        return cell
    cell = nnx.GRUCell(INPUTS, HIDDEN, rngs=rngs)
    cell.dense_i.kernel[...] = params["input_kernel"]
    cell.dense_i.bias[...] = params["bias"]
    cell.dense_h.kernel[...] = params["recurrent_kernel"]
    return cell


@pytest.mark.parametrize("length", [1, 3, STEPS])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_cell_matches_flax_with_the_same_parameters(name, length):
    graph, params = make_cell(name)
    if name == "gru":  # Flax's GRU has no candidate bias
        params["candidate_bias"] = jnp.zeros(HIDDEN)
    inputs = random_inputs()
    cell = flax_cell(name, params)
    carry = cell.initialize_carry((ROWS, INPUTS), nnx.Rngs(0))
    for t in range(length):
        carry, expected = cell(carry, jnp.asarray(inputs[t]))
    _, last = run(graph, params, inputs, np.full(ROWS, length))
    np.testing.assert_allclose(last, expected, atol=TOLERANCE)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_gradient_matches_finite_differences_of_the_reference_loop(name, reverse):
    graph, params = make_cell(name, scale=0.5)
    inputs = random_inputs()
    generator = np.random.default_rng(2)
    d_states = generator.normal(size=(STEPS, ROWS, HIDDEN))
    d_last = generator.normal(size=(ROWS, HIDDEN))

    def loss(params, inputs):
        states, last = run(graph, params, inputs, LENGTHS, reverse=reverse)
        return (states * d_states.astype(np.float32)).sum() + (
            last * d_last.astype(np.float32)
        ).sum()

    def loss64(params, inputs):
        states, last = RECURRENCES[name](params, inputs, LENGTHS, reverse)
        return (states * d_states).sum() + (last * d_last).sum()

    gradients = jax.grad(loss, argnums=(0, 1))(params, jnp.asarray(inputs))
    params64 = {key: np.asarray(value, np.float64) for key, value in params.items()}
    point = (params64, inputs.astype(np.float64))
    step = 1e-5  # in float64: the difference has an error of about 1e-9
    for gradient, leaf in zip(jax.tree.leaves(gradients), jax.tree.leaves(point), strict=True):
        for index in zip(*(generator.integers(0, n, 6) for n in leaf.shape), strict=True):
            value = leaf[index]
            leaf[index] = value + step
            above = loss64(*point)
            leaf[index] = value - step
            below = loss64(*point)
            leaf[index] = value
            # float32 rounding of sums of about a hundred terms of order 1.
            assert gradient[index] == pytest.approx((above - below) / (2 * step), abs=2e-5)


def test_initial_lstm_parameters_follow_keras():
    cell = CELLS["lstm"](inputs_size=40, hidden_size=8, rngs=nnx.Rngs(0))
    recurrent = np.asarray(cell.recurrent_kernel[...])
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(8), atol=1e-5)
    limit = np.sqrt(6 / (40 + 32))
    kernel = np.asarray(cell.input_kernel[...])
    assert 0.95 * limit < np.abs(kernel).max() <= limit
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
    expected = np.concatenate([np.zeros(8), np.ones(8), np.zeros(16)])
    np.testing.assert_array_equal(cell.bias[...], expected)

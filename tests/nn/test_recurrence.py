"""Properties of the masked time loop, for every cell and both directions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cells import HIDDEN, INPUTS, LENGTHS, ROWS, STEPS, make_cell, random_inputs, run
from tiny_run import error_of

from bilstm_attn.nn.cells import CELLS
from bilstm_attn.nn.recurrence import LoopOptions

every_cell_and_direction = pytest.mark.parametrize(
    ("name", "reverse"), [(name, reverse) for name in CELLS for reverse in (False, True)]
)


@every_cell_and_direction
def test_more_padding_changes_no_bit_of_the_states(name, reverse):
    graph, params = make_cell(name)
    inputs = random_inputs()
    states, last = run(graph, params, inputs, LENGTHS, reverse=reverse)
    padded = np.concatenate([inputs, np.full((3, ROWS, INPUTS), 9, np.float32)])
    padded_states, padded_last = run(graph, params, padded, LENGTHS, reverse=reverse)
    np.testing.assert_array_equal(padded_states[:STEPS], states)
    np.testing.assert_array_equal(padded_states[STEPS:], 0)
    np.testing.assert_array_equal(padded_last, last)


@every_cell_and_direction
def test_states_at_padding_and_last_states_of_empty_examples_are_zero(name, reverse):
    graph, params = make_cell(name)
    states, last = run(graph, params, random_inputs(), LENGTHS, reverse=reverse)
    padding = np.arange(STEPS)[:, None] >= LENGTHS[None]
    assert (np.asarray(states)[padding] == 0).all()
    assert (np.asarray(states)[~padding] != 0).all()
    assert (np.asarray(last)[LENGTHS == 0] == 0).all()


@every_cell_and_direction
def test_gradient_at_padding_is_exactly_zero(name, reverse):
    graph, params = make_cell(name)

    @jax.jit
    @jax.grad
    def gradient(inputs):
        states, last = run(graph, params, inputs, LENGTHS, reverse=reverse)
        return jnp.sin(states).sum() + jnp.sin(last).sum()

    d_inputs = np.asarray(gradient(random_inputs()))
    padding = np.arange(STEPS)[:, None] >= LENGTHS[None]
    assert (d_inputs[padding] == 0).all()
    assert (d_inputs[~padding] != 0).all()


@pytest.mark.parametrize("name", CELLS)
def test_reversing_the_examples_swaps_the_directions(name):
    graph, params = make_cell(name)
    inputs = random_inputs()
    reversed_inputs = inputs.copy()
    for row, length in enumerate(LENGTHS):
        reversed_inputs[:length, row] = inputs[:length, row][::-1]
    states, last = run(graph, params, inputs, LENGTHS)
    reversed_states, reversed_last = run(graph, params, reversed_inputs, LENGTHS, reverse=True)
    np.testing.assert_allclose(reversed_last, last, atol=1e-6)  # order of sums in a matmul
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(
            reversed_states[:length, row], states[:length, row][::-1], atol=1e-6
        )


@every_cell_and_direction
def test_input_noise_multiplies_the_inputs_of_every_step(name, reverse):
    graph, params = make_cell(name)
    inputs = random_inputs()
    noise = np.random.default_rng(3).normal(size=(ROWS, INPUTS)).astype(np.float32)
    with_noise = run(graph, params, inputs, LENGTHS, reverse=reverse, noise=jnp.asarray(noise))
    expected = run(graph, params, inputs * noise[None], LENGTHS, reverse=reverse)
    jax.tree.map(np.testing.assert_array_equal, with_noise, expected)


@every_cell_and_direction
@pytest.mark.parametrize("noisy", [False, True])
def test_gradient_of_the_scan_matches_the_gradient_of_plain_jax(name, reverse, noisy):
    graph, params = make_cell(name)
    generator = np.random.default_rng(4)
    noise = jnp.asarray(generator.normal(size=(ROWS, INPUTS)), jnp.float32) if noisy else None

    def loss(backend, params, inputs, noise):
        static = {"reverse": reverse, "backend": backend}
        states, last = run(graph, params, inputs, LENGTHS, noise=noise, **static)
        return jnp.sin(states).sum() + jnp.cos(last).sum()

    scan, plain = (
        jax.jit(jax.value_and_grad(partial(loss, backend), (0, 1, 2)))(
            params, random_inputs(), noise
        )
        for backend in ("scan", "plain")
    )
    # float32 rounding: parameter gradients are sums of about a hundred terms of order 1.
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), scan, plain)


@every_cell_and_direction
@pytest.mark.parametrize("backend", ["scan", "plain"])
def test_remat_changes_no_value_or_gradient(name, reverse, backend):
    graph, params = make_cell(name)

    def loss(options, params, inputs):
        static = {"reverse": reverse, "backend": backend, "options": options}
        states, last = run(graph, params, inputs, LENGTHS, **static)
        return jnp.sin(states).sum() + jnp.cos(last).sum()

    stored, recomputed = (
        jax.jit(jax.value_and_grad(partial(loss, LoopOptions(remat=remat)), (0, 1)))(
            params, random_inputs()
        )
        for remat in (False, True)
    )
    # The compiler fuses operations differently: float32 rounding of sums of about a hundred terms.
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), recomputed, stored)


def test_remat_does_not_store_the_gates():
    graph, params = make_cell("lstm")

    def stored_size(remat):
        options = LoopOptions(remat=remat)
        backward = jax.eval_shape(
            lambda inputs: jax.vjp(
                lambda inputs: run(graph, params, inputs, LENGTHS, options=options), inputs
            )[1],
            random_inputs(),
        )
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert stored_size(remat=False) - stored_size(remat=True) == STEPS * ROWS * 4 * HIDDEN


@every_cell_and_direction
@pytest.mark.parametrize("backend", ["scan", "plain"])
def test_bfloat16_matmuls_are_within_rounding_of_float32(name, reverse, backend):
    graph, params = make_cell(name, scale=0.5)

    @partial(jax.jit, static_argnums=0)
    @partial(jax.value_and_grad, argnums=(1, 2), has_aux=True)
    def loss(matmul_precision, params, inputs):
        options = LoopOptions(matmul_precision=matmul_precision)
        static = {"reverse": reverse, "backend": backend, "options": options}
        states, last = run(graph, params, inputs, LENGTHS, **static)
        return jnp.sin(states).sum() + jnp.cos(last).sum(), (states, last)

    exact, rounded = (
        loss(matmul_precision, params, random_inputs())
        for matmul_precision in ("float32", "bfloat16")
    )
    padding = np.arange(STEPS)[:, None] >= LENGTHS[None]
    assert (np.asarray(rounded[1][1])[padding] == 0).all()
    errors = []
    for expected, actual in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert actual.dtype == jnp.float32
        errors.append(float(np.abs(actual - expected).max() / np.abs(expected).max()))
    assert max(errors) < STEPS * 2**-8  # each step rounds its operands
    assert max(errors) > 1e-4  # the operands are not float32


def loss_of_inputs(name, reverse, backend):
    graph, params = make_cell(name, scale=0.5)

    def loss(inputs):
        states, last = run(graph, params, inputs, LENGTHS, reverse=reverse, backend=backend)
        return jnp.sin(states).sum() + jnp.cos(last).sum()

    return loss


@every_cell_and_direction
def test_second_derivatives_match_differences_of_the_first(name, reverse):
    inputs, direction = random_inputs(), random_inputs(seed=5)
    plain, scan = (
        jax.grad(loss_of_inputs(name, reverse, backend)) for backend in ("plain", "scan")
    )
    step = 3e-3  # the truncation error is of order step**2; float32 rounding is divided by step
    first = jax.jit(plain)
    above, below = (first(inputs + sign * step * direction) for sign in (1, -1))
    for gradient in (plain, scan):
        derivative = jax.jit(partial(jax.jvp, gradient))((inputs,), (direction,))[1]
        np.testing.assert_allclose(derivative, (above - below) / (2 * step), atol=1e-3)


def test_forward_mode_works_with_plain_and_is_an_error_with_scan():
    inputs, direction = random_inputs(), random_inputs(seed=5)
    plain, scan = (loss_of_inputs("lstm", False, backend) for backend in ("plain", "scan"))
    forward = jax.jvp(plain, (inputs,), (direction,))[1]
    backward = (jax.grad(scan)(inputs) * direction).sum()
    assert float(forward) == pytest.approx(float(backward), rel=1e-5)
    for call in (
        partial(jax.jvp, scan),
        partial(jax.jvp, jax.jit(scan)),
        jax.jit(partial(jax.jvp, scan)),
    ):
        message = error_of(call, (inputs,), (direction,))
        assert message == "backend scan does not support forward mode; use backend plain"


@pytest.mark.parametrize("name", CELLS)
def test_an_example_does_not_depend_on_the_rest_of_the_batch(name):
    graph, params = make_cell(name)
    inputs = random_inputs()
    _, last = run(graph, params, inputs, LENGTHS)
    _, alone = run(graph, params, inputs[:, 3:4], LENGTHS[3:4])
    assert alone.shape == (1, HIDDEN)
    np.testing.assert_allclose(alone[0], last[3], atol=1e-6)  # different tiling of the matmul

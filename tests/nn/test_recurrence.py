"""Contracts of the masked time loop, for every cell."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cells import HIDDEN, INPUTS, LENGTHS, ROWS, STEPS, make_cell, random_inputs, run
from tiny_run import error_of

from bilstm_attn.nn.cells import CELLS
from bilstm_attn.nn.recurrence import LoopOptions

cells_and_ways = pytest.mark.parametrize(
    ("name", "reverse"), [(name, reverse) for name in CELLS for reverse in (False, True)]
)


@cells_and_ways
def test_more_padding_changes_no_bit(name, reverse):
    graph, params = make_cell(name)
    inputs = random_inputs()
    states, last = run(graph, params, inputs, LENGTHS, reverse=reverse)
    longer = np.concatenate([inputs, np.full((3, ROWS, INPUTS), 9, np.float32)])
    padded_states, padded_last = run(graph, params, longer, LENGTHS, reverse=reverse)
    np.testing.assert_array_equal(padded_states[:STEPS], states)
    np.testing.assert_array_equal(padded_states[STEPS:], 0)
    np.testing.assert_array_equal(padded_last, last)


@cells_and_ways
def test_states_at_padding_and_last_states_of_empty_examples_are_zero(name, reverse):
    graph, params = make_cell(name)
    states, last = run(graph, params, random_inputs(), LENGTHS, reverse=reverse)
    padding = np.arange(STEPS)[:, None] >= LENGTHS[None]
    assert (np.asarray(states)[padding] == 0).all()
    assert (np.asarray(states)[~padding] != 0).all()
    assert (np.asarray(last)[LENGTHS == 0] == 0).all()


@cells_and_ways
def test_gradient_at_padding_is_exactly_zero(name, reverse):
    graph, params = make_cell(name)

    @jax.jit
    @jax.grad
    def gradient_of(inputs):
        states, last = run(graph, params, inputs, LENGTHS, reverse=reverse)
        return jnp.sin(states).sum() + jnp.sin(last).sum()

    gradient = np.asarray(gradient_of(random_inputs()))
    padding = np.arange(STEPS)[:, None] >= LENGTHS[None]
    assert (gradient[padding] == 0).all()
    assert (gradient[~padding] != 0).all()


@pytest.mark.parametrize("name", CELLS)
def test_reversing_the_examples_swaps_the_directions(name):
    graph, params = make_cell(name)
    inputs = random_inputs()
    turned = inputs.copy()
    for row, length in enumerate(LENGTHS):
        turned[:length, row] = inputs[:length, row][::-1]
    states, last = run(graph, params, inputs, LENGTHS)
    turned_states, turned_last = run(graph, params, turned, LENGTHS, reverse=True)
    np.testing.assert_allclose(turned_last, last, atol=1e-6)  # order of sums in a matmul
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(
            turned_states[:length, row], states[:length, row][::-1], atol=1e-6
        )


@cells_and_ways
def test_noise_multiplies_the_inputs_of_every_step(name, reverse):
    graph, params = make_cell(name)
    inputs = random_inputs()
    noise = np.random.default_rng(3).normal(size=(ROWS, INPUTS)).astype(np.float32)
    given = run(graph, params, inputs, LENGTHS, reverse=reverse, noise=jnp.asarray(noise))
    scaled = run(graph, params, inputs * noise[None], LENGTHS, reverse=reverse)
    jax.tree.map(np.testing.assert_array_equal, given, scaled)


@cells_and_ways
@pytest.mark.parametrize("noisy", [False, True])
def test_scan_gradient_matches_jax(name, reverse, noisy):
    graph, params = make_cell(name)
    numbers = np.random.default_rng(4)
    noise = jnp.asarray(numbers.normal(size=(ROWS, INPUTS)), jnp.float32) if noisy else None

    def loss(backend, params, inputs, noise):
        given = {"reverse": reverse, "noise": noise, "backend": backend}
        states, last = run(graph, params, inputs, LENGTHS, **given)
        return jnp.sin(states).sum() + jnp.cos(last).sum()

    own, jaxs = (
        jax.jit(jax.value_and_grad(partial(loss, backend), (0, 1, 2)))
        for backend in ("scan", "plain")
    )
    own, jaxs = own(params, random_inputs(), noise), jaxs(params, random_inputs(), noise)
    # float32 rounding: parameter gradients are sums of some hundred terms of size 1.
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), own, jaxs)


@cells_and_ways
@pytest.mark.parametrize("backend", ["scan", "plain"])
def test_remat_changes_no_value_or_gradient(name, reverse, backend):
    graph, params = make_cell(name)

    def loss(options, params, inputs):
        given = {"reverse": reverse, "backend": backend, "options": options}
        states, last = run(graph, params, inputs, LENGTHS, **given)
        return jnp.sin(states).sum() + jnp.cos(last).sum()

    kept, again = (
        jax.jit(jax.value_and_grad(partial(loss, LoopOptions(remat=choice)), (0, 1)))
        for choice in (False, True)
    )
    kept, again = kept(params, random_inputs()), again(params, random_inputs())
    # The compiler fuses them differently: float32 rounding of sums of some hundred terms.
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), kept, again)


def test_remat_does_not_store_the_gates():
    graph, params = make_cell("lstm")

    def kept(recompute):
        given = {"options": LoopOptions(remat=recompute)}
        pull = jax.eval_shape(
            lambda inputs: jax.vjp(lambda x: run(graph, params, x, LENGTHS, **given), inputs)[1],
            random_inputs(),
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert kept(False) - kept(True) == STEPS * ROWS * 4 * HIDDEN


@cells_and_ways
@pytest.mark.parametrize("backend", ["scan", "plain"])
def test_bfloat16_matmuls_are_within_rounding_of_float32(name, reverse, backend):
    graph, params = make_cell(name, scale=0.5)

    @partial(jax.jit, static_argnums=0)
    @partial(jax.value_and_grad, argnums=(1, 2), has_aux=True)
    def loss(matmul_precision, params, inputs):
        options = LoopOptions(matmul_precision=matmul_precision)
        given = {"reverse": reverse, "backend": backend, "options": options}
        states, last = run(graph, params, inputs, LENGTHS, **given)
        return jnp.sin(states).sum() + jnp.cos(last).sum(), (states, last)

    exact, rounded = (
        loss(matmul_precision, params, random_inputs())
        for matmul_precision in ("float32", "bfloat16")
    )
    padding = np.arange(STEPS)[:, None] >= LENGTHS[None]
    assert (np.asarray(rounded[1][1])[padding] == 0).all()
    largest = 0.0
    for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert other.dtype == jnp.float32
        off = np.abs(one - other).max() / np.abs(one).max()
        assert off < STEPS * 2**-8  # each step rounds its operands
        largest = max(largest, float(off))
    assert largest > 1e-4  # they are not float32


def loss_of_inputs(name, reverse, backend):
    graph, params = make_cell(name, scale=0.5)

    def loss(inputs):
        states, last = run(graph, params, inputs, LENGTHS, reverse=reverse, backend=backend)
        return jnp.sin(states).sum() + jnp.cos(last).sum()

    return loss


@cells_and_ways
def test_second_derivatives_match_differences_of_the_first(name, reverse):
    inputs, direction = random_inputs(), random_inputs(seed=5)
    plain, scan = (jax.grad(loss_of_inputs(name, reverse, way)) for way in ("plain", "scan"))
    nudge = 3e-3  # the error is of its square; float32 rounding is divided by it
    first = jax.jit(plain)
    above, below = (first(inputs + sign * nudge * direction) for sign in (1, -1))
    for gradient in (plain, scan):
        product = jax.jit(partial(jax.jvp, gradient))((inputs,), (direction,))[1]
        np.testing.assert_allclose(product, (above - below) / (2 * nudge), atol=1e-3)


def test_only_the_plain_backend_has_forward_mode():
    inputs, direction = random_inputs(), random_inputs(seed=5)
    plain, scan = (loss_of_inputs("lstm", False, backend) for backend in ("plain", "scan"))
    forward = jax.jvp(plain, (inputs,), (direction,))[1]
    backward = (jax.grad(scan)(inputs) * direction).sum()
    assert float(forward) == pytest.approx(float(backward), rel=1e-5)
    for asked in (
        partial(jax.jvp, scan),
        partial(jax.jvp, jax.jit(scan)),
        jax.jit(partial(jax.jvp, scan)),
    ):
        says = error_of(asked, (inputs,), (direction,))
        assert says == "backend scan has no forward mode; use backend plain"


@pytest.mark.parametrize("name", CELLS)
def test_an_example_does_not_depend_on_the_rest_of_the_batch(name):
    graph, params = make_cell(name)
    inputs = random_inputs()
    _, last = run(graph, params, inputs, LENGTHS)
    _, alone = run(graph, params, inputs[:, 3:4], LENGTHS[3:4])
    assert alone.shape == (1, HIDDEN)
    np.testing.assert_allclose(alone[0], last[3], atol=1e-6)  # different tiling of the matmul

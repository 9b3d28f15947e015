"""The masked time loop, on every backend: the recurrence in one direction and in both."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from bilstm_attn.config import Backend, MatmulPrecision
from bilstm_attn.nn.cells import Carry, Cell, CellParams, Gates, StepNoise, Tree
from bilstm_attn.nn.kernels import native
from bilstm_attn.nn.precision import matmul_precision_context, round_operands
from bilstm_attn.nn.reverse_only import reverse_only
from bilstm_attn.types import (
    Hidden,
    HiddenStates,
    InputNoise,
    Inputs,
    InputsAtTime,
    Lengths,
    Mask,
    Positions,
    Query,
    States,
)

Valid = Bool[Array, " b"]  # true where a time step is within the length of the example


class LoopOptions(NamedTuple):
    """Numerical options of the time loop: matmul precision and rematerialisation."""

    matmul_precision: MatmulPrecision = "float32"
    """The precision of the matmuls of a step; the carry and everything else are float32."""
    remat: bool = False
    """Recompute a step's gates in the backward pass instead of storing them."""


class Noise(NamedTuple):
    """The noise of one direction, sampled before the loop; None means no noise."""

    inputs: InputNoise | None = None
    """`[b e]`, a factor of the inputs at every time step."""
    steps: StepNoise = None
    """A tree of arrays `[t b ...]` from `Cell.noise`; `Cell.gate` receives one time step of it."""


DEFAULT_OPTIONS, NO_NOISE = LoopOptions(), Noise()


def length_mask(lengths: Lengths, steps: int) -> Mask:
    """Returns `mask[t, b] = t < lengths[b]`."""
    return jnp.arange(steps)[:, None] < lengths[None, :]


def run_direction(
    cell: Cell,
    inputs: Inputs,
    lengths: Lengths,
    *,
    reverse: bool = False,
    noise: Noise = NO_NOISE,
    backend: Literal["plain", "scan"] = "scan",
    options: LoopOptions = DEFAULT_OPTIONS,
) -> tuple[HiddenStates, Hidden]:
    """Runs `cell` over the tokens of each example, in either direction.

        carry[t] = step(carry[t - 1], noise * inputs[t])  where t < lengths, else carry[t - 1]

    `reverse` scans from the last index to the first. The padding then comes first and leaves the
    initial carry unchanged, so that the scan of each example starts at its last token without
    reversing any array.

    Args:
      cell: the time step and its initial carry.
      inputs: `[t b e]`; values at `t >= lengths` never reach a result.
      lengths: `[b]`, in tokens, from 0 to t.
      reverse: scan from the last token to the first.
      noise: dropout noise of this direction.
      backend: `scan` has a custom derivative without forward mode (`jax.jvp`, `jax.jacfwd`);
        `plain` uses JAX's derivative, which is slower. Both support second derivatives.
      options: the matmul precision and rematerialisation.

    Returns:
      All hidden states, `[t b h]`, zero at padding; and the last hidden state of the scan, `[b h]`,
      zero for an empty example.
    """
    steps, batch_size, _ = inputs.shape
    mask = length_mask(lengths, steps)
    loop, params = _Loop(type(cell), reverse, options), cell.params()
    initial = cell.initial(batch_size)
    if backend == "plain":
        return _scan_plain(loop, params, initial, inputs, noise, mask)
    params, inputs, input_noise = reverse_only(backend, (params, inputs, noise.inputs))
    return _scan(loop, params, initial, inputs, noise._replace(inputs=input_noise), mask)


def run_bidirectional(
    forward: Cell,
    backward: Cell,
    inputs: Inputs,
    lengths: Lengths,
    *,
    noises: tuple[Noise, Noise] = (NO_NOISE, NO_NOISE),
    backend: Backend = "scan",
    options: LoopOptions = DEFAULT_OPTIONS,
) -> tuple[States, Query]:
    """Runs one cell in each direction, like `run_direction`.

    Args:
      forward: the cell of the forward direction.
      backward: the cell of the backward direction.
      inputs: `[t b e]`.
      lengths: `[b]`, in tokens.
      noises: the noise of the forward and of the backward direction.
      backend: as in `run_direction`; or `native`, a compiled LSTM layer for CPU that does no work
        at padding (call `backend.prepare_native` first); or `pallas`, one kernel for all time steps
        on GPU or TPU, which a CPU runs in Pallas' slow interpreter. `native` and `pallas` support
        neither forward mode nor second derivatives.
      options: as in `run_direction`.

    Returns:
      `[forward[t], backward[t]]`, zero at padding, `[t b 2h]`; and the last hidden states of both
      scans, `[b 2h]`.
    """
    if backend in ("native", "pallas"):
        return _run_kernel(backend, forward, backward, inputs, lengths, noises, options)
    directions = zip((forward, backward), (False, True), noises, strict=True)
    results = [
        run_direction(
            cell,
            inputs,
            lengths,
            reverse=reverse,
            noise=noise,
            backend=backend,
            options=options,
        )
        for cell, reverse, noise in directions
    ]
    states, last = zip(*results, strict=True)
    return jnp.concatenate(states, axis=-1), jnp.concatenate(last, axis=-1)


def _run_kernel(
    backend: Literal["native", "pallas"],
    forward: Cell,
    backward: Cell,
    inputs: Inputs,
    lengths: Lengths,
    noises: tuple[Noise, Noise],
    options: LoopOptions,
) -> tuple[States, Query]:
    """Runs both directions in one call of a compiled kernel."""
    kernels, biases = _stack_params(forward, backward)
    drawn = [noise.inputs for noise in noises if noise.inputs is not None]
    noise = jnp.stack(drawn) if drawn else jnp.zeros(0, jnp.float32)
    inputs, kernels, biases, noise = reverse_only(backend, (inputs, kernels, biases, noise))
    if backend == "native":
        return native.lstm(inputs, lengths, kernels, biases, noise)
    from bilstm_attn.nn.kernels import pallas  # slow to import and rarely used

    kernel_options = pallas.here(options.matmul_precision)
    return pallas.lstm(inputs, lengths, kernels, biases, noise, kernel_options)


def _stack_params(forward: Cell, backward: Cell) -> tuple[Array, Array]:
    """Returns the matrices `[2 e+h 4h]` and the biases `[2 4h]` of two LSTM cells."""
    both = forward.params().linear, backward.params().linear
    kernels, biases = map(jnp.stack, zip(*both, strict=True))
    return kernels, biases


Reencoder = Callable[[Positions, Lengths], tuple[States, Query]]


def gather(inputs: Float[Array, "n b e"], positions: Positions) -> Inputs:
    """Returns `inputs[positions[t, b], b]`, `[t b e]`."""
    return jnp.take_along_axis(inputs, positions[..., None], axis=0)


def make_bidirectional_reencoder(
    forward: Cell,
    backward: Cell,
    inputs: Inputs,
    *,
    backend: Backend = "scan",
    options: LoopOptions = DEFAULT_OPTIONS,
) -> Reencoder:
    """Returns `f(positions, lengths)`, which encodes a selection of these tokens without noise.

    `positions[t, b]` is the index in `inputs` of the token placed at t. With `native`, the inputs
    are projected only once, before the first call.
    """
    if backend != "native":
        return lambda positions, lengths: run_bidirectional(
            forward, backward, gather(inputs, positions), lengths, backend=backend, options=options
        )
    kernels, biases = _stack_params(forward, backward)
    size = inputs.shape[-1]
    projected = jnp.einsum("nbe,weg->nbwg", inputs, kernels[:, :size]) + biases[None, None]
    return lambda positions, lengths: native.reencode(
        projected, positions, lengths, kernels[:, size:]
    )


class _Loop(NamedTuple):
    """The static arguments of one scan."""

    cell: type[Cell]
    reverse: bool
    options: LoopOptions

    def linear(self, params: Tree, inputs: InputsAtTime, hidden: Hidden) -> Gates:
        """Returns the cell's gates, computed in `options.matmul_precision`."""
        precision = self.options.matmul_precision
        with matmul_precision_context(precision):
            return self.cell.linear(*round_operands((params, inputs, hidden), precision))


Saved = tuple[Carry, Gates | None]  # at every time step: the carry before the step, the gates
Residuals = tuple[CellParams, Carry, Inputs, Noise, Mask, Saved]


def _masked(inputs: InputsAtTime, noise: InputNoise | None, valid: Valid) -> InputsAtTime:
    """Returns the inputs of one time step times the noise, exactly zero at padding."""
    return jnp.where(valid[:, None], inputs if noise is None else inputs * noise, 0)


def _where(valid: Valid, at_tokens: Carry, at_padding: Carry) -> Carry:
    """Returns the rows of `at_tokens` where `valid`, and the rows of `at_padding` elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(valid[:, None], a, b), at_tokens, at_padding)


def _scan_forward(
    loop: _Loop, params: CellParams, initial: Carry, inputs: Inputs, noise: Noise, mask: Mask
) -> tuple[tuple[HiddenStates, Hidden], Saved]:
    """Returns all states and the last state, and the residuals of every step."""

    def step(carry: Carry, at_time: Any) -> tuple[Carry, tuple[Hidden, Saved]]:
        inputs_now, noise_now, valid = at_time
        read = _masked(inputs_now, noise.inputs, valid)
        gates = loop.linear(params.linear, read, loop.cell.hidden(carry))
        after = _where(valid, loop.cell.gate(params.gate, gates, carry, noise_now), carry)
        state = jnp.where(valid[:, None], loop.cell.hidden(after), 0)
        return after, (state, (carry, None if loop.options.remat else gates))

    if loop.options.remat:
        step = jax.checkpoint(step)  # for JAX's derivative, used by `plain`
    scanned = (inputs, noise.steps, mask)
    last, (states, saved) = lax.scan(step, initial, scanned, reverse=loop.reverse)
    return (states, loop.cell.hidden(last)), saved


def _scan_plain(
    loop: _Loop, params: CellParams, initial: Carry, inputs: Inputs, noise: Noise, mask: Mask
) -> tuple[HiddenStates, Hidden]:
    """Returns all states and the last state."""
    return _scan_forward(loop, params, initial, inputs, noise, mask)[0]


_scan = jax.custom_vjp(_scan_plain, nondiff_argnums=(0,))


def _forward_pass(
    loop: _Loop, params: CellParams, initial: Carry, inputs: Inputs, noise: Noise, mask: Mask
) -> tuple[tuple[HiddenStates, Hidden], Residuals]:
    results, saved = _scan_forward(loop, params, initial, inputs, noise, mask)
    return results, (params, initial, inputs, noise, mask, saved)


def _backward_pass(
    loop: _Loop, residuals: Residuals, cotangents: tuple[HiddenStates, Hidden]
) -> tuple[CellParams, Carry, Inputs, Noise | None, None]:
    """Scans in the opposite direction, accumulating the parameter gradient step by step.

    JAX's derivative is slower: it stores the operands of every matmul and sums at the end.
    """
    params, initial, inputs, noise, mask, saved = residuals
    d_states, d_last = cotangents

    def step(carry: Any, at_time: Any) -> tuple[Any, InputsAtTime]:
        d_carry, d_params = carry
        inputs_now, noise_now, valid, (before, gates), d_state = at_time
        read, hidden = _masked(inputs_now, noise.inputs, valid), loop.cell.hidden(before)
        if loop.options.remat:
            gates = loop.linear(params.linear, read, hidden)

        def gate(gate_params: Tree, gates: Gates, before: Carry) -> tuple[Carry, Hidden]:
            after = loop.cell.gate(gate_params, gates, before, noise_now)
            return after, loop.cell.hidden(after)

        zero = jax.tree.map(jnp.zeros_like, d_carry)
        _, pull_gate = jax.vjp(gate, params.gate, gates, before)
        d_gate, d_gates, d_before = pull_gate(
            (_where(valid, d_carry, zero), jnp.where(valid[:, None], d_state, 0))
        )
        _, pull_hidden = jax.vjp(loop.cell.hidden, before)
        # The compiler removes the forward matmuls, whose results are not used.
        _, pull_linear = jax.vjp(loop.linear, params.linear, read, hidden)
        d_linear, d_read, d_hidden = pull_linear(d_gates)
        [through_hidden] = pull_hidden(d_hidden)
        d_carry = jax.tree.map(
            lambda a, b, c: a + b + c, d_before, through_hidden, _where(valid, zero, d_carry)
        )
        d_step = CellParams(d_linear, d_gate)
        return (d_carry, jax.tree.map(jnp.add, d_params, d_step)), d_read

    _, pull_last = jax.vjp(loop.cell.hidden, initial)
    start = (pull_last(d_last)[0], jax.tree.map(jnp.zeros_like, params))
    scanned = (inputs, noise.steps, mask, saved, d_states)
    (d_initial, d_params), d_read = lax.scan(step, start, scanned, reverse=not loop.reverse)
    if noise.inputs is None:
        return d_params, d_initial, d_read, None, None
    d_noise = (d_read * jnp.where(mask[..., None], inputs, 0)).sum(axis=0)
    return d_params, d_initial, d_read * noise.inputs[None], Noise(d_noise, None), None


_scan.defvjp(_forward_pass, _backward_pass)

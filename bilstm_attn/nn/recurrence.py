"""The masked time loop: the one function behind which every recurrence runs."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bilstm_attn.config import Backend, MatmulPrecision
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


@runtime_checkable
class Step(Protocol):
    """What the loop asks of a cell: `carry' = gate(linear(weights, x, hidden(carry)), carry)`."""

    def initial(self, batch_size: int) -> Any:
        """Returns the carry before the first token."""
        ...

    def weights(self) -> Any:
        """Returns the parameters as `linear` takes them."""
        ...

    def linear(self, weights: Any, inputs: InputsAtTime, hidden: Hidden) -> Any:
        """Returns the gates before their nonlinearities."""
        ...

    def gate(self, gates: Any, carry: Any) -> Any:
        """Returns the carry after one token."""
        ...

    def hidden(self, carry: Any) -> Hidden:
        """Returns the hidden state in the carry."""
        ...


class Precision(NamedTuple):
    """How the recurrence computes, beside which function."""

    matmul_precision: MatmulPrecision = "float32"
    """What a step's products are computed in; the carry and all else stay float32."""
    recompute: bool = False
    """Compute a step's gates again for the derivative, instead of keeping them."""


EXACT = Precision()


def length_mask(lengths: Lengths, steps: int) -> Mask:
    """Returns `mask[t, b] = t < lengths[b]`."""
    return jnp.arange(steps)[:, None] < lengths[None, :]


def run_direction(
    cell: Step,
    inputs: Inputs,
    lengths: Lengths,
    *,
    reverse: bool = False,
    noise: InputNoise | None = None,
    backend: Literal["plain", "scan"] = "scan",
    precision: Precision = EXACT,
) -> tuple[HiddenStates, Hidden]:
    """Runs `cell` over each review's own tokens, in either direction.

        carry[t] = step(carry[t - 1], noise * inputs[t])  where t < lengths, else carry[t - 1]

    `reverse` walks the index down: the padding comes first and leaves the initial carry as it is,
    so that the walk over a review begins at its last token. Nothing is flipped.

    Args:
      cell: the step and its initial carry.
      inputs: `[t b e]`; what stands at `t >= lengths` is never read into a result.
      lengths: `[b]`, in tokens, from 0 to t.
      reverse: walk from the last token to the first.
      noise: `[b e]`, multiplies the inputs of all time steps, or none.
      backend: `scan` has a derivative of its own, without forward mode (`jax.jvp`, `jax.jacfwd`);
        `plain` leaves it to JAX, which is slower. Both have second derivatives.
      precision: what the products are computed in, and what is kept for the derivative.

    Returns:
      The hidden state after every token, `[t b h]`, zero at padding; and the one after the walk's
      last token, `[b h]`, zero for an empty review.
    """
    steps, batch_size, _ = inputs.shape
    mask = length_mask(lengths, steps)
    loop, weights = _Loop(type(cell), reverse, precision), cell.weights()
    if backend == "plain":
        return _walk_plainly(loop, weights, cell.initial(batch_size), inputs, noise, mask)
    weights, inputs, noise = reverse_only(backend, (weights, inputs, noise))
    return _walk(loop, weights, cell.initial(batch_size), inputs, noise, mask)


def run_bidirectional(
    forward: Step,
    backward: Step,
    inputs: Inputs,
    lengths: Lengths,
    *,
    noises: tuple[InputNoise, InputNoise] | None = None,
    backend: Backend = "scan",
    precision: Precision = EXACT,
) -> tuple[States, Query]:
    """Runs a cell each way, as `recur` does; `noises` are of the forward and the backward cell.

    `backend` may also be `native`, after `encoder.prepare_native`: an LSTM layer on CPU, compiled,
    that does no work at padding; or `pallas`: one on a GPU or TPU, a kernel for all of time,
    which a CPU runs in Pallas' slow interpreter. Neither has forward mode or second derivatives.

    Returns:
      `[forward[t], backward[t]]`, zero at padding, `[t b 2h]`; the ends of both walks, `[b 2h]`.
    """
    if backend in ("native", "pallas"):
        kernels, biases = map(jnp.stack, zip(forward.weights(), backward.weights(), strict=True))
        noise = jnp.zeros(0, jnp.float32) if noises is None else jnp.stack(noises)
        inputs, kernels, biases, noise = reverse_only(backend, (inputs, kernels, biases, noise))
        if backend == "native":
            return native.lstm(inputs, lengths, kernels, biases, noise)
        from bilstm_attn.nn.kernels import pallas  # here: it is slow to import, and rarely used

        way = pallas.here(precision.matmul_precision)
        return pallas.lstm(inputs, lengths, kernels, biases, noise, way)
    ways = zip((forward, backward), (False, True), noises or (None, None), strict=True)
    states, last = zip(
        *(
            run_direction(
                cell,
                inputs,
                lengths,
                reverse=reverse,
                noise=noise,
                backend=backend,
                precision=precision,
            )
            for cell, reverse, noise in ways
        ),
        strict=True,
    )
    return jnp.concatenate(states, axis=-1), jnp.concatenate(last, axis=-1)


Reencoder = Callable[[Positions, Lengths], tuple[States, Query]]


def gather(inputs: Float[Array, "n b e"], positions: Positions) -> Inputs:
    """Returns `inputs[positions[t, b], b]`, `[t b e]`."""
    return jnp.take_along_axis(inputs, positions[..., None], axis=0)


def make_bidirectional_reencoder(
    forward: Step,
    backward: Step,
    inputs: Inputs,
    *,
    backend: Backend = "scan",
    precision: Precision = EXACT,
) -> Reencoder:
    """Returns `run_bidirectional` of the same tokens in other positions, for many such.

    `native` multiplies each token's inputs by the kernels once, and not again in every place.
    """
    if backend != "native":
        return lambda positions, lengths: run_bidirectional(
            forward,
            backward,
            gather(inputs, positions),
            lengths,
            backend=backend,
            precision=precision,
        )
    kernels, biases = map(jnp.stack, zip(forward.weights(), backward.weights(), strict=True))
    size = inputs.shape[-1]
    projected = jnp.einsum("nbe,weg->nbwg", inputs, kernels[:, :size]) + biases[None, None]
    return lambda positions, lengths: native.reencode(
        projected, positions, lengths, kernels[:, size:]
    )


class _Loop(NamedTuple):
    """What of a walk is known before it is compiled."""

    cell: Any  # the class: `linear`, `gate` and `hidden` are functions of their arguments alone
    reverse: bool
    precision: Precision

    def linear(self, weights: Any, inputs: InputsAtTime, hidden: Hidden) -> Any:
        """Returns the cell's gates, its products computed in `precision.matmul_precision`."""
        matmul_precision = self.precision.matmul_precision
        with matmul_precision_context(matmul_precision):
            return self.cell.linear(*round_operands((weights, inputs, hidden), matmul_precision))


def _at(inputs: InputsAtTime, noise: InputNoise | None, valid: Array) -> InputsAtTime:
    """Returns what the cell reads at one time: zero at padding, whatever stands there."""
    return jnp.where(valid[:, None], inputs if noise is None else inputs * noise, 0)


def _where(valid: Array, one: Any, other: Any) -> Any:
    """Returns the rows of `one` where `valid`, else those of `other`."""
    return jax.tree.map(lambda a, b: jnp.where(valid[:, None], a, b), one, other)


def _walk_forward(
    loop: _Loop, weights: Any, initial: Any, inputs: Inputs, noise: InputNoise | None, mask: Mask
) -> tuple[tuple[HiddenStates, Hidden], tuple[Any, Any]]:
    """Returns states and last one; for every time the carry before it and, if kept, the gates."""

    def step(carry: Any, at: Any) -> tuple[Any, Any]:
        inputs_now, valid = at
        gates = loop.linear(weights, _at(inputs_now, noise, valid), loop.cell.hidden(carry))
        after = _where(valid, loop.cell.gate(gates, carry), carry)
        state = jnp.where(valid[:, None], loop.cell.hidden(after), 0)
        return after, (state, (carry, None if loop.precision.recompute else gates))

    if loop.precision.recompute:
        step = jax.checkpoint(step)  # for JAX's own derivative
    last, (states, saved) = lax.scan(step, initial, (inputs, mask), reverse=loop.reverse)
    return (states, loop.cell.hidden(last)), saved


def _walk_plainly(
    loop: _Loop, weights: Any, initial: Any, inputs: Inputs, noise: InputNoise | None, mask: Mask
) -> tuple[HiddenStates, Hidden]:
    """Returns states and last one."""
    return _walk_forward(loop, weights, initial, inputs, noise, mask)[0]


_walk = jax.custom_vjp(_walk_plainly, nondiff_argnums=(0,))


def _save(loop: _Loop, weights: Any, initial: Any, inputs: Inputs, noise: Any, mask: Mask) -> Any:
    results, saved = _walk_forward(loop, weights, initial, inputs, noise, mask)
    return results, (weights, initial, inputs, noise, mask, saved)


def _walk_back(loop: _Loop, residuals: Any, cotangents: Any) -> Any:
    """Walks the other way; sums the gradient of the weights as it goes.

    JAX's own derivative stacks what each product needs, copies it, and leaves the sum to the end.
    """
    weights, initial, inputs, noise, mask, saved = residuals
    d_states, d_last = cotangents

    def step(carry: Any, at: Any) -> tuple[Any, Any]:
        d_carry, d_params = carry
        inputs_now, valid, (before, gates), d_state = at
        inputs_now, hidden = _at(inputs_now, noise, valid), loop.cell.hidden(before)
        if loop.precision.recompute:
            gates = loop.linear(weights, inputs_now, hidden)

        def after_gates(gates: Any, before: Any) -> tuple[Any, Hidden]:
            after = loop.cell.gate(gates, before)
            return after, loop.cell.hidden(after)

        zero = jax.tree.map(jnp.zeros_like, d_carry)
        _, pull_gate = jax.vjp(after_gates, gates, before)
        d_gates, d_before = pull_gate(
            (_where(valid, d_carry, zero), jnp.where(valid[:, None], d_state, 0))
        )
        _, pull_hidden = jax.vjp(loop.cell.hidden, before)
        # The products themselves are not needed again, and the compiler drops them.
        _, pull_linear = jax.vjp(loop.linear, weights, inputs_now, hidden)
        more, d_inputs, d_hidden = pull_linear(d_gates)
        [through_hidden] = pull_hidden(d_hidden)
        d_carry = jax.tree.map(
            lambda a, b, c: a + b + c, d_before, through_hidden, _where(valid, zero, d_carry)
        )
        return (d_carry, jax.tree.map(jnp.add, d_params, more)), d_inputs

    _, pull_last = jax.vjp(loop.cell.hidden, initial)
    start = (pull_last(d_last)[0], jax.tree.map(jnp.zeros_like, weights))
    (d_initial, d_params), d_read = lax.scan(
        step, start, (inputs, mask, saved, d_states), reverse=not loop.reverse
    )
    if noise is None:
        return d_params, d_initial, d_read, None, None
    d_noise = (d_read * jnp.where(mask[..., None], inputs, 0)).sum(axis=0)
    return d_params, d_initial, d_read * noise[None], d_noise, None


_walk.defvjp(_save, _walk_back)

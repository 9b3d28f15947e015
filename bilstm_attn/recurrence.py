"""The masked time loop: the one function behind which every recurrence runs."""

from typing import Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from bilstm_attn.types import (
    Hidden,
    HiddenStates,
    InputNoise,
    Inputs,
    InputsAtTime,
    Lengths,
    Mask,
)

Carry = TypeVar("Carry")


@runtime_checkable
class Step(Protocol[Carry]):
    """What the loop asks of a cell."""

    def initial(self, batch_size: int) -> Carry:
        """Returns the carry before the first token."""
        ...

    def step(self, carry: Carry, inputs: InputsAtTime) -> Carry:
        """Returns the carry after one token."""
        ...

    def hidden(self, carry: Carry) -> Hidden:
        """Returns the hidden state in the carry."""
        ...


def length_mask(lengths: Lengths, steps: int) -> Mask:
    """Returns `mask[t, b] = t < lengths[b]`."""
    return jnp.arange(steps)[:, None] < lengths[None, :]


def recur(
    cell: Step,
    inputs: Inputs,
    lengths: Lengths,
    *,
    reverse: bool = False,
    noise: InputNoise | None = None,
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

    Returns:
      The hidden state after every token, `[t b h]`, zero at padding; and the one after the walk's
      last token, `[b h]`, zero for an empty review.
    """
    steps, batch_size, _ = inputs.shape

    def step(carry, at):
        inputs_now, valid = at
        if noise is not None:
            inputs_now = inputs_now * noise
        moved = cell.step(carry, inputs_now)
        carry = jax.tree.map(lambda new, old: jnp.where(valid[:, None], new, old), moved, carry)
        return carry, jnp.where(valid[:, None], cell.hidden(carry), 0)

    mask = length_mask(lengths, steps)
    carry, states = lax.scan(step, cell.initial(batch_size), (inputs, mask), reverse=reverse)
    return states, cell.hidden(carry)

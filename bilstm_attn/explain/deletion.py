"""The model's answer to a review of which some tokens were deleted, as by hand."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from bilstm_attn.nn.model import Model
from bilstm_attn.nn.recurrence import length_mask
from bilstm_attn.types import Lengths, Logits, Params, Positions, Tokens

Keep = Bool[Array, "b t"]  # true at the tokens that stay; what it says of padding does not matter


def own_tokens(lengths: Lengths, steps: int) -> Keep:
    """Returns where a review's own tokens are among `steps`."""
    return length_mask(lengths, steps).T


def compact(lengths: Lengths, keep: Keep) -> tuple[Positions, Lengths]:
    """Returns which tokens stand where without those that `keep` leaves out, and how many do.

    The others move together.
    """
    keep = keep & own_tokens(lengths, keep.shape[1])
    order = jnp.argsort(~keep, axis=1, stable=True)
    return order.T, keep.sum(axis=1, dtype=lengths.dtype)


def logits_without(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths, keeps: Bool[Array, "k b t"]
) -> Float[Array, "k b"]:
    """Returns the logits of every review with each of `k` choices of tokens."""

    answer = model.make_reencoder(params, tokens)

    def logits_of(keep: Keep) -> Logits:
        return answer(*compact(lengths, keep)).logits

    return lax.map(logits_of, keeps)

"""The model's answer to a review of which some tokens were deleted, as by hand."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bilstm_attn.model import Model
from bilstm_attn.recurrence import length_mask
from bilstm_attn.types import Lengths, Logits, Params, Tokens

Keep = Bool[Array, "b t"]  # true at the tokens that stay; what it says of padding does not matter


def own_tokens(lengths: Lengths, steps: int) -> Keep:
    """Returns where a review's own tokens are among `steps`."""
    return length_mask(lengths, steps).T


def delete(tokens: Tokens, lengths: Lengths, keep: Keep) -> tuple[Tokens, Int[Array, " b"]]:
    """Returns the reviews without the tokens that `keep` leaves out: the others move together."""
    keep = keep & own_tokens(lengths, tokens.shape[1])
    order = jnp.argsort(~keep, axis=1, stable=True)
    return jnp.take_along_axis(tokens, order, axis=1), keep.sum(axis=1, dtype=lengths.dtype)


def logits_without(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths, keeps: Bool[Array, "k b t"]
) -> Float[Array, "k b"]:
    """Returns the logits of every review with each of `k` choices of tokens."""

    def logits_of(keep: Keep) -> Logits:
        return model(params, *delete(tokens, lengths, keep)).logits

    return lax.map(logits_of, keeps)

"""The model's logits when some of a text's tokens are deleted."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from bilstm_attn.nn.model import Model
from bilstm_attn.nn.recurrence import length_mask
from bilstm_attn.types import Lengths, Logits, Params, Positions, Tokens

Keep = Bool[Array, "b t"]  # true at the tokens that are kept; values at padding are ignored


def token_mask(lengths: Lengths, steps: int) -> Keep:
    """Returns the mask of each example's own tokens, batch-major `[b t]`."""
    return length_mask(lengths, steps).T


def compact(lengths: Lengths, keep: Keep) -> tuple[Positions, Lengths]:
    """Compacts the kept tokens to the front: returns their positions and the new lengths."""
    keep = keep & token_mask(lengths, keep.shape[1])
    order = jnp.argsort(~keep, axis=1, stable=True)
    return order.T, keep.sum(axis=1, dtype=lengths.dtype)


def logits_without(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths, keeps: Bool[Array, "k b t"]
) -> Float[Array, "k b"]:
    """Returns the logits of every example for each of `k` subsets of its tokens."""
    reencode = model.make_reencoder(params, tokens)

    def logits_of(keep: Keep) -> Logits:
        return reencode(*compact(lengths, keep)).logits

    return lax.map(logits_of, keeps)

"""Dropout masks from one key a review.

A review's noise depends on its key alone: not on the other rows of the batch, and not on how many
devices share it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bilstm_attn.runtime.prng import stream
from bilstm_attn.types import Keys, Tokens


def dropout_mask(keys: Keys, name: str, rate: float, size: int) -> Float[Array, "b size"]:
    """Returns `bernoulli(1 - rate) / (1 - rate)`, so that the mean of what it scales stays.

    Srivastava et al., 2014, JMLR 15, section 10 ("inverted" dropout).
    """
    keep = 1.0 - rate

    def of_review(key: Key[Array, ""]) -> Float[Array, " size"]:
        return jax.random.bernoulli(stream(key, name), keep, (size,)) / jnp.float32(keep)

    return jax.vmap(of_review)(keys)


def word_mask(keys: Keys, name: str, rate: float, tokens: Tokens) -> Float[Array, "b t"]:
    """Returns a mask that drops words: a review loses all positions of a word, or none.

    Gal and Ghahramani, 2016, arXiv:1512.05287, section 4.2.
    """
    keep = 1.0 - rate

    def of_token(key: Key[Array, ""], token: Int[Array, ""]) -> Float[Array, ""]:
        return jax.random.bernoulli(jax.random.fold_in(key, token), keep) / jnp.float32(keep)

    def of_review(key: Key[Array, ""], tokens: Int[Array, " t"]) -> Float[Array, " t"]:
        return jax.vmap(of_token, (None, 0))(stream(key, name), tokens)

    return jax.vmap(of_review)(keys, tokens)

"""Dropout masks from one key per example.

The mask of an example depends only on the key of that example, not on the other rows of the batch
or on the number of devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bilstm_attn.runtime.prng import stream
from bilstm_attn.types import Keys, Tokens


def stream_keys(keys: Keys, name: str) -> Keys:
    """Returns one key per example, for the random stream called `name`."""
    return jax.vmap(lambda key: stream(key, name))(keys)


def dropout_mask(keys: Keys, name: str, rate: float, size: int) -> Float[Array, "b size"]:
    """Returns `bernoulli(1 - rate) / (1 - rate)`, which preserves the mean, `[b size]`.

    Srivastava et al., 2014, JMLR 15, section 10 ("inverted" dropout).
    """
    keep = 1.0 - rate

    def draw_example(key: Key[Array, ""]) -> Float[Array, " size"]:
        return jax.random.bernoulli(stream(key, name), keep, (size,)) / jnp.float32(keep)

    return jax.vmap(draw_example)(keys)


def word_mask(keys: Keys, name: str, rate: float, tokens: Tokens) -> Float[Array, "b t"]:
    """Returns a mask `[b t]` that drops either all occurrences of a word in an example or none.

    Gal and Ghahramani, 2016, arXiv:1512.05287, section 4.2.
    """
    keep = 1.0 - rate

    def draw_token(key: Key[Array, ""], token: Int[Array, ""]) -> Float[Array, ""]:
        return jax.random.bernoulli(jax.random.fold_in(key, token), keep) / jnp.float32(keep)

    def draw_example(key: Key[Array, ""], tokens: Int[Array, " t"]) -> Float[Array, " t"]:
        return jax.vmap(draw_token, (None, 0))(stream(key, name), tokens)

    return jax.vmap(draw_example)(keys, tokens)

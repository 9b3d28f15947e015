"""Named random streams, for JAX and for NumPy.

Nothing random is stored: every key and generator is derived from a seed, a stream name, and
indices such as the step.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from bilstm_attn.types import Keys


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Derives the key of the stream `name` from `key`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def numpy_generator(seed: int, name: str, *indices: int) -> np.random.Generator:
    """Returns a NumPy generator for the stream `name`, derived from `seed` and `indices`."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), *indices])


def draw_per_token(
    keys: Keys,
    steps: int,
    draw: Callable[[Key[Array, ""]], Array],
    number: Int[Array, ""] | int = 0,
) -> Array:
    """Calls `draw` with a separate key for every token and returns the results, `[b t ...]`.

    A token's draw depends only on its example's key and its position, never on padding or on the
    rest of the batch. `steps` is the number of time steps; `number` indexes repeated draws.
    """

    def draw_example(key: Key[Array, ""]) -> Array:
        numbered = jax.random.fold_in(key, number)
        return jax.vmap(lambda t: draw(jax.random.fold_in(numbered, t)))(jnp.arange(steps))

    return jax.vmap(draw_example)(keys)

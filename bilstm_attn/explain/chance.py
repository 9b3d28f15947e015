"""Random numbers of a token's review and place alone: not of padding, nor of other reviews."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from bilstm_attn.types import Keys


def at_places(
    keys: Keys,
    steps: int,
    draw: Callable[[Key[Array, ""]], Array],
    number: Int[Array, ""] | int = 0,
) -> Array:
    """Returns `draw` of a key of its own for every token, `[b t ...]`.

    `number` tells draws of one use from each other.
    """

    def of_review(key: Key[Array, ""]) -> Array:
        own = jax.random.fold_in(key, number)
        return jax.vmap(lambda place: draw(jax.random.fold_in(own, place)))(jnp.arange(steps))

    return jax.vmap(of_review)(keys)

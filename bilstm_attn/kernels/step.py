"""An LSTM's step between its products, and its derivative: what the kernels in Pallas share.

i, f, g, o = split(z)
c' = sigmoid(f) c + sigmoid(i) tanh(g);   h' = sigmoid(o) tanh(c')
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilstm_attn.config import Products

GATES = 4

Gates = tuple[Array, ...]  # four


def advance(gates: Gates, cell: Array) -> tuple[Gates, Array, Array]:
    """Returns the gates after their nonlinearities, c', and h'; all `[b h]`."""
    i, f, g, o = gates
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    cell = f * cell + i * g
    return (i, f, g, o), cell, o * jnp.tanh(cell)


def retreat(gates: Gates, cell: Array, of_state: Array, of_cell: Array) -> tuple[Gates, Array]:
    """Returns the gradients of the gates before their nonlinearities, and of c.

    Args:
      gates: what `advance` returned.
      cell: c, which it was given.
      of_state: the gradient of h'.
      of_cell: that of c', without what comes through h'.
    """
    i, f, g, o = gates
    squashed = jnp.tanh(f * cell + i * g)
    of_cell = of_cell + of_state * o * (1 - squashed * squashed)
    of_gates = (
        of_cell * g * i * (1 - i),
        of_cell * cell * f * (1 - f),
        of_cell * i * (1 - g * g),
        of_state * squashed * o * (1 - o),
    )
    return of_gates, of_cell * f


def as_factor(array: Array, products: Products) -> Array:
    """Returns what a kernel's products are made of."""
    return array.astype(products) if products == "bfloat16" else array


def multiply(left: Array, right: Array, products: Products) -> Array:
    """Returns a kernel's product, in float32, its factors rounded to `products`."""
    left, right = as_factor(left, products), as_factor(right, products)
    return jnp.matmul(left, right, precision=products, preferred_element_type=jnp.float32)

"""One LSTM step without its matmuls, and its derivative; shared by the Pallas kernels.

i, f, g, o = split(z)
c' = sigmoid(f) c + sigmoid(i) tanh(g);   h' = sigmoid(o) tanh(c')
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilstm_attn.config import MatmulPrecision

GATES = 4

Gates = tuple[Array, ...]  # i, f, g, o, each `[b h]`


def advance(gates: Gates, cell: Array) -> tuple[Gates, Array, Array]:
    """Returns the activated gates, c' and h', all `[b h]`."""
    i, f, g, o = gates
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    cell = f * cell + i * g
    return (i, f, g, o), cell, o * jnp.tanh(cell)


def retreat(gates: Gates, cell: Array, d_state: Array, d_cell: Array) -> tuple[Gates, Array]:
    """Returns the gradients of z and of c, the derivative of `advance`.

    Args:
      gates: the activated gates that `advance` returned.
      cell: c, the cell state before the step.
      d_state: the gradient of h'.
      d_cell: the gradient of c', without its contribution to h'.
    """
    i, f, g, o = gates
    squashed = jnp.tanh(f * cell + i * g)
    d_cell = d_cell + d_state * o * (1 - squashed * squashed)
    d_gates = (
        d_cell * g * i * (1 - i),
        d_cell * cell * f * (1 - f),
        d_cell * i * (1 - g * g),
        d_state * squashed * o * (1 - o),
    )
    return d_gates, d_cell * f


def as_operand(array: Array, matmul_precision: MatmulPrecision) -> Array:
    """Casts an operand of a matmul to bfloat16 if that is the precision."""
    return array.astype(matmul_precision) if matmul_precision == "bfloat16" else array


def multiply(left: Array, right: Array, matmul_precision: MatmulPrecision) -> Array:
    """Returns the matmul of operands in the given precision, accumulated in float32."""
    left, right = as_operand(left, matmul_precision), as_operand(right, matmul_precision)
    return jnp.matmul(left, right, precision=matmul_precision, preferred_element_type=jnp.float32)

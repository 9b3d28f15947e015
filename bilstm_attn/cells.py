"""Recurrent cells: parameters and one step. A new cell is one class and one line in `CELLS`."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from bilstm_attn.types import Hidden, InputsAtTime

glorot_uniform = initializers.glorot_uniform()
orthogonal = initializers.orthogonal()


class Cell(nnx.Module):
    """One step of a recurrence. The constructor takes `inputs_size`, `hidden_size` and `rngs`."""

    @abc.abstractmethod
    def initial(self, batch_size: int) -> Any:
        """Returns the carry before the first token."""

    @abc.abstractmethod
    def step(self, carry: Any, inputs: InputsAtTime) -> Any:
        """Returns the carry after one token."""

    @abc.abstractmethod
    def hidden(self, carry: Any) -> Hidden:
        """Returns the hidden state in the carry."""


class LSTM(Cell):
    """Long short-term memory with a forget gate.

        i, f, g, o = split(x W + h U + b)
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')

    Hochreiter and Schmidhuber, 1997, with Gers et al., 2000; no peepholes. Initial values as in
    Keras: W Glorot-uniform, U orthogonal, b zero but `forget_bias` at the forget gate (Jozefowicz
    et al., 2015).
    """

    def __init__(
        self, inputs_size: int, hidden_size: int, *, rngs: nnx.Rngs, forget_bias: float = 1.0
    ):
        self.hidden_size = hidden_size
        self.input_kernel = nnx.Param(glorot_uniform(rngs.params(), (inputs_size, 4 * hidden_size)))
        self.recurrent_kernel = nnx.Param(orthogonal(rngs.params(), (hidden_size, 4 * hidden_size)))
        zero = jnp.zeros(hidden_size)
        self.bias = nnx.Param(jnp.concatenate([zero, zero + forget_bias, zero, zero]))

    def initial(self, batch_size: int) -> tuple[Hidden, Hidden]:
        """Returns the cell state and the hidden state, both zero."""
        zeros = jnp.zeros((batch_size, self.hidden_size))
        return zeros, zeros

    def step(self, carry: tuple[Hidden, Hidden], inputs: InputsAtTime) -> tuple[Hidden, Hidden]:
        """Returns the cell state and the hidden state after one token."""
        cell, hidden = carry
        gates = (
            inputs @ self.input_kernel[...]
            + hidden @ self.recurrent_kernel[...]
            + self.bias[...][None, :]
        )
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return cell, jax.nn.sigmoid(o) * jnp.tanh(cell)

    def hidden(self, carry: tuple[Hidden, Hidden]) -> Hidden:
        """Returns the hidden state in the carry."""
        return carry[1]


class GRU(Cell):
    """Gated recurrent unit, the reset gate applied after the product.

        r, z = sigmoid(split(x W_rz + h U_rz + b_rz))
        n = tanh(x W_n + b_n + r (h U_n + c_n))
        h' = (1 - z) n + z h

    Cho et al., 2014, arXiv:1406.1078, eq. 5-8.
    Deviation: r multiplies `h U_n + c_n` instead of h, as in cuDNN, Keras and Flax.
    """

    def __init__(self, inputs_size: int, hidden_size: int, *, rngs: nnx.Rngs):
        self.hidden_size = hidden_size
        self.input_kernel = nnx.Param(glorot_uniform(rngs.params(), (inputs_size, 3 * hidden_size)))
        self.recurrent_kernel = nnx.Param(orthogonal(rngs.params(), (hidden_size, 3 * hidden_size)))
        self.bias = nnx.Param(jnp.zeros(3 * hidden_size))
        self.candidate_bias = nnx.Param(jnp.zeros(hidden_size))

    def initial(self, batch_size: int) -> Hidden:
        """Returns the hidden state, zero."""
        return jnp.zeros((batch_size, self.hidden_size))

    def step(self, carry: Hidden, inputs: InputsAtTime) -> Hidden:
        """Returns the hidden state after one token."""
        from_inputs = inputs @ self.input_kernel[...] + self.bias[...][None, :]
        from_hidden = carry @ self.recurrent_kernel[...]
        r_inputs, z_inputs, n_inputs = jnp.split(from_inputs, 3, axis=-1)
        r_hidden, z_hidden, n_hidden = jnp.split(from_hidden, 3, axis=-1)
        r = jax.nn.sigmoid(r_inputs + r_hidden)
        z = jax.nn.sigmoid(z_inputs + z_hidden)
        n = jnp.tanh(n_inputs + r * (n_hidden + self.candidate_bias[...][None, :]))
        return (1 - z) * n + z * carry

    def hidden(self, carry: Hidden) -> Hidden:
        """Returns the carry, which is the hidden state."""
        return carry


CELLS: dict[str, type[Cell]] = {"lstm": LSTM, "gru": GRU}

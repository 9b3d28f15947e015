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
    """One step of a recurrence, `carry' = gate(linear(weights, x, hidden(carry)), carry)`.

    The constructor takes `inputs_size`, `hidden_size` and `rngs`. The time loop differentiates
    `linear` and `gate` one after the other and keeps what is between them, so that a step's
    products are in `linear` and its arithmetic, unit by unit, in `gate`.
    """

    hidden_size: int

    def initial(self, batch_size: int) -> Any:
        """Returns the carry before the first token, all zero."""
        return jnp.zeros((batch_size, self.hidden_size))

    @abc.abstractmethod
    def weights(self) -> Any:
        """Returns the parameters as `linear` takes them."""

    @staticmethod
    @abc.abstractmethod
    def linear(weights: Any, inputs: InputsAtTime, hidden: Hidden) -> Any:
        """Returns the gates before their nonlinearities."""

    @staticmethod
    @abc.abstractmethod
    def gate(gates: Any, carry: Any) -> Any:
        """Returns the carry after one token."""

    @staticmethod
    def hidden(carry: Any) -> Hidden:
        """Returns the hidden state in the carry."""
        return carry


class LSTM(Cell):
    """Long short-term memory with a forget gate.

        i, f, g, o = split([x, h] [W; U] + b)
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

    def weights(self) -> tuple[Any, Any]:
        """Returns `[W; U]` and `b`."""
        kernel = jnp.concatenate([self.input_kernel[...], self.recurrent_kernel[...]])
        return kernel, self.bias[...]

    @staticmethod
    def linear(weights: tuple[Any, Any], inputs: InputsAtTime, hidden: Hidden) -> Any:
        """Returns `[x, h] [W; U] + b`."""
        kernel, bias = weights
        return jnp.concatenate([inputs, hidden], axis=-1) @ kernel + bias[None, :]

    @staticmethod
    def gate(gates: Any, carry: tuple[Hidden, Hidden]) -> tuple[Hidden, Hidden]:
        """Returns the cell state and the hidden state after one token."""
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * carry[0] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return cell, jax.nn.sigmoid(o) * jnp.tanh(cell)

    @staticmethod
    def hidden(carry: tuple[Hidden, Hidden]) -> Hidden:
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

    def weights(self) -> tuple[Any, Any, Any, Any]:
        """Returns `W`, `U`, `b` and `[0, 0, c_n]`."""
        no_bias = jnp.zeros(2 * self.hidden_size)
        hidden_bias = jnp.concatenate([no_bias, self.candidate_bias[...]])
        return self.input_kernel[...], self.recurrent_kernel[...], self.bias[...], hidden_bias

    @staticmethod
    def linear(weights: tuple[Any, ...], inputs: InputsAtTime, hidden: Hidden) -> tuple[Any, Any]:
        """Returns the products with the inputs and with the hidden state, biases added."""
        input_kernel, recurrent_kernel, bias, hidden_bias = weights
        return inputs @ input_kernel + bias[None, :], hidden @ recurrent_kernel + hidden_bias[None]

    @staticmethod
    def gate(gates: tuple[Any, Any], carry: Hidden) -> Hidden:
        """Returns the hidden state after one token."""
        (r_inputs, z_inputs, n_inputs), (r_hidden, z_hidden, n_hidden) = (
            jnp.split(part, 3, axis=-1) for part in gates
        )
        r = jax.nn.sigmoid(r_inputs + r_hidden)
        z = jax.nn.sigmoid(z_inputs + z_hidden)
        n = jnp.tanh(n_inputs + r * n_hidden)
        return (1 - z) * n + z * carry


CELLS: dict[str, type[Cell]] = {"lstm": LSTM, "gru": GRU}

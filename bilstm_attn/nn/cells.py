"""Recurrent cells: parameters and one time step. A new cell is a class and a line in `CELLS`."""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array

from bilstm_attn.types import Hidden, InputsAtTime, Keys

glorot_uniform = initializers.glorot_uniform()
orthogonal = initializers.orthogonal()

Tree = Any  # of arrays
Gates = Any  # a tree of arrays `[b ...]`: the gates before their nonlinearities
Carry = Any  # a tree of arrays `[b h]`: the state between two time steps
StepNoise = Any  # a tree of arrays `[b ...]`: the noise of one time step, or None


class CellParams(NamedTuple):
    """The parameters of a cell, grouped by the function that uses them."""

    linear: Tree
    """Parameters of `Cell.linear`: matrices and biases."""
    gate: Tree = ()
    """Parameters of `Cell.gate`: elementwise factors, such as peephole connections."""


class Cell(nnx.Module):
    """One time step of a recurrence.

        gates  = linear(params.linear, x, hidden(carry))
        carry' = gate(params.gate, gates, carry, noise)

    The constructor takes `inputs_size`, `hidden_size` and `rngs`. The time loop differentiates
    `linear` and `gate` separately and stores the gates between them. Matmuls therefore belong in
    `linear` and elementwise operations in `gate`. Both are static methods that depend only on their
    arguments, so that one compilation serves both directions.
    """

    hidden_size: int

    def initial(self, batch_size: int) -> Carry:
        """Returns the carry before the first token, all zero."""
        return jnp.zeros((batch_size, self.hidden_size))

    @abc.abstractmethod
    def params(self) -> CellParams:
        """Returns the parameters in the form that `linear` and `gate` take."""

    def noise(self, keys: Keys, steps: int) -> StepNoise:
        """Returns noise for every time step, a tree of arrays `[t b ...]`, or None for no noise.

        `keys` holds one key per example. `gate` receives the noise of its time step. Zoneout, for
        example, samples here the units that keep their previous values.
        """
        del keys, steps

    @staticmethod
    @abc.abstractmethod
    def linear(params: Tree, inputs: InputsAtTime, hidden: Hidden) -> Gates:
        """Returns the gates before their nonlinearities."""

    @staticmethod
    @abc.abstractmethod
    def gate(params: Tree, gates: Gates, carry: Carry, noise: StepNoise = None) -> Carry:
        """Returns the carry after one token; `noise` is None in evaluation."""

    @staticmethod
    def hidden(carry: Carry) -> Hidden:
        """Returns the hidden state in the carry."""
        return carry


class LSTM(Cell):
    """Long short-term memory with a forget gate.

        i, f, g, o = split([x, h] [W; U] + b)
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')

    Hochreiter and Schmidhuber, 1997, with Gers et al., 2000; no peepholes. Initial values as in
    Keras: W Glorot-uniform, U orthogonal, b zero except `forget_bias` at the forget gate
    (Jozefowicz et al., 2015).
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

    def params(self) -> CellParams:
        """Returns `[W; U]` and `b`."""
        kernel = jnp.concatenate([self.input_kernel[...], self.recurrent_kernel[...]])
        return CellParams(linear=(kernel, self.bias[...]))

    @staticmethod
    def linear(params: tuple[Array, Array], inputs: InputsAtTime, hidden: Hidden) -> Array:
        """Returns `[x, h] [W; U] + b`."""
        kernel, bias = params
        return jnp.concatenate([inputs, hidden], axis=-1) @ kernel + bias[None, :]

    @staticmethod
    def gate(
        params: Tree, gates: Array, carry: tuple[Hidden, Hidden], noise: StepNoise = None
    ) -> tuple[Hidden, Hidden]:
        """Returns the cell state and the hidden state after one token."""
        del params, noise
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * carry[0] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return cell, jax.nn.sigmoid(o) * jnp.tanh(cell)

    @staticmethod
    def hidden(carry: tuple[Hidden, Hidden]) -> Hidden:
        """Returns the hidden state in the carry."""
        return carry[1]


class GRU(Cell):
    """Gated recurrent unit, with the reset gate applied after the matmul.

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

    def params(self) -> CellParams:
        """Returns `W`, `U`, `b` and `[0, 0, c_n]`."""
        no_bias = jnp.zeros(2 * self.hidden_size)
        hidden_bias = jnp.concatenate([no_bias, self.candidate_bias[...]])
        kernels = self.input_kernel[...], self.recurrent_kernel[...]
        return CellParams(linear=(*kernels, self.bias[...], hidden_bias))

    @staticmethod
    def linear(
        params: tuple[Array, Array, Array, Array], inputs: InputsAtTime, hidden: Hidden
    ) -> tuple[Array, Array]:
        """Returns the matmuls with the inputs and with the hidden state, biases added."""
        input_kernel, recurrent_kernel, bias, hidden_bias = params
        return inputs @ input_kernel + bias[None, :], hidden @ recurrent_kernel + hidden_bias[None]

    @staticmethod
    def gate(
        params: Tree, gates: tuple[Array, Array], carry: Hidden, noise: StepNoise = None
    ) -> Hidden:
        """Returns the hidden state after one token."""
        del params, noise
        (r_inputs, z_inputs, n_inputs), (r_hidden, z_hidden, n_hidden) = (
            jnp.split(part, 3, axis=-1) for part in gates
        )
        r = jax.nn.sigmoid(r_inputs + r_hidden)
        z = jax.nn.sigmoid(z_inputs + z_hidden)
        n = jnp.tanh(n_inputs + r * n_hidden)
        return (1 - z) * n + z * carry


CELLS: dict[str, type[Cell]] = {"lstm": LSTM, "gru": GRU}

"""The time loop of a bidirectional LSTM layer on GPU: see `kernels.pallas`.

Each program of the grid runs one direction of one tile of rows. U is in shared memory, h and c are
in registers, and the loop stops at the longest row of the tile.

Tested in Pallas' interpreter and lowered for CUDA; never run on a GPU. jax 0.11 and later warn that
Pallas' Triton lowering is deprecated in favour of Mosaic GPU and jax-triton.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Int

from bilstm_attn.config import MatmulPrecision
from bilstm_attn.nn.kernels.lstm_step import GATES, advance, as_operand, multiply, retreat

TILE = 16  # rows per program: the minimum for tensor cores
# For more hidden units, the shared memory of an A100 or H100 is too small for U.
MOST_HIDDEN: dict[MatmulPrecision, int] = {"float32": 64, "tensorfloat32": 64, "bfloat16": 128}


def padding(batch: int, hidden: int) -> tuple[int, int]:
    """Returns the numbers of rows and of units to pad with."""
    return -batch % TILE, max(pl.next_power_of_2(hidden), TILE) - hidden


def forward(
    projected: Array,
    recurrent: Array,
    lengths: Int[Array, " b"],
    *,
    matmul_precision: MatmulPrecision,
    interpret: bool,
    save: bool,
) -> tuple[Array, ...]:
    """Returns all states; with `save` also the gates and the cell states before each step."""
    _, steps, batch, _, hidden = projected.shape
    states = (2, steps, batch, hidden)
    results = (states, projected.shape, states) if save else (states,)
    arguments = (lengths, projected, as_operand(recurrent, matmul_precision))
    return _call(_forward_kernel, results, matmul_precision, interpret, *arguments)


def backward(
    gates: Array,
    cells: Array,
    recurrent: Array,
    lengths: Int[Array, " b"],
    d_states: Array,
    *,
    matmul_precision: MatmulPrecision,
    interpret: bool,
) -> Array:
    """Returns the gradient of the projected inputs."""
    transposed = as_operand(recurrent.swapaxes(2, 3), matmul_precision)
    arguments = (lengths, gates, cells, transposed, d_states)
    [d_projected] = _call(_backward_kernel, (gates.shape,), matmul_precision, interpret, *arguments)
    return d_projected


def _call(
    kernel: Any,
    results: tuple[tuple[int, ...], ...],
    matmul_precision: MatmulPrecision,
    interpret: bool,
    *arguments: Array,
) -> tuple[Array, ...]:
    """Runs a kernel; returns float32 arrays of the shapes `results`, the first `[2 t b ... h]`."""
    from jax.experimental.pallas import triton  # imported here: it warns from jax 0.11 on

    _, _, batch, *_, hidden = results[0]
    run = pl.pallas_call(
        functools.partial(kernel, matmul_precision=matmul_precision, interpret=interpret),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results],
        grid=(2, batch // TILE),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4 if hidden < 128 else 8, num_stages=1),
    )
    return tuple(run(*arguments))


def _dot(left: Array, right: Array, matmul_precision: MatmulPrecision, interpret: bool) -> Array:
    """Returns the matmul of `lstm_step.multiply`, in operations that Triton can lower."""
    if interpret:
        return multiply(left, right, matmul_precision)
    precision = {
        "float32": lax.DotAlgorithmPreset.TF32_TF32_F32_X3,  # accurate to 1-2 bits of float32
        "tensorfloat32": lax.DotAlgorithmPreset.TF32_TF32_F32,
        "bfloat16": None,
    }[matmul_precision]
    left, right = as_operand(left, matmul_precision), as_operand(right, matmul_precision)
    return jnp.dot(left, right, precision=precision, preferred_element_type=jnp.float32)


def _tile(lengths_ref: Any) -> tuple[Any, Any, Array, Array]:
    """Returns the direction, rows, lengths and maximum length of this program."""
    rows = pl.ds(pl.program_id(1) * TILE, TILE)
    lengths = lengths_ref[rows]
    return pl.program_id(0), rows, lengths, lengths.max()


def _forward_kernel(
    lengths_ref: Any,
    projected_ref: Any,
    recurrent_ref: Any,
    states_ref: Any,
    *saved_refs: Any,
    matmul_precision: MatmulPrecision,
    interpret: bool,
) -> None:
    direction, rows, lengths, longest = _tile(lengths_ref)
    recurrent = [recurrent_ref[direction, gate, :, :] for gate in range(GATES)]

    def step(count: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        h, c = carry
        t = jnp.where(direction == 0, count, longest - 1 - count)
        read = [
            projected_ref[direction, t, rows, gate, :]
            + _dot(h, recurrent[gate], matmul_precision, interpret)
            for gate in range(GATES)
        ]
        gates, cell, state = advance(tuple(read), c)
        own = (t < lengths)[:, None]
        states_ref[direction, t, rows, :] = jnp.where(own, state, 0)
        if saved_refs:  # for the backward pass
            gates_ref, cells_ref = saved_refs
            for gate, value in enumerate(gates):
                gates_ref[direction, t, rows, gate, :] = value
            cells_ref[direction, t, rows, :] = c
        return jnp.where(own, state, h), jnp.where(own, cell, c)

    zero = jnp.zeros((TILE, states_ref.shape[-1]), jnp.float32)
    lax.fori_loop(0, longest, step, (zero, zero))

    def fill(t: Any, carry: None) -> None:
        states_ref[direction, t, rows, :] = zero

    lax.fori_loop(longest, states_ref.shape[1], fill, None)


def _backward_kernel(
    lengths_ref: Any,
    gates_ref: Any,
    cells_ref: Any,
    transposed_ref: Any,
    d_states_ref: Any,
    d_projected_ref: Any,
    *,
    matmul_precision: MatmulPrecision,
    interpret: bool,
) -> None:
    direction, rows, lengths, longest = _tile(lengths_ref)
    transposed = [transposed_ref[direction, gate, :, :] for gate in range(GATES)]

    def step(count: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_h, d_c = carry
        t = jnp.where(direction == 0, longest - 1 - count, count)
        gates = [gates_ref[direction, t, rows, gate, :] for gate in range(GATES)]
        d_state = d_h + d_states_ref[direction, t, rows, :]
        d_gates, d_before = retreat(tuple(gates), cells_ref[direction, t, rows, :], d_state, d_c)
        own = (t < lengths)[:, None]
        before_h = jnp.zeros_like(d_h)
        for gate, value in enumerate(d_gates):
            value = jnp.where(own, value, 0)
            d_projected_ref[direction, t, rows, gate, :] = value
            before_h += _dot(value, transposed[gate], matmul_precision, interpret)
        return jnp.where(own, before_h, d_h), jnp.where(own, d_before, d_c)

    zero = jnp.zeros((TILE, d_states_ref.shape[-1]), jnp.float32)
    lax.fori_loop(0, longest, step, (zero, zero))

    def fill(t: Any, carry: None) -> None:
        for gate in range(GATES):
            d_projected_ref[direction, t, rows, gate, :] = zero

    lax.fori_loop(longest, d_states_ref.shape[1], fill, None)

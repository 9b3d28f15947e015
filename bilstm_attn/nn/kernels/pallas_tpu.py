"""The time loop of a bidirectional LSTM layer on TPU: see `kernels.pallas`.

Each program of the grid runs one direction of one tile of rows over one chunk of time steps. Chunks
run in scan order; h and c are carried in scratch memory, and the next chunk is fetched in the
meantime. A chunk beyond the longest row of its tile is filled with zeros without running a step.

Tested in Pallas' interpreter and lowered for a TPU; never run on one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

from bilstm_attn.config import MatmulPrecision
from bilstm_attn.nn.kernels.lstm_step import GATES, advance, as_operand, multiply, retreat

LANES = 128  # units are padded to a multiple of this
SUBLANES = 8  # rows are padded to a multiple of this
MOST_ROWS = 128  # per tile
MOST_STEPS = 8  # per chunk
CHUNK = 2**18  # gate values per chunk: 1 MiB; two chunks of every time-major array are on chip
# U and the chunks share the on-chip memory.
MOST_HIDDEN: dict[MatmulPrecision, int] = {
    "float32": 256,
    "bfloat16": 512,
}


def padding(batch: int, hidden: int) -> tuple[int, int]:
    """Returns the numbers of rows and of units to pad with."""
    return -batch % _rows_of_tile(batch), -hidden % LANES


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
    matrix = recurrent.transpose(0, 2, 1, 3).reshape(2, hidden, GATES * hidden)
    wide, narrow = (2, steps, batch, GATES * hidden), (2, steps, batch, hidden)
    states, *saved = _call(
        functools.partial(_forward_kernel, matmul_precision=matmul_precision),
        lengths,
        (as_operand(matrix, matmul_precision), projected.reshape(wide)),
        (narrow, wide, narrow) if save else (narrow,),
        interpret,
        reverse=False,
    )
    if not save:
        return (states,)
    gates, cells = saved
    return states, gates.reshape(projected.shape), cells


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
    _, steps, batch, _, hidden = gates.shape
    wide = (2, steps, batch, GATES * hidden)
    transposed = recurrent.swapaxes(2, 3).reshape(2, GATES * hidden, hidden)
    [d_projected] = _call(
        functools.partial(_backward_kernel, matmul_precision=matmul_precision),
        lengths,
        (as_operand(transposed, matmul_precision), gates.reshape(wide), cells, d_states),
        (wide,),
        interpret,
        reverse=True,
    )
    return d_projected.reshape(gates.shape)


def _rows_of_tile(batch: int) -> int:
    return min(MOST_ROWS, batch + -batch % SUBLANES)


def _call(
    kernel: Any,
    lengths: Int[Array, " b"],
    arguments: tuple[Array, ...],
    results: tuple[tuple[int, ...], ...],
    interpret: bool,
    *,
    reverse: bool,
) -> tuple[Array, ...]:
    """Runs a kernel on one matrix per direction and arrays `[2 t b ...]`; returns such arrays."""
    matrix, *over_time = arguments
    _, steps, batch, _ = results[0]
    hidden = min(matrix.shape[1:])
    rows = _rows_of_tile(batch)
    chunk = max(1, min(MOST_STEPS, CHUNK // (rows * GATES * hidden)))
    chunks, more = -(-steps // chunk), -steps % chunk

    def block(width: int) -> pl.BlockSpec:
        def at(direction: Any, tile: Any, count: Any) -> tuple[Any, ...]:
            return direction, _scan_position(direction, count, chunks, reverse), tile, 0

        return pl.BlockSpec((1, chunk, rows, width), at)

    found = pl.pallas_call(
        functools.partial(kernel, chunks=chunks, reverse=reverse),
        grid=(2, batch // rows, chunks),
        in_specs=[
            pl.BlockSpec((rows, 1), lambda direction, tile, count: (tile, 0)),
            pl.BlockSpec((1, *matrix.shape[1:]), lambda direction, tile, count: (direction, 0, 0)),
            *(block(each.shape[-1]) for each in over_time),
        ],
        out_specs=[block(shape[-1]) for shape in results],
        out_shape=[
            jax.ShapeDtypeStruct((2, steps + more, *shape[2:]), jnp.float32) for shape in results
        ],
        scratch_shapes=[pltpu.VMEM((rows, hidden), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
    )(
        lengths[:, None],
        matrix,
        *(jnp.pad(each, ((0, 0), (0, more), (0, 0), (0, 0))) for each in over_time),
    )
    return tuple(each[:, :steps] for each in found)


def _scan_position(direction: Any, count: Any, positions: int, reverse: bool) -> Any:
    """Returns the index along `positions` that the scan visits at step `count`."""
    return jnp.where((direction == 0) != reverse, count, positions - 1 - count)


def _run_chunk(
    step: Any,
    result: Any,
    carries: tuple[Any, Any],
    lengths: Any,
    chunks: int,
    reverse: bool,
) -> None:
    """Runs `step(k, t)` for each time step of this program, or fills `result` with zeros."""
    direction, count = pl.program_id(0), pl.program_id(2)
    steps = result.shape[1]
    first, longest = _scan_position(direction, count, chunks, reverse) * steps, lengths[...].max()

    @pl.when(count == 0)
    def _() -> None:
        for carry in carries:
            carry[...] = jnp.zeros_like(carry)

    @pl.when(first < longest)
    def _() -> None:
        def take(count: Any, nothing: None) -> None:
            k = _scan_position(direction, count, steps, reverse)
            step(k, first + k)

        lax.fori_loop(0, steps, take, None)

    @pl.when(first >= longest)
    def _() -> None:
        result[...] = jnp.zeros_like(result)


def _parts(gates: Array) -> Any:
    """Splits the concatenated gates into i, f, g and o."""
    return tuple(jnp.split(gates, GATES, axis=-1))


def _forward_kernel(
    lengths_ref: Any,
    recurrent_ref: Any,
    projected_ref: Any,
    states_ref: Any,
    *saved_and_carries: Any,
    matmul_precision: MatmulPrecision,
    chunks: int,
    reverse: bool,
) -> None:
    *saved_refs, h_ref, c_ref = saved_and_carries
    lengths = jnp.broadcast_to(lengths_ref[...], h_ref.shape)

    def step(k: Any, t: Any) -> None:
        h, c = h_ref[...], c_ref[...]
        z = projected_ref[0, k] + multiply(h, recurrent_ref[0], matmul_precision)
        gates, cell, state = advance(_parts(z), c)
        own = t < lengths
        h_ref[...], c_ref[...] = jnp.where(own, state, h), jnp.where(own, cell, c)
        states_ref[0, k] = jnp.where(own, state, 0)
        if saved_refs:  # for the backward pass
            gates_ref, cells_ref = saved_refs
            gates_ref[0, k] = jnp.concatenate(gates, axis=-1)
            cells_ref[0, k] = c

    _run_chunk(step, states_ref, (h_ref, c_ref), lengths_ref, chunks, reverse)


def _backward_kernel(
    lengths_ref: Any,
    transposed_ref: Any,
    gates_ref: Any,
    cells_ref: Any,
    d_states_ref: Any,
    d_projected_ref: Any,
    d_h_ref: Any,
    d_c_ref: Any,
    *,
    matmul_precision: MatmulPrecision,
    chunks: int,
    reverse: bool,
) -> None:
    lengths = jnp.broadcast_to(lengths_ref[...], d_h_ref.shape)

    def step(k: Any, t: Any) -> None:
        d_h, d_c = d_h_ref[...], d_c_ref[...]
        d_state = d_h + d_states_ref[0, k]
        d_gates, d_before = retreat(_parts(gates_ref[0, k]), cells_ref[0, k], d_state, d_c)
        own = t < lengths
        d_gates = jnp.concatenate([jnp.where(own, each, 0) for each in d_gates], axis=-1)
        d_projected_ref[0, k] = d_gates
        d_h_ref[...] = jnp.where(own, multiply(d_gates, transposed_ref[0], matmul_precision), d_h)
        d_c_ref[...] = jnp.where(own, d_before, d_c)

    _run_chunk(step, d_projected_ref, (d_h_ref, d_c_ref), lengths_ref, chunks, reverse)

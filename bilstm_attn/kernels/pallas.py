"""A bidirectional LSTM layer for GPUs in Pallas: one kernel walks all of time, U stays on the chip.

    z[t] = (noise x[t]) W + b + h U;   i, f, g, o = split(z)
    c' = sigmoid(f) c + sigmoid(i) tanh(g);   h' = sigmoid(o) tanh(c')

for t < length. What needs no earlier step stays outside of the kernel, for all times at once: the
products with W before it, and the gradient of U after its backward pass. A program of the grid is
a direction and a tile of rows; it stops at its tile's longest row.

Tested in Pallas' interpreter and lowered for CUDA; never run on a GPU. jax 0.11 and later warn that
what it is lowered by, Triton within Pallas, will go; Pallas' Mosaic GPU or jax-triton replace it.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from bilstm_attn.errors import UserError
from bilstm_attn.types import Inputs, Lengths, Query, States

TILE = 16  # rows of a program: the fewest that the GPU's matrix units take
MOST_HIDDEN = {"float32": 64, "bfloat16": 128}  # more, and U does not fit on the chip
GATES = 4

Kernels = Float[Array, "2 r g"]  # r = e + h
Biases = Float[Array, "2 g"]
Noises = Float[Array, "2 b e"] | Float[Array, "0"]
Projected = Float[Array, "2 t b 4 h"]
Recurrent = Float[Array, "2 4 h h"]
Walked = Float[Array, "2 t b h"]
Products = Literal["float32", "bfloat16"]


def lstm(
    inputs: Inputs,
    lengths: Lengths,
    kernels: Kernels,
    biases: Biases,
    noises: Noises,
    *,
    products: Products = "float32",
    interpret: bool = False,
) -> tuple[States, Query]:
    """Returns both directions' states `[t b 2h]`, zero at padding, and the last ones `[b 2h]`.

    Args:
      inputs: `[t b e]`; what stands at padding is never read into a result.
      lengths: `[b]`, in tokens.
      kernels: `[2 e+h 4h]`, those of the inputs above those of the hidden state; gates i, f, g, o.
      biases: `[2 4h]`.
      noises: `[2 b e]`, multiply the inputs of all time steps; or empty, for none.
      products: what products are computed in; all else is float32.
      interpret: run in Pallas' interpreter, on any device.
    """
    steps, batch, inputs_size = inputs.shape
    hidden = biases.shape[1] // GATES
    mask = (jnp.arange(steps)[:, None] < lengths[None])[..., None]
    inputs = jnp.where(mask, inputs, 0)
    read = [inputs * noise[None] for noise in noises] if noises.size else [inputs, inputs]
    projected = jnp.stack(
        [
            _multiply(x, kernel[:inputs_size], products) + bias[None, None]
            for x, kernel, bias in zip(read, kernels, biases, strict=True)
        ]
    ).reshape(2, steps, batch, GATES, hidden)
    recurrent = kernels[:, inputs_size:].reshape(2, hidden, GATES, hidden).swapaxes(1, 2)
    rows, units = -batch % TILE, max(pl.next_power_of_2(hidden), TILE) - hidden
    states: Any = _walk(
        products,
        interpret,
        jnp.pad(projected, ((0, 0), (0, 0), (0, rows), (0, 0), (0, units))),
        jnp.pad(recurrent, ((0, 0), (0, 0), (0, units), (0, units))),
        jnp.pad(lengths.astype(jnp.int32), (0, rows)),
    )
    forward, backward = states[0, :, :batch, :hidden], states[1, :, :batch, :hidden]
    ends = forward[jnp.maximum(lengths - 1, 0), jnp.arange(batch)]
    return (
        jnp.concatenate([forward, backward], axis=-1),
        jnp.concatenate([ends, backward[0]], axis=-1),
    )


def _multiply(left: Array, right: Array, products: Products) -> Array:
    """Returns the product in float32, its factors rounded to `products`."""
    left, right = left.astype(products), right.astype(products)
    precision = lax.Precision.HIGHEST if products == "float32" else None
    return jnp.matmul(left, right, precision=precision, preferred_element_type=jnp.float32)


def _dot(left: Array, right: Array, products: Products, interpret: bool) -> Array:
    """Returns the product as `_multiply` does, within a kernel."""
    precision = None
    if products == "float32" and not interpret:  # three TF32 products: float32 but for a bit or two
        precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    left, right = left.astype(products), right.astype(products)
    return jnp.dot(left, right, precision=precision, preferred_element_type=jnp.float32)


def _tile(lengths_ref: Any) -> tuple[Any, Any, Array, Array]:
    """Returns this program's direction, its rows, their lengths, and the longest of these."""
    rows = pl.ds(pl.program_id(1) * TILE, TILE)
    lengths = lengths_ref[rows]
    return pl.program_id(0), rows, lengths, lengths.max()


def _forward_kernel(
    lengths_ref: Any,
    projected_ref: Any,
    recurrent_ref: Any,
    states_ref: Any,
    *saved_refs: Any,
    products: Products,
    interpret: bool,
) -> None:
    way, rows, lengths, longest = _tile(lengths_ref)
    recurrent = [recurrent_ref[way, gate, :, :] for gate in range(GATES)]

    def step(count: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        h, c = carry
        t = jnp.where(way == 0, count, longest - 1 - count)
        i, f, g, o = (
            projected_ref[way, t, rows, gate, :] + _dot(h, recurrent[gate], products, interpret)
            for gate in range(GATES)
        )
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        cell = f * c + i * g
        state = o * jnp.tanh(cell)
        own = (t < lengths)[:, None]
        h, c = jnp.where(own, state, h), jnp.where(own, cell, c)
        states_ref[way, t, rows, :] = jnp.where(own, state, 0)
        if saved_refs:  # for the derivative
            gates_ref, cells_ref = saved_refs
            for gate, value in enumerate((i, f, g, o)):
                gates_ref[way, t, rows, gate, :] = value
            cells_ref[way, t, rows, :] = c
        return h, c

    zero = jnp.zeros((TILE, states_ref.shape[-1]), jnp.float32)
    lax.fori_loop(0, longest, step, (zero, zero))

    def fill(t: Any, carry: None) -> None:
        states_ref[way, t, rows, :] = zero

    lax.fori_loop(longest, states_ref.shape[1], fill, None)


def _backward_kernel(
    lengths_ref: Any,
    gates_ref: Any,
    cells_ref: Any,
    transposed_ref: Any,
    of_states_ref: Any,
    of_projected_ref: Any,
    *,
    products: Products,
    interpret: bool,
) -> None:
    way, rows, lengths, longest = _tile(lengths_ref)
    transposed = [transposed_ref[way, gate, :, :] for gate in range(GATES)]

    def step(count: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        of_h, of_c = carry
        t = jnp.where(way == 0, longest - 1 - count, count)
        before = jnp.where(way == 0, t - 1, t + 1)  # the time read before this one, if there is one
        begins = (before < 0) | (before >= lengths)
        at = jnp.clip(before, 0, longest - 1)
        c_before = jnp.where(begins[:, None], 0, cells_ref[way, at, rows, :])
        i, f, g, o = (gates_ref[way, t, rows, gate, :] for gate in range(GATES))
        squashed = jnp.tanh(f * c_before + i * g)
        of_state = of_h + of_states_ref[way, t, rows, :]
        of_cell = of_c + of_state * o * (1 - squashed * squashed)
        of_gates = (
            of_cell * g * i * (1 - i),
            of_cell * c_before * f * (1 - f),
            of_cell * i * (1 - g * g),
            of_state * squashed * o * (1 - o),
        )
        own = (t < lengths)[:, None]
        before_h = jnp.zeros_like(of_h)
        for gate, value in enumerate(of_gates):
            value = jnp.where(own, value, 0)
            of_projected_ref[way, t, rows, gate, :] = value
            before_h += _dot(value, transposed[gate], products, interpret)
        return jnp.where(own, before_h, of_h), jnp.where(own, of_cell * f, of_c)

    zero = jnp.zeros((TILE, of_states_ref.shape[-1]), jnp.float32)
    lax.fori_loop(0, longest, step, (zero, zero))

    def fill(t: Any, carry: None) -> None:
        for gate in range(GATES):
            of_projected_ref[way, t, rows, gate, :] = zero

    lax.fori_loop(longest, of_states_ref.shape[1], fill, None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _call(
    kernel: Any,
    results: tuple[tuple[int, ...], ...],
    products: Products,
    interpret: bool,
    arguments: tuple[Any, ...],
) -> Any:
    """Returns a kernel's results, float32 arrays of these shapes, `[2 t b ... h]` the first."""
    from jax.experimental.pallas import triton  # only here, since it warns from jax 0.11 on

    _, _, batch, *_, hidden = results[0]
    return pl.pallas_call(
        functools.partial(kernel, products=products, interpret=interpret),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results],
        grid=(2, batch // TILE),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4 if hidden < 128 else 8, num_stages=1),
    )(*arguments)


@_call.defjvp
def _no_second_derivatives(*given: Any) -> Any:
    raise UserError("backend pallas has no second derivatives; use backend scan or plain")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _walk(
    products: Products,
    interpret: bool,
    projected: Projected,
    recurrent: Recurrent,
    lengths: Int[Array, " b"],
) -> Walked:
    """Returns both directions' states, zero at padding."""
    _, steps, batch, _, hidden = projected.shape
    results = ((2, steps, batch, hidden),)
    given = (lengths, projected, recurrent)
    [states] = _call(_forward_kernel, results, products, interpret, given)
    return states


def _save(
    products: Products, interpret: bool, projected: Projected, recurrent: Recurrent, lengths: Any
) -> Any:
    _, steps, batch, _, hidden = projected.shape
    shape = (2, steps, batch, hidden)
    results = (shape, projected.shape, shape)
    given = (lengths, projected, recurrent)
    states, gates, cells = _call(_forward_kernel, results, products, interpret, given)
    return states, (states, gates, cells, recurrent, lengths)


def _back(products: Products, interpret: bool, residuals: Any, of_states: Walked) -> Any:
    states, gates, cells, recurrent, lengths = residuals
    given = (lengths, gates, cells, recurrent.swapaxes(2, 3), of_states)
    [of_projected] = _call(_backward_kernel, (gates.shape,), products, interpret, given)
    # What each step read of h: the state one time before; those at padding are zero already.
    none = jnp.zeros_like(states[0, :1])
    before = jnp.stack(
        [
            jnp.concatenate([none, states[0, :-1]]),
            jnp.concatenate([states[1, 1:], none]),
        ]
    ).astype(products)
    of_recurrent = jnp.einsum(
        "wtbh,wtbgk->wghk",
        before,
        of_projected.astype(products),
        precision=lax.Precision.HIGHEST if products == "float32" else None,
        preferred_element_type=jnp.float32,
    )
    return of_projected, of_recurrent, None


_walk.defvjp(_save, _back)

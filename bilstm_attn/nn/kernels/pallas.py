"""A bidirectional LSTM layer in Pallas for GPU and TPU: one kernel runs the whole time loop.

    z[t] = (noise x[t]) W + b + h U, then a step of `kernels.lstm_step`, for t < length.

U stays in on-chip memory. Matmuls without a dependence between time steps run outside the kernels,
for all time steps at once: the input projection and the gradient of U. The kernels are in
`kernels.pallas_gpu` and `kernels.pallas_tpu`.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilstm_attn.config import MatmulPrecision
from bilstm_attn.errors import UserError
from bilstm_attn.nn.kernels import pallas_gpu, pallas_tpu
from bilstm_attn.nn.kernels.lstm_step import GATES
from bilstm_attn.nn.precision import matmul_precision_context, round_operands
from bilstm_attn.types import Inputs, Lengths, Query, States

Device = Literal["gpu", "tpu"]

KERNELS = {"gpu": pallas_gpu, "tpu": pallas_tpu}

Kernels = Float[Array, "2 r g"]  # r = e + h
Biases = Float[Array, "2 g"]
Noises = Float[Array, "2 b e"] | Float[Array, "0"]
Projected = Float[Array, "2 t b 4 h"]
Recurrent = Float[Array, "2 4 h h"]
ScannedStates = Float[Array, "2 t b h"]


class KernelOptions(NamedTuple):
    """The options of one kernel call."""

    device: Device
    """The target device of the kernel."""
    matmul_precision: MatmulPrecision = "float32"
    """The precision of the matmuls; everything else is float32."""
    interpret: bool = False
    """Whether to run in Pallas' interpreter, which works on every device."""


def here(matmul_precision: MatmulPrecision) -> KernelOptions:
    """Returns the options for JAX's default device; a CPU interprets the GPU kernel."""
    device = jax.default_backend()
    return KernelOptions(
        "tpu" if device == "tpu" else "gpu", matmul_precision, interpret=device == "cpu"
    )


def most_hidden(options: KernelOptions) -> int:
    """Returns the maximum of hidden units per direction; 0 if the precision is not supported."""
    return KERNELS[options.device].MOST_HIDDEN.get(options.matmul_precision, 0)


def lstm(
    inputs: Inputs,
    lengths: Lengths,
    kernels: Kernels,
    biases: Biases,
    noises: Noises,
    options: KernelOptions,
) -> tuple[States, Query]:
    """Returns all states `[t b 2h]`, zero at padding, and the last states `[b 2h]`.

    Args:
      inputs: `[t b e]`; values at padding affect no result.
      lengths: `[b]`, in tokens.
      kernels: `[2 e+h 4h]`, rows of the inputs, then of the hidden state; gates i, f, g, o.
      biases: `[2 4h]`.
      noises: `[2 b e]`, factors of the inputs at every time step; empty for no noise.
      options: the device, the matmul precision and whether to use the interpreter.
    """
    steps, batch, inputs_size = inputs.shape
    hidden = biases.shape[1] // GATES
    lengths = jnp.clip(lengths.astype(jnp.int32), 0, steps)
    mask = (jnp.arange(steps)[:, None] < lengths[None])[..., None]
    inputs = jnp.where(mask, inputs, 0)
    read = [inputs * noise[None] for noise in noises] if noises.size else [inputs, inputs]
    with matmul_precision_context(options.matmul_precision):
        projected = jnp.stack(
            [
                jnp.matmul(*round_operands((x, kernel[:inputs_size]), options.matmul_precision))
                + bias[None]
                for x, kernel, bias in zip(read, kernels, biases[:, None], strict=True)
            ]
        ).reshape(2, steps, batch, GATES, hidden)
    recurrent = kernels[:, inputs_size:].reshape(2, hidden, GATES, hidden).swapaxes(1, 2)
    rows, units = KERNELS[options.device].padding(batch, hidden)
    states: Any = _scan(
        options,
        jnp.pad(projected, ((0, 0), (0, 0), (0, rows), (0, 0), (0, units))),
        jnp.pad(recurrent, ((0, 0), (0, 0), (0, units), (0, units))),
        jnp.pad(lengths, (0, rows)),
    )
    forward, backward = states[0, :, :batch, :hidden], states[1, :, :batch, :hidden]
    ends = forward[jnp.maximum(lengths - 1, 0), jnp.arange(batch)]
    return (
        jnp.concatenate([forward, backward], axis=-1),
        jnp.concatenate([ends, backward[0]], axis=-1),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(options: KernelOptions, arguments: tuple[Any, ...]) -> Any:
    """Returns all states, gates and cell states; cell states are those before each step."""
    return KERNELS[options.device].forward(
        *arguments,
        matmul_precision=options.matmul_precision,
        interpret=options.interpret,
        save=True,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(options: KernelOptions, arguments: tuple[Any, ...]) -> Projected:
    """Returns the gradient of the projected inputs."""
    return KERNELS[options.device].backward(
        *arguments, matmul_precision=options.matmul_precision, interpret=options.interpret
    )


@_forward.defjvp
@_backward.defjvp
def _no_second_derivatives(*_: Any) -> Any:
    raise UserError(
        "backend pallas does not support second derivatives; apply jax.lax.stop_gradient to the "
        "parameters and inputs of the inner gradient, or use backend scan or plain"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(
    options: KernelOptions, projected: Projected, recurrent: Recurrent, lengths: Int[Array, " b"]
) -> ScannedStates:
    """Returns the states of both directions, zero at padding."""
    arguments = (projected, recurrent, lengths)
    [states] = KERNELS[options.device].forward(
        *arguments,
        matmul_precision=options.matmul_precision,
        interpret=options.interpret,
        save=False,
    )
    return states


def _save(options: KernelOptions, projected: Projected, recurrent: Recurrent, lengths: Any) -> Any:
    states, gates, cells = _forward(options, (projected, recurrent, lengths))
    return states, (states, gates, cells, recurrent, lengths)


def _back(options: KernelOptions, residuals: Any, d_states: ScannedStates) -> Any:
    states, gates, cells, recurrent, lengths = residuals
    d_projected = _backward(options, (gates, cells, recurrent, lengths, d_states))
    # The hidden state before each step; states are already zero at padding.
    none = jnp.zeros_like(states[0, :1])
    before = jnp.stack(
        [
            jnp.concatenate([none, states[0, :-1]]),
            jnp.concatenate([states[1, 1:], none]),
        ]
    )
    with matmul_precision_context(options.matmul_precision):
        factors = round_operands((before, d_projected), options.matmul_precision)
        d_recurrent = jnp.einsum("wtbh,wtbgk->wghk", *factors)
    return d_projected, d_recurrent, None


_scan.defvjp(_save, _back)

"""Backends of the recurrence: which of them runs a model on this machine, and a self-test.

`scan` and `plain` run every cell on every device. `native` (C++, CPU) and `pallas` (GPU, TPU) are
fused kernels for the LSTM.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bilstm_attn.config import Backend, BackendChoice, Config, ModelConfig
from bilstm_attn.errors import UserError
from bilstm_attn.nn import cells, encoder, recurrence
from bilstm_attn.nn.cells import CELLS, LSTM
from bilstm_attn.nn.encoder import Bidirectional
from bilstm_attn.nn.kernels import native
from bilstm_attn.nn.kernels.native import UnavailableError
from bilstm_attn.registry import look_up
from bilstm_attn.types import Inputs, Params, Query, States

# Cells with a fused kernel. Subclasses are not included: they fall back to the scan.
FUSED_CELLS = (LSTM,)

DEVICES = {"native": ("cpu",), "pallas": ("gpu", "tpu")}  # other backends: every device


def refusal(backend: Backend, config: ModelConfig) -> str | None:
    """Returns the reason why `backend` cannot run this model, or None if it can."""
    if backend in ("scan", "plain"):
        return None
    if look_up("cell", CELLS, config.cell) not in FUSED_CELLS:
        return f"it does not support cell {config.cell!r}"
    if config.remat:
        return "it does not support model.remat"
    precision = config.matmul_precision
    if backend == "native":
        return None if precision == "float32" else f"it does not support matmuls in {precision}"
    from bilstm_attn.nn.kernels import pallas  # slow to import and rarely used

    most = pallas.most_hidden(pallas.here(precision))
    if most == 0:
        return f"it does not support matmuls in {precision}"
    if config.hidden_size > most:
        return f"it supports at most {most} hidden units with matmuls in {precision}"
    return None


def require_supported(backend: Backend, config: ModelConfig) -> None:
    """Raises a `UserError` if `backend` cannot run this model."""
    if reason := refusal(backend, config):
        raise UserError(f"backend {backend} cannot run this model: {reason}; use backend scan")


def choose_backend(wanted: BackendChoice, config: Config, notify: Callable[[str], None]) -> Backend:
    """Returns the backend to use; `auto` selects `native` if it can be built, else `scan`.

    On a GPU or TPU `auto` selects `scan`, because `pallas` has never run on one.

    Args:
      wanted: the user's choice.
      config: the run's config.
      notify: called with one line when `native` is built or `auto` falls back to `scan`.

    Raises:
      UserError: a backend chosen by name cannot run the model on this machine.
    """
    device = jax.default_backend()
    kernel: Backend = "native" if wanted == "auto" else wanted
    devices = DEVICES.get(kernel, (device,))
    if device not in devices:
        reason = f"it needs a {' or '.join(devices)}, got a {device}"
    elif (reason := refusal(kernel, config.model)) is None:
        try:
            if kernel == "native":
                prepare_native(notify)
            return kernel
        except UnavailableError as error:
            reason = str(error)
            if wanted == "auto":
                notify(f"backend native is not available ({reason}); using backend scan")
    if wanted != "auto":
        raise UserError(f"backend {kernel} is not available ({reason}); or give --backend scan")
    return "scan"


def prepare_native(notify: Callable[[str], None] = lambda line: None) -> None:
    """Builds the backend `native` if needed, and compares it once with the scan.

    `notify` is called with one line before the build.

    Raises:
      UnavailableError: the kernel cannot be built, or its results are wrong.
    """
    files = [Path(module.__file__ or "") for module in (cells, recurrence, encoder)]
    native.prepare(_native_matches_scan, [*files, Path(__file__)], notify)


def _native_matches_scan() -> bool:
    """Returns whether the kernel matches the scan in outputs, re-encoded outputs and gradients.

    The sizes exercise a partial tile, odd widths and more than one accumulation block.
    """
    steps, rows, inputs_size = 13, 35, 7
    config = ModelConfig(hidden_size=19)
    keys = jax.random.split(jax.random.key(0), rows)
    inputs = jax.random.normal(jax.random.key(1), (steps, rows, inputs_size))
    lengths = jnp.arange(rows) % (steps + 1)
    positions = (5 * jnp.arange(steps)[:, None] + jnp.arange(rows)[None]) % steps

    def run(backend: Backend) -> list[np.ndarray]:
        layer = Bidirectional(inputs_size, config, backend, name="test", rngs=nnx.Rngs(0))
        graph, params = nnx.split(layer)

        def loss(params: Params, inputs: Inputs) -> tuple[Any, Any]:
            states, last = nnx.merge(graph, params)(inputs, lengths, keys)
            return jnp.sin(states).sum() + jnp.cos(last).sum(), (states, last)

        def reencode(params: Params, inputs: Inputs) -> tuple[States, Query]:
            return nnx.merge(graph, params).make_reencoder(inputs)(positions, lengths)

        results = (
            jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, inputs),
            jax.jit(reencode)(params, inputs),
        )
        return [np.asarray(leaf) for leaf in jax.tree.leaves(results)]

    # float32 rounding: gradients are sums of about a hundred terms of order 1.
    pairs = zip(run("native"), run("scan"), strict=True)
    return all(np.allclose(ours, scan, atol=2e-5, rtol=1e-4) for ours, scan in pairs)

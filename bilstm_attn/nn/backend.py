"""Backends of the recurrence: which one can run a model on this machine, and the self-test.

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

# Cells with a fused kernel; exact class match, so a subclass falls back to the scan.
FUSED_CELLS = (LSTM,)

DEVICES = {"native": ("cpu",), "pallas": ("gpu", "tpu")}  # the others run on every device


def refusal(backend: Backend, config: ModelConfig) -> str | None:
    """Returns why `backend` cannot run this model, or None."""
    if backend in ("scan", "plain"):
        return None
    if look_up("cell", CELLS, config.cell) not in FUSED_CELLS:
        return f"it runs no cell {config.cell!r}"
    if config.remat:
        return "it has no rematerialisation (model.remat)"
    precision = config.matmul_precision
    if backend == "native":
        return None if precision == "float32" else f"it has no matmuls in {precision}"
    from bilstm_attn.nn.kernels import pallas  # here: it is slow to import, and rarely used

    most = pallas.most_hidden(pallas.here(precision))
    if most == 0:
        return f"it has no matmuls in {precision}"
    if config.hidden_size > most:
        return f"it holds at most {most} hidden units with matmuls in {precision}"
    return None


def require_supported(backend: Backend, config: ModelConfig) -> None:
    """Raises a `UserError` if `backend` cannot run this model."""
    if reason := refusal(backend, config):
        raise UserError(f"backend {backend} cannot run this model: {reason}; use backend scan")


def choose_backend(wanted: BackendChoice, config: Config, notify: Callable[[str], None]) -> Backend:
    """Returns the backend to use; `auto` is `native` where it can be built, else `scan`.

    On a GPU or TPU `auto` is `scan` too, since `pallas` is unproven there.

    Args:
      wanted: the user's choice.
      config: the run's config; its model must be one that the backend supports.
      notify: called with a line about the build, or about the fallback to `scan`.

    Raises:
      UserError: a kernel was chosen by name and cannot run here; says why.
    """
    device = jax.default_backend()
    kernel: Backend = "native" if wanted == "auto" else wanted
    devices = DEVICES.get(kernel, (device,))
    if device not in devices:
        reason = f"it is for {' or '.join(devices)}, not {device}"
    elif (reason := refusal(kernel, config.model)) is None:
        try:
            if kernel == "native":
                prepare_native(notify)
            return kernel
        except UnavailableError as error:
            reason = str(error)
            if wanted == "auto":
                notify(f"no native kernel ({reason}); using the scan")
    if wanted != "auto":
        raise UserError(f"no {kernel} kernel ({reason}); or give --backend scan")
    return "scan"


def prepare_native(notify: Callable[[str], None] = lambda line: None) -> None:
    """Prepares the backend `native`: builds it if needed, and tests it once against the scan.

    `notify` is called with a line before the build.

    Raises:
      UnavailableError: it cannot be built, or its results are wrong; says why.
    """
    files = [Path(module.__file__ or "") for module in (cells, recurrence, encoder)]
    native.prepare(_native_matches_scan, [*files, Path(__file__)], notify)


def _native_matches_scan() -> bool:
    """Self-test: does the kernel match the scan in outputs, re-encoded outputs and gradients?

    Sizes are chosen to exercise a partial tile, odd widths and more than one accumulation block.
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

    # float32 rounding: the kernel's gradients are sums of some hundred terms of size 1.
    pairs = zip(run("native"), run("scan"), strict=True)
    return all(np.allclose(ours, scan, atol=2e-5, rtol=1e-4) for ours, scan in pairs)

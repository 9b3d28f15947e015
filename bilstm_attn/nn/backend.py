"""How a run is computed on this machine: which backend, and what stays compiled."""

import jax

from bilstm_attn.config import Backend, BackendChoice, Config
from bilstm_attn.errors import UserError
from bilstm_attn.nn.encoder import MADE_FOR, prepare_native, refusal
from bilstm_attn.nn.kernels.native import UnavailableError
from bilstm_attn.runtime.console import Console


def choose_backend(wanted: BackendChoice, config: Config, console: Console) -> Backend:
    """Returns how the recurrence runs; `auto` is the native kernel where there is one, else `scan`.

    On a GPU or TPU `auto` is `scan` too, for `pallas` is unproven there.

    Raises:
      UserError: a kernel is asked for and cannot be had; says why.
    """
    device = jax.default_backend()
    kernel: Backend = "native" if wanted == "auto" else wanted
    made_for = MADE_FOR.get(kernel, (device,))
    if device not in made_for:
        reason = f"it is for {' or '.join(made_for)}, not {device}"
    elif (reason := refusal(kernel, config.model)) is None:
        try:
            if kernel == "native":
                prepare_native(console.print)
            return kernel
        except UnavailableError as error:
            reason = str(error)
            if wanted == "auto":
                console.print(f"no native kernel ({reason}); the scan runs")
    if wanted != "auto":
        raise UserError(f"no {kernel} kernel ({reason}); or give --backend scan")
    return "scan"

"""How a run is computed on this machine: which backend, and what stays compiled."""

import contextlib
import stat
from pathlib import Path

import jax

from bilstm_attn.config import Backend, BackendChoice, Config
from bilstm_attn.data.cache import default_cache_dir
from bilstm_attn.encoder import MADE_FOR, prepare_native, refusal
from bilstm_attn.errors import UserError
from bilstm_attn.kernels.native import UnavailableError, cpu_digest
from bilstm_attn.terminal import Show

MOST_COMPILED = 2**30  # bytes


def choose_backend(wanted: BackendChoice, config: Config, show: Show) -> Backend:
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
                prepare_native(show.say)
            return kernel
        except UnavailableError as error:
            reason = str(error)
            if wanted == "auto":
                show.say(f"no native kernel ({reason}); the scan runs")
    if wanted != "auto":
        raise UserError(f"no {kernel} kernel ({reason}); or give --backend scan")
    return "scan"


def keep_compiled(show: Show) -> None:
    """Lets jax keep what it compiles, up to a gigabyte, so that the next run starts in seconds.

    Where JAX_COMPILATION_CACHE_DIR says another place, that is taken.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = default_cache_dir() / "compiled" / cpu_digest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            show.say(f"what is compiled is not kept ({error}); set XDG_CACHE_HOME")
        else:
            forget_oldest(folder, MOST_COMPILED)
            jax.config.update("jax_compilation_cache_dir", str(folder))


def forget_oldest(folder: Path, most_bytes: int) -> None:
    """Deletes the files of a folder that were used longest ago, beyond `most_bytes`.

    jax's own limit loses its way where a process was killed while it wrote an entry.
    """
    used = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process has deleted it
            about = path.stat()
            if stat.S_ISREG(about.st_mode):
                used.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    for _, size, path in sorted(used, reverse=True):
        most_bytes -= size
        if most_bytes < 0:
            with contextlib.suppress(OSError):
                path.unlink()

"""A bidirectional LSTM layer for CPU in C++ (`lstm_cpu.cpp`): built on first use, tested, called.

The system's compiler builds it into the user's cache folder, once for each source, compiler, CPU
and version of jax.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilstm_attn.data.cache import default_cache_dir
from bilstm_attn.errors import UserError
from bilstm_attn.types import Inputs, Lengths, Query, States

SOURCE = Path(__file__).with_name("lstm_cpu.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")

Kernels = Float[Array, "2 r g"]  # r = e + h
Biases = Float[Array, "2 g"]
Noises = Float[Array, "2 b e"] | Float[Array, "0"]


class UnavailableError(Exception):
    """The kernel cannot be built or does not compute what it should; says why, and what to do."""


def prepare(agrees: Callable[[], bool]) -> None:
    """Builds and loads the kernel, unless that was done before.

    `agrees` runs once after building, and says whether the kernel's results are right.

    Raises:
      UnavailableError: there is no compiler, it failed, or the results are wrong.
    """
    library = _load()
    tested = library.with_suffix(".tested")
    if tested.exists():
        return
    if not agrees():
        library.unlink(missing_ok=True)
        raise UnavailableError("what the compiler built does not agree with the scan")
    tested.touch()


@functools.cache
def _load() -> Path:
    """Registers the handlers with jax; returns the library's path."""
    library = _build()
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        raise UnavailableError(f"{library} cannot be loaded ({error}); delete it") from None
    for name in ("lstm_forward", "lstm_backward"):
        jax.ffi.register_ffi_target(
            f"bilstm_attn_{name}", jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu"
        )
    loaded.lstm_saved_size.restype = ctypes.c_int64
    loaded.lstm_saved_size.argtypes = [ctypes.c_int64] * 3
    _sizes.append(loaded.lstm_saved_size)
    return library


_sizes: list[Callable[[int, int, int], int]] = []


def _build() -> Path:
    """Returns the compiled library, which appears in the cache folder whole or not at all."""
    wanted = os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [wanted] if wanted else COMPILERS)), None)
    if compiler is None:
        raise UnavailableError(
            f"no C++ compiler {wanted or 'c++'} is found; install g++ or clang, or set CXX"
        )
    folder = default_cache_dir() / "kernels"
    library = folder / f"lstm_cpu-{_key(compiler)}.so"
    if library.exists():
        return library
    partial = library.with_suffix(f".{secrets.token_hex(4)}.partial")
    command = [compiler, *FLAGS, "-isystem", jax.ffi.include_dir(), str(SOURCE), "-o", str(partial)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        partial.replace(library)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line]
        raise UnavailableError(f"{compiler} failed: {''.join(lines[:1])}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"cannot write {library}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return library


def _key(compiler: str) -> str:
    """Returns a digest of all that the library depends on."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=False, timeout=60
    ).stdout
    return _digest(SOURCE.read_text(), *FLAGS, compiler, version, cpu_digest(), jax.__version__)


def cpu_digest() -> str:
    """Returns a digest of what this machine's CPU can do."""
    cpu, features = Path("/proc/cpuinfo"), [platform.processor()]
    if cpu.exists():
        features = re.findall(r"^(?:model name|flags|Features)\s*:.*$", cpu.read_text(), re.M)[:2]
    return _digest(platform.machine(), *features)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def threads() -> int:
    """Returns the threads of a call: the cores, shared out over the devices. They change no bit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // jax.local_device_count())


@jax.custom_vjp
def lstm(
    inputs: Inputs, lengths: Lengths, kernels: Kernels, biases: Biases, noises: Noises
) -> tuple[States, Query]:
    """Returns both directions' states `[t b 2h]`, zero at padding, and the last ones `[b 2h]`.

    Args:
      inputs: `[t b e]`.
      lengths: `[b]`, in tokens.
      kernels: `[2 e+h 4h]`, those of the inputs above those of the hidden state; gates i, f, g, o.
      biases: `[2 4h]`.
      noises: `[2 b e]`, multiply the inputs of all time steps; or empty, for none.
    """
    states, last, _ = _forward(inputs, lengths, kernels, biases, noises, 0)
    return states, last


def _forward(
    inputs: Inputs, lengths: Lengths, kernels: Kernels, biases: Biases, noises: Noises, saved: int
) -> Any:
    steps, batch, _ = inputs.shape
    states = biases.shape[1] // 2
    shapes = ((steps, batch, states), (batch, states), (saved,))
    return _call("forward", shapes, (inputs, lengths.astype(jnp.int32), kernels, biases, noises))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _call(name: str, shapes: tuple[tuple[int, ...], ...], arguments: tuple[Any, ...]) -> Any:
    """Returns the results of a handler, float32 arrays of these shapes."""
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(f"bilstm_attn_lstm_{name}", results, vmap_method="sequential")
    return call(*arguments, threads=np.int32(threads()))


@_call.defjvp
def _no_second_derivatives(name: str, shapes: Any, primals: Any, tangents: Any) -> Any:
    raise UserError("backend native has no second derivatives; use backend scan or plain")


def _save(
    inputs: Inputs, lengths: Lengths, kernels: Kernels, biases: Biases, noises: Noises
) -> tuple[tuple[States, Query], Any]:
    _load()
    steps, batch, _ = inputs.shape
    size = _sizes[0](steps, batch, biases.shape[1] // 4)
    given = (inputs, lengths, kernels, biases, noises)
    states, last, saved = _forward(*given, size)
    return (states, last), (*given, states, saved)


def _back(residuals: Any, cotangents: Any) -> Any:
    inputs, lengths, kernels, biases, noises, states, saved = residuals
    arguments = (inputs, lengths.astype(jnp.int32), kernels, biases, noises, states, saved)
    shapes = tuple(given.shape for given in (inputs, kernels, biases, noises))
    of_inputs, *of_parameters, of_noises = _call("backward", shapes, (*arguments, *cotangents))
    return of_inputs, None, *of_parameters, of_noises


lstm.defvjp(_save, _back)

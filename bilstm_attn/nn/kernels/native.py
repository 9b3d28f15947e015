"""A bidirectional LSTM layer for CPU in C++ (`lstm_cpu.cpp`), compiled on first use.

The library is stored in the user's cache folder and compiled again when the source, the compiler,
the CPU or the version of jax or jaxlib changes. A self-test runs once after compiling.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.compile_cache import cpu_digest
from bilstm_attn.runtime.files import default_cache_dir, file_sha256, text_sha256
from bilstm_attn.types import Inputs, Lengths, Positions, Query, States

SOURCE = Path(__file__).with_name("lstm_cpu.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")

Kernels = Float[Array, "2 r g"]  # r = e + h
Biases = Float[Array, "2 g"]
Noises = Float[Array, "2 b e"] | Float[Array, "0"]


class UnavailableError(Exception):
    """The kernel cannot be built, or its results are wrong."""


def prepare(
    agrees: Callable[[], bool], reference: Sequence[Path], notify: Callable[[str], None]
) -> None:
    """Builds, loads and tests the kernel, unless an earlier call or process has done so.

    Args:
      agrees: the self-test, run once after building; returns whether the results are right.
      reference: source files of the reference; the self-test is repeated when they change.
      notify: called with one line before the build, which takes seconds.

    Raises:
      UnavailableError: no compiler is found, compiling fails, or the results are wrong.
    """
    try:
        library = _load(notify)
        digest = text_sha256(*(path.read_text() for path in reference))[:16]
        tested = library.with_suffix(f".{digest}.tested")
        if tested.exists():
            return
        if not agrees():
            raise UnavailableError("the results of the compiled kernel differ from the scan")
        with contextlib.suppress(OSError):  # the next process repeats the test
            tested.touch()
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(str(error)) from None


def _load(notify: Callable[[str], None] = lambda line: None) -> Path:
    """Loads the library and registers its handlers with JAX; returns its path."""
    if _loaded:
        return _loaded[0][0]
    library = _build(notify)
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        raise UnavailableError(f"cannot load {library} ({error}); delete that file") from None
    for name in ("lstm_forward", "lstm_backward", "lstm_reencode"):
        jax.ffi.register_ffi_target(
            f"bilstm_attn_{name}", jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu"
        )
    loaded.lstm_saved_size.restype = ctypes.c_int64
    loaded.lstm_saved_size.argtypes = [ctypes.c_int64] * 3
    _loaded.append((library, loaded.lstm_saved_size))
    return library


_loaded: list[tuple[Path, Callable[[int, int, int], int]]] = []


def _build(notify: Callable[[str], None] = lambda line: None) -> Path:
    """Returns the path of the compiled library in the cache folder, after building it if needed.

    The file is written atomically. Its name contains a digest of its bytes, so that a damaged
    library is built again.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    choices = [named] if named else [[name] for name in COMPILERS]
    compiler = next((words for words in choices if shutil.which(words[0])), None)
    if compiler is None:
        raise UnavailableError(
            f"C++ compiler {choices[0][0]} not found; install g++ or clang, or set CXX"
        )
    folder = default_cache_dir() / "kernels"
    name = f"lstm_cpu-{_key(compiler)}"
    for library in folder.glob(f"{name}.*.so"):
        if library.suffixes[-2] == f".{file_sha256(library)[:16]}":
            return library
    notify("compiling the native kernel (only once)")
    partial = folder / f"{name}.{secrets.token_hex(4)}.partial"
    command = [*compiler, *FLAGS, "-isystem", jax.ffi.include_dir(), str(SOURCE), "-o"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = _run([*command, str(partial)], timeout=300)
        if done.returncode != 0:
            lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
            first = next((line for line in lines if "error" in line), lines[-1])
            raise UnavailableError(f"{compiler[0]} failed: {first}")
        library = partial.with_name(f"{name}.{file_sha256(partial)[:16]}.so")
        partial.replace(library)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return library


def _run(command: Sequence[str], timeout: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=os.environ | {"LC_ALL": "C"},
    )


def _key(compiler: Sequence[str]) -> str:
    """Returns a digest of the source, flags, compiler, versions and CPU."""
    version = _run([*compiler, "--version"], timeout=60).stdout
    versions = (version, jax.__version__, importlib.metadata.version("jaxlib"))
    return text_sha256(SOURCE.read_text(), *FLAGS, *compiler, *versions, cpu_digest())[:16]


def threads() -> int:
    """Returns the number of threads per call, cores / devices. It does not affect results."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // jax.local_device_count())


@jax.custom_vjp
def lstm(
    inputs: Inputs, lengths: Lengths, kernels: Kernels, biases: Biases, noises: Noises
) -> tuple[States, Query]:
    """Returns all states `[t b 2h]`, zero at padding, and the last states `[b 2h]`.

    Args:
      inputs: `[t b e]`.
      lengths: `[b]`, in tokens.
      kernels: `[2 e+h 4h]`, rows of the inputs, then of the hidden state; gates i, f, g, o.
      biases: `[2 4h]`.
      noises: `[2 b e]`, factors of the inputs at every time step; empty for no noise.
    """
    states, last, _ = _forward(inputs, lengths, kernels, biases, noises, 0)
    return states, last


def _forward(
    inputs: Inputs, lengths: Lengths, kernels: Kernels, biases: Biases, noises: Noises, saved: int
) -> Any:
    _load()
    steps, batch, _ = inputs.shape
    states_size = biases.shape[1] // 2
    shapes = ((steps, batch, states_size), (batch, states_size), (saved,))
    return _call("forward", shapes, (inputs, lengths.astype(jnp.int32), kernels, biases, noises))


def reencode(
    projected: Float[Array, "n b 2 g"],
    positions: Positions,
    lengths: Lengths,
    kernels: Float[Array, "2 h g"],
) -> tuple[States, Query]:
    """Returns the results of `lstm` for a selection of the tokens. Not differentiable.

    Args:
      projected: `[n b 2 4h]`, inputs of every token times the input kernel, plus the bias.
      positions: `[t b]`, the index, from 0 to n - 1, of the token placed at t.
      lengths: `[b]`, in tokens.
      kernels: `[2 h 4h]`, the recurrent kernels.
    """
    _load()
    steps, batch = positions.shape
    shapes = ((steps, batch, 2 * kernels.shape[1]), (batch, 2 * kernels.shape[1]))
    arguments = (projected, positions.astype(jnp.int32), lengths.astype(jnp.int32), kernels)
    states, last = _call("reencode", shapes, arguments)
    return states, last


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _call(name: str, shapes: tuple[tuple[int, ...], ...], arguments: tuple[Any, ...]) -> Any:
    """Calls a handler of the library; returns float32 arrays of the given shapes."""
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(f"bilstm_attn_lstm_{name}", results, vmap_method="sequential")
    return call(*arguments, threads=np.int32(threads()))


@_call.defjvp
def _no_further_derivatives(name: str, shapes: Any, primals: Any, tangents: Any) -> Any:
    if name == "reencode":
        raise UserError("backend native cannot differentiate a re-encoding; use backend scan")
    raise UserError(
        "backend native does not support second derivatives; apply jax.lax.stop_gradient to the "
        "parameters and inputs of the inner gradient, or use backend scan or plain"
    )


def _save(
    inputs: Inputs, lengths: Lengths, kernels: Kernels, biases: Biases, noises: Noises
) -> tuple[tuple[States, Query], Any]:
    _load()
    steps, batch, _ = inputs.shape
    size = _loaded[0][1](steps, batch, biases.shape[1] // 4)
    arguments = (inputs, lengths, kernels, biases, noises)
    states, last, saved = _forward(*arguments, size)
    return (states, last), (*arguments, states, saved)


def _back(residuals: Any, cotangents: Any) -> Any:
    inputs, lengths, kernels, biases, noises, states, saved = residuals
    arguments = (inputs, lengths.astype(jnp.int32), kernels, biases, noises, states, saved)
    shapes = tuple(array.shape for array in (inputs, kernels, biases, noises))
    d_inputs, *d_params, d_noises = _call("backward", shapes, (*arguments, *cotangents))
    return d_inputs, None, *d_params, d_noises


lstm.defvjp(_save, _back)

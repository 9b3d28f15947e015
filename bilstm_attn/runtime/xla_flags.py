"""Process settings that must precede the first use of JAX: XLA flags, memory pages, processes."""

import contextlib
import dataclasses
import importlib.util
import os
import platform
import sys

from bilstm_attn.errors import UserError

GRAPHS = "--xla_gpu_enable_command_buffer"
CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True)
class Processes:
    """How this process joins a multi-process run. Changes results only by float rounding."""

    distributed: bool = False
    """Join the other processes that SLURM, a Cloud TPU or MPI started."""
    coordinator: str | None = None
    """HOST:PORT of process 0, if no cluster provides it; requires --processes and --process-id."""
    processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Index of this process, from 0."""

    def __post_init__(self):
        address = [self.coordinator, self.processes, self.process_id]
        complete = None not in address
        if address != [None] * 3 and not (self.distributed and complete):
            raise UserError(
                "--coordinator, --processes and --process-id must be given together and with "
                "--distributed; give all of them, or let the cluster provide them"
            )
        if complete and not 0 <= int(self.process_id or 0) < int(self.processes or 0):
            raise UserError(
                f"--process-id must be at least 0 and below --processes, got {self.process_id} of "
                f"{self.processes}"
            )


def configure_process() -> None:
    """Sets XLA flags and memory pages for speed; variables that are already set take precedence."""
    use_cuda_graphs()
    use_huge_pages()


def use_cuda_graphs() -> None:
    """Makes XLA run time loops on a GPU as CUDA graphs instead of single kernel launches.

    Does nothing without a CUDA plugin of JAX, or if XLA_FLAGS contains the flag already:
    `XLA_FLAGS=--xla_gpu_enable_command_buffer=-WHILE` switches the graphs off. Untested
    on a GPU.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if GRAPHS not in flags and any(map(importlib.util.find_spec, CUDA_PLUGINS)):
        os.environ["XLA_FLAGS"] = f"{flags} {GRAPHS}=+WHILE".strip()


def request_deterministic_gpu_ops() -> None:
    """Makes XLA avoid GPU operations that are not deterministic. Untested on a GPU."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def use_huge_pages() -> None:
    """Restarts the program with memory in huge pages, if glibc supports them.

    Does nothing if GLIBC_TUNABLES is set. XLA on CPU allocates the temporaries of every step anew,
    hundreds of megabytes: with small pages, page faults take a fifth to a third of a training
    step.
    """
    library, version = platform.libc_ver()
    supported = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    is_program = sys.argv[0] in sys.orig_argv  # False in a notebook, which must not restart
    if supported and is_program and "GLIBC_TUNABLES" not in os.environ:
        environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        with contextlib.suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)

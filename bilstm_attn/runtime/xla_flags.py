"""What a script sets for its own process, before jax is in use: memory pages and XLA's flags."""

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
    """Which processes train together; of the numbers, changes the last digits."""

    distributed: bool = False
    """Be one of several processes, as SLURM, a Cloud TPU or MPI started them."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where no cluster says so; then give the next two as well."""
    processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this one is, from 0."""

    def __post_init__(self):
        given = [self.coordinator, self.processes, self.process_id]
        complete = None not in given
        if given != [None] * 3 and not (self.distributed and complete):
            raise UserError(
                "--coordinator, --processes and --process-id go together, with --distributed"
            )
        if complete and not 0 <= int(self.process_id or 0) < int(self.processes or 0):
            raise UserError(
                f"--process-id must be at least 0 and below --processes, got {self.process_id} of "
                f"{self.processes}"
            )


def configure_process() -> None:
    """Makes the process fast on its platform; what the user's environment says already, stays."""
    use_cuda_graphs()
    use_huge_pages()


def use_cuda_graphs() -> None:
    """Lets XLA run a time loop on a GPU as one CUDA graph, not as some kernels for each step.

    Where jax has a plugin for CUDA alone. A setting of that flag in XLA_FLAGS is left as it is:
    `XLA_FLAGS=--xla_gpu_enable_command_buffer=-WHILE` switches it off. Unproven on a GPU.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if GRAPHS not in flags and any(map(importlib.util.find_spec, CUDA_PLUGINS)):
        os.environ["XLA_FLAGS"] = f"{flags} {GRAPHS}=+WHILE".strip()


def request_deterministic_gpu_ops() -> None:
    """Has XLA leave out GPU operations whose bits change from run to run. Unproven on a GPU."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def use_huge_pages() -> None:
    """Starts the script again with memory in huge pages, where glibc has them and nobody set them.

    XLA on CPU allocates a step's temporaries anew each time, hundreds of megabytes: with small
    pages, the faults alone take a fifth to a third of a training step.
    """
    library, version = platform.libc_ver()
    has_them = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    is_the_program = sys.argv[0] in sys.orig_argv  # else a notebook would be started again
    if has_them and is_the_program and "GLIBC_TUNABLES" not in os.environ:
        environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        with contextlib.suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)

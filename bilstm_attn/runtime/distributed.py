"""Several processes that train one model together: joining, agreeing and exiting.

All processes run the same program with the same config; process 0 writes the files. With a single
process, every function here is trivial and needs no communication.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.cli import status_of
from bilstm_attn.runtime.rendezvous import JOIN_SECONDS, rendezvous

T = TypeVar("T")

LOST_SECONDS = 30  # a process without a heartbeat for this long counts as lost
LEAVE_SECONDS = 60  # how long a finished process waits for the others to finish


def join_processes(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Joins the other processes; returns once all are connected.

    Arguments that are None come from the cluster (SLURM, Cloud TPU, MPI). Must be called before any
    other use of JAX.

    Raises:
      UserError: no cluster is found, or a process did not connect within `JOIN_SECONDS`.
    """
    if coordinator is not None:
        rendezvous(coordinator, processes or 1, process_id or 0)
    jax.config.update("jax_enable_preemption_service", False)  # the training handles SIGTERM itself
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=process_id,
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        advice = (
            "give --coordinator HOST:PORT, --processes N and --process-id 0 to N - 1"
            if coordinator is None
            else "start every process, each with its --process-id, within a minute"
        )
        raise UserError(f"the processes cannot connect ({reason}); {advice}") from None


def is_main_process() -> bool:
    """Returns whether this is process 0, which writes the files."""
    return jax.process_index() == 0


def on_main_process(make: Callable[[], T]) -> T:
    """Calls `make` in process 0 only and returns its result, plain JSON, in every process.

    Raises:
      UserError: raised by `make` in process 0, and then here in every process.
    """
    if jax.process_count() == 1:
        return make()
    outcome: dict[str, Any] = {}
    if is_main_process():
        try:
            outcome = {"result": make()}
        except UserError as error:
            outcome = {"error": str(error)}
    text = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
    size = int(broadcast(np.array(len(text), np.int32)))
    # A power of two as length, so that few shapes are compiled.
    padded = np.zeros(2 ** max(size - 1, 1).bit_length(), np.uint8)
    if is_main_process():
        padded[:size] = text
    outcome = json.loads(broadcast(padded)[:size].tobytes())
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["result"]


def broadcast(tree: T) -> T:
    """Returns process 0's tree of NumPy arrays; the others pass a tree of the same shapes."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def max_over_processes(number: int) -> int:
    """Returns the maximum of `number`, below 2**31, over all processes."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array(number, np.int32)).max())


def require_same(**values: Any) -> None:
    """Raises a `UserError` in every process unless all pass the same values, plain JSON.

    In a process whose values differ from process 0's, the error names up to three of them.
    """
    if jax.process_count() == 1:
        return
    expected = on_main_process(lambda: values)
    actual = json.loads(json.dumps(values))
    different = [name for name in expected if actual.get(name) != expected[name]]
    message = "; ".join(
        f"{name} differs: {expected[name]} in process 0, {actual.get(name)} in this one"
        for name in different[:3]
    )
    if max_over_processes(bool(message)):
        raise UserError(
            f"all processes must run the same program ({message or 'another process differs'}); "
            "start all of them with the same command, versions and data"
        )


@contextlib.contextmanager
def _report_lost_process() -> Iterator[None]:
    """Converts XLA's errors about a lost process into a `UserError`."""
    try:
        yield
    except (JaxRuntimeError, ValueError) as error:
        # XLA's messages start with a status, such as "UNAVAILABLE: ".
        if jax.process_count() == 1 or not re.match(r"[A-Z_]+: ", str(error)):
            raise
        raise UserError(
            f"another process of this training was lost ({str(error).splitlines()[0][:160]}); "
            "start all processes again with --resume"
        ) from None


def run_distributed(main: Callable[[], int]) -> int:
    """Calls `main` as one of several processes and returns its exit status.

    After an error the process exits at once, without JAX's shutdown, which would wait for the
    other processes while they wait for this one.
    """

    def call() -> int:
        with _report_lost_process():
            return main()

    watchdog = _start_watchdog()
    status: int | None = 1
    try:
        status = status_of(call)
    except Exception:
        traceback.print_exc()
    watchdog.communicate(_GOODBYE)
    if status in (1, 2):
        sys.stdout.flush()
        os._exit(status)
    return status or 0


_GOODBYE = "goodbye"
_WATCHDOG = f"""
import sys
if sys.stdin.read() != {_GOODBYE!r}:
    sys.exit("error: this process was killed, most likely because another process of the training "
             "was lost; start all processes again with --resume")
"""


def _start_watchdog() -> "subprocess.Popen[str]":
    """Starts a process that prints an error if this one dies without sending `_GOODBYE`.

    When process 0 is lost, JAX kills the others before Python can print an error.
    """
    command = [sys.executable, "-S", "-E", "-c", _WATCHDOG]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

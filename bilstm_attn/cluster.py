"""Several processes that train one model together: joining, agreeing, and leaving.

All of them run the same program over the same config; the first one writes. Where there is only
one process, every function here does the plain thing.
"""

import contextlib
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from bilstm_attn.errors import UserError
from bilstm_attn.terminal import status_of

T = TypeVar("T")

JOIN_SECONDS = 60
LOST_SECONDS = 30  # without a sign of life after which a process counts as lost
LEAVE_SECONDS = 60  # for the others to end too


def join(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Makes this process one of several. What is None is asked of the cluster (SLURM, TPU, MPI).

    Must come before any other use of jax. Returns when all of them are there.

    Raises:
      UserError: there is no such cluster, or someone did not come within `JOIN_SECONDS`.
    """
    if coordinator is not None:
        _require_answer(coordinator, listening=process_id == 0)
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is the training's
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
        raise UserError(f"the processes did not come together ({reason}); {advice}") from None


def _require_answer(coordinator: str, *, listening: bool) -> None:
    """Raises a `UserError` unless the coordinator, another process, takes a connection in time."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    until = time.monotonic() + JOIN_SECONDS
    while not listening:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=JOIN_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"no one answers at the coordinator's address {coordinator} after "
                    f"{JOIN_SECONDS} s ({error.strerror or error}); start process 0 there, or mend "
                    "--coordinator"
                ) from None
            time.sleep(0.5)


def is_first() -> bool:
    """Returns whether this process is the one that writes."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """Returns what `make` returns in the first process, which alone calls it: plain JSON.

    Raises:
      UserError: `make` raised it there; every process raises it.
    """
    if jax.process_count() == 1:
        return make()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"result": make()}
        except UserError as error:
            answer = {"error": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(broadcast(np.array(len(text), np.int32)))
    padded = np.zeros(2 ** max(size - 1, 1).bit_length(), np.uint8)  # few shapes to compile for
    padded[: len(text) if is_first() else 0] = text if is_first() else 0
    answer = json.loads(broadcast(padded)[:size].tobytes())
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["result"]


def broadcast(tree: T) -> T:
    """Returns the first process's tree of NumPy arrays; the others give one of its shapes."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def greatest(number: int) -> int:
    """Returns the greatest of all processes' numbers, below 2**31."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array(number, np.int32)).max())


def require_same(**facts: Any) -> None:
    """Raises a `UserError`, in every process, unless all have the same facts, plain JSON.

    In the process whose facts are other than the first one's, it names one.
    """
    if jax.process_count() == 1:
        return
    first = from_first(lambda: facts)
    own = json.loads(json.dumps(facts))
    different = [name for name in first if own.get(name) != first[name]]
    message = ""
    if different:
        there, here = (str(values.get(different[0])) for values in (first, own))
        message = f"{different[0]} differs: {there} in process 0, {here} in this one"
    if greatest(bool(message)):
        raise UserError(
            f"the processes do not run the same ({message or 'one differs from this one'}); start "
            "all of them with the same command, versions and data"
        )


@contextlib.contextmanager
def _losses_named() -> Iterator[None]:
    try:
        yield
    except (JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not re.match(r"[A-Z_]+: ", str(error)):  # XLA's statuses
            raise
        raise UserError(
            f"another process of this training was lost ({str(error).splitlines()[0][:160]}); "
            "start all of them again with --resume"
        ) from None


def run_together(main: Callable[[], int]) -> int:
    """Returns the exit status of `main`, run by one of several processes.

    After an error this process ends here and now, without goodbye, so that no other waits for it.
    """

    def call() -> int:
        with _losses_named():
            return main()

    status: int | None = 1
    try:
        status = status_of(call)
    except Exception:
        traceback.print_exc()
    if status in (1, 2):
        sys.stdout.flush()
        os._exit(status)
    return status or 0

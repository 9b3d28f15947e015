"""Several processes that train one model together: joining, agreeing, and leaving.

All of them run the same program over the same config; the first one writes. Where there is only
one process, every function here does the plain thing.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
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
from bilstm_attn.runtime.cli import status_of

T = TypeVar("T")

JOIN_SECONDS = 60
LOST_SECONDS = 30  # without a sign of life after which a process counts as lost
LEAVE_SECONDS = 60  # for the others to end too


def join_processes(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Makes this process one of several. What is None is asked of the cluster (SLURM, TPU, MPI).

    Must come before any other use of jax. Returns when all of them are there.

    Raises:
      UserError: there is no such cluster, or someone did not come within `JOIN_SECONDS`.
    """
    if coordinator is not None:
        rendezvous(coordinator, processes or 1, process_id or 0)
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


def rendezvous(coordinator: str, processes: int, process_id: int) -> None:
    """Returns when all processes have come to process 0, at the coordinator's address.

    Without it they would meet in jax's own service, which ends a process that waits in vain without
    a word to Python. That takes over the address afterwards.

    Raises:
      UserError: someone did not come within `JOIN_SECONDS`, or is another one than expected.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    until = time.monotonic() + JOIN_SECONDS
    if process_id > 0:
        about = {"processes": processes, "process_id": process_id}
        _call_on(host.strip("[]"), int(port), about, until)
        return
    with contextlib.ExitStack() as stack:
        callers: list[socket.socket] = []
        come, error = {0}, ""
        try:
            server = stack.enter_context(socket.create_server(("", int(port))))
            while len(come) < processes:
                caller = stack.enter_context(_accept(server, until))
                about = _read_line(caller)
                number = about.get("process_id")
                if not isinstance(number, int):
                    continue  # whoever that was
                callers.append(caller)
                if about.get("processes") != processes or number in come:
                    raise UserError(
                        f"a process says that it is number {number} of {about.get('processes')}, "
                        f"when {sorted(come)} of {processes} have come; give each its own "
                        "--process-id, and all the same --processes"
                    )
                come.add(number)
        except TimeoutError:
            missing = sorted(set(range(processes)) - come)
            error = (
                f"processes {', '.join(map(str, missing))} of {processes} have not come within "
                f"{JOIN_SECONDS} s; start all of them within that time"
            )
        except UserError as wrong:
            error = str(wrong)
        except OSError as wrong:
            error = f"process 0 cannot listen at port {port} ({wrong}); give --coordinator another"
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.sendall(json.dumps({"error": error}).encode() + b"\n")
        if error:
            raise UserError(error)


def _accept(server: socket.socket, until: float) -> socket.socket:
    """Returns the next connection; raises a `TimeoutError` if none comes in time."""
    server.settimeout(max(until - time.monotonic(), 0.001))
    caller, _ = server.accept()
    caller.settimeout(5)  # whoever does not speak at once is no process of ours
    return caller


def _read_line(connection: socket.socket) -> dict[str, Any]:
    """Returns the JSON object that comes as a line; an empty one if something else does."""
    try:
        with connection.makefile("rb") as file:
            return dict(json.loads(file.readline(1 << 16)))
    except (OSError, ValueError, TypeError):
        return {}


def _call_on(host: str, port: int, about: dict[str, Any], until: float) -> None:
    """Tells process 0 that this one has come; returns when it says that all have."""
    while True:
        try:
            caller = socket.create_connection((host, port), timeout=JOIN_SECONDS)
            break
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"no one answers at the coordinator's address {host}:{port} after "
                    f"{JOIN_SECONDS} s ({error.strerror or error}); start process 0 there, or mend "
                    "--coordinator"
                ) from None
            time.sleep(0.2)
    with caller:
        caller.settimeout(JOIN_SECONDS + 5)  # process 0 may have come just now
        caller.sendall(json.dumps(about).encode() + b"\n")
        answer = _read_line(caller)
    if "error" not in answer:
        raise UserError(
            f"what answers at the coordinator's address {host}:{port} is not process 0 of this "
            "training; mend --coordinator"
        )
    if answer["error"]:
        raise UserError(answer["error"])


def is_main_process() -> bool:
    """Returns whether this process is the one that writes."""
    return jax.process_index() == 0


def on_main_process(make: Callable[[], T]) -> T:
    """Returns what `make` returns in the first process, which alone calls it: plain JSON.

    Raises:
      UserError: `make` raised it there; every process raises it.
    """
    if jax.process_count() == 1:
        return make()
    answer: dict[str, Any] = {}
    if is_main_process():
        try:
            answer = {"result": make()}
        except UserError as error:
            answer = {"error": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(broadcast(np.array(len(text), np.int32)))
    padded = np.zeros(2 ** max(size - 1, 1).bit_length(), np.uint8)  # few shapes to compile for
    padded[: len(text) if is_main_process() else 0] = text if is_main_process() else 0
    answer = json.loads(broadcast(padded)[:size].tobytes())
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["result"]


def broadcast(tree: T) -> T:
    """Returns the first process's tree of NumPy arrays; the others give one of its shapes."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def max_over_processes(number: int) -> int:
    """Returns the greatest of all processes' numbers, below 2**31."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array(number, np.int32)).max())


def require_same(**facts: Any) -> None:
    """Raises a `UserError`, in every process, unless all have the same facts, plain JSON.

    In the process whose facts are other than the first one's, it names three at most.
    """
    if jax.process_count() == 1:
        return
    first = on_main_process(lambda: facts)
    own = json.loads(json.dumps(facts))
    different = [name for name in first if own.get(name) != first[name]]
    message = "; ".join(
        f"{name} differs: {first[name]} in process 0, {own.get(name)} in this one"
        for name in different[:3]
    )
    if max_over_processes(bool(message)):
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


def run_distributed(main: Callable[[], int]) -> int:
    """Returns the exit status of `main`, run by one of several processes.

    After an error this process ends here and now, without goodbye, so that no other waits for it.
    """

    def call() -> int:
        with _losses_named():
            return main()

    witness = _start_witness()
    status: int | None = 1
    try:
        status = status_of(call)
    except Exception:
        traceback.print_exc()
    witness.communicate(_GOODBYE)
    if status in (1, 2):
        sys.stdout.flush()
        os._exit(status)
    return status or 0


_GOODBYE = "goodbye"
_WITNESS = f"""
import sys
if sys.stdin.read() != {_GOODBYE!r}:
    sys.exit("error: this process was ended, most likely because another one of the training was "
             "lost; start all of them again with --resume")
"""


def _start_witness() -> "subprocess.Popen[str]":
    """Starts a process that speaks if this one dies without a goodbye.

    So it does where process 0 is lost: jax then ends the others without a word to Python.
    """
    command = [sys.executable, "-S", "-E", "-c", _WITNESS]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

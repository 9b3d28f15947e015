"""Meeting of all processes at process 0, before `jax.distributed` starts.

`jax.distributed` kills a process whose peers never connect, before Python can report why. Here,
every process gets a one-line error that names the missing or misconfigured processes.

Each process connects to process 0 and sends one line of JSON, `{"processes", "process_id"}`.
Process 0 replies to all of them with one line, `{"error"}`, which is empty once all have connected.
"""

import contextlib
import json
import socket
import time
from typing import Any

from bilstm_attn.errors import UserError

JOIN_SECONDS = 60
HANDSHAKE_SECONDS = 5  # a connection that sends nothing for this long is not one of the processes


def rendezvous(coordinator: str, processes: int, process_id: int) -> None:
    """Returns once all processes have connected to process 0 at `coordinator`, HOST:PORT.

    The port is free again afterwards, for `jax.distributed`.

    Raises:
      UserError: a process did not connect within `JOIN_SECONDS`, or two have the same number, or
        `coordinator` is not the address of process 0.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    deadline = time.monotonic() + JOIN_SECONDS
    if process_id > 0:
        sender = {"processes": processes, "process_id": process_id}
        error = _report_to_process_0(host.strip("[]"), int(port), sender, deadline)
    else:
        error = _wait_for_others(int(port), processes, deadline)
    if error:
        raise UserError(error)


def _wait_for_others(port: int, processes: int, deadline: float) -> str:
    """Waits, as process 0, for all others and sends them the outcome: an error message or ""."""
    with contextlib.ExitStack() as stack:
        connections: list[socket.socket] = []
        error = _accept_all(stack, connections, port, processes, deadline)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"error": error}).encode() + b"\n")
    return error


def _accept_all(
    stack: contextlib.ExitStack,
    connections: list[socket.socket],
    port: int,
    processes: int,
    deadline: float,
) -> str:
    """Adds one connection per process to `connections`; returns an error message or ""."""
    connected = {0}
    try:
        server = stack.enter_context(socket.create_server(("", port)))
        while len(connected) < processes:
            connection = stack.enter_context(_accept(server, deadline))
            sender = _read_line(connection)
            number = sender.get("process_id")
            if not isinstance(number, int):
                continue  # not one of the processes
            connections.append(connection)
            if sender.get("processes") != processes or number in connected:
                return (
                    f"a process connected as number {number} of {sender.get('processes')}, after "
                    f"numbers {sorted(connected)} of {processes}; give each process its own "
                    "--process-id, and all of them the same --processes"
                )
            connected.add(number)
    except TimeoutError:
        missing = ", ".join(map(str, sorted(set(range(processes)) - connected)))
        return (
            f"all {processes} processes must connect within {JOIN_SECONDS} s, but these did not: "
            f"{missing}; start all of them within that time"
        )
    except OSError as error:
        return f"process 0 cannot listen at port {port} ({error}); give --coordinator another port"
    return ""


def _accept(server: socket.socket, deadline: float) -> socket.socket:
    """Returns the next connection; raises a `TimeoutError` if none comes before the deadline."""
    server.settimeout(max(deadline - time.monotonic(), 0.001))
    connection, _ = server.accept()
    connection.settimeout(HANDSHAKE_SECONDS)
    return connection


def _read_line(connection: socket.socket) -> dict[str, Any]:
    """Returns the JSON object in the next line, or an empty one if the line is anything else."""
    try:
        with connection.makefile("rb") as file:
            return dict(json.loads(file.readline(1 << 16)))
    except (OSError, ValueError, TypeError):
        return {}


def _report_to_process_0(host: str, port: int, sender: dict[str, Any], deadline: float) -> str:
    """Connects to process 0 and returns its reply, once it has one: an error message or ""."""
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=JOIN_SECONDS)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                return (
                    f"no connection to the coordinator's address {host}:{port} within "
                    f"{JOIN_SECONDS} s ({error.strerror or error}); start process 0 there, or fix "
                    "--coordinator"
                )
            time.sleep(0.2)
    with connection:
        connection.settimeout(JOIN_SECONDS + 5)  # process 0 may have started only just now
        connection.sendall(json.dumps(sender).encode() + b"\n")
        reply = _read_line(connection)
    if "error" not in reply:
        return (
            f"the server at the coordinator's address {host}:{port} is not process 0 of this "
            "training; fix --coordinator"
        )
    return str(reply["error"])

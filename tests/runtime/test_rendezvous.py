"""Rendezvous of several processes: every failure is a one-line error within the time limit."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from process_group import free_port
from tiny_run import error_of

from bilstm_attn.runtime import rendezvous


@pytest.fixture(autouse=True)
def short_time_limit(monkeypatch):
    monkeypatch.setattr(rendezvous, "JOIN_SECONDS", 0.5)


def join_error(coordinator: str, process_id: int = 1, processes: int = 3) -> str:
    return error_of(rendezvous.rendezvous, coordinator, processes, process_id)


def test_three_processes_meet_and_leave_the_port_free():
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        joined = [
            pool.submit(rendezvous.rendezvous, f"127.0.0.1:{port}", 3, number)
            for number in (2, 0, 1)
        ]
        assert [process.result() for process in joined] == [None] * 3
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_address_without_a_server_is_an_error_within_the_time_limit():
    message = join_error(f"127.0.0.1:{free_port()}")
    assert message.startswith("no connection to the coordinator's address 127.0.0.1:")
    assert "within 0.5 s" in message
    assert message.endswith("start process 0 there, or fix --coordinator")
    assert "no connection to" in join_error("no.such.host.invalid:80")


def greet_as_a_mail_server(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"220 mail.example ready\n")
        connection.recv(100)


def test_address_of_another_server_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        served = pool.submit(greet_as_a_mail_server, server)
        message = join_error(f"127.0.0.1:{server.getsockname()[1]}")
        served.result()
    assert message.endswith("is not process 0 of this training; fix --coordinator")


def test_every_connected_process_gets_the_error_that_names_the_missing_ones():
    coordinator = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(1) as pool:
        main = pool.submit(join_error, coordinator, 0)
        other = join_error(coordinator, 1)
    assert main.result() == other
    assert other == (
        "all 3 processes must connect within 0.5 s, but these did not: 2; start all of them within "
        "that time"
    )


def test_every_connected_process_gets_the_error_about_a_repeated_number():
    coordinator = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(join_error, coordinator, number) for number in (0, 1)]
        messages = [join_error(coordinator, 1), *(other.result() for other in others)]
    assert len(set(messages)) == 1
    assert messages[0].startswith("a process connected as number 1 of 3, after numbers [0, 1] of 3")


def test_every_connected_process_gets_the_error_about_another_number_of_processes():
    coordinator = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(1) as pool:
        main = pool.submit(join_error, coordinator, 0)
        other = join_error(coordinator, 1, processes=4)
    assert main.result() == other
    assert other.startswith("a process connected as number 1 of 4, after numbers [0] of 3")


def test_occupied_port_is_an_error():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        message = join_error(f"127.0.0.1:{port}", 0)
    assert message.startswith(f"process 0 cannot listen at port {port} (")
    assert "Address already in use" in message


@pytest.mark.parametrize("coordinator", ["127.0.0.1", ":80", "host:", "host:http", "host:70000"])
def test_invalid_address_is_an_error(coordinator):
    assert join_error(coordinator) == f"--coordinator must be HOST:PORT, got {coordinator!r}"

"""Several processes: what one computes, agreement before the first step, and no hanging after."""

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import jax
import numpy as np
import pytest
from process_group import end, free_port, losses, start, wait_for
from tiny_run import error_of, tiny_run, train

from bilstm_attn.runtime import distributed as cluster
from bilstm_attn.runtime.xla_flags import Processes
from bilstm_attn.training.run_dir import RunDir

pytestmark = pytest.mark.slow


def same_to_rounding(together: RunDir, alone: RunDir) -> None:
    # Sums over processes have another order: a rounding or two of float32 a step.
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)
    assert [r["step"] for r in together.records()] == [r["step"] for r in alone.records()]


@pytest.mark.slow
def test_four_processes_train_what_one_with_four_devices_does(untrained):
    ended = end(start(untrained, 4))
    assert [status for status, *_ in ended] == [0] * 4, ended
    assert "held-out accuracy" in ended[0][1]
    assert not any("accuracy" in out for _, out, _ in ended[1:])  # the first alone prints
    assert train(untrained, "--name", "alone", "--devices", 4) == 0
    same_to_rounding(tiny_run(untrained), tiny_run(untrained, "alone"))
    assert tiny_run(untrained).model.is_file()


def test_process_of_another_recipe_or_other_versions_is_named_and_refused(untrained):
    other = untrained / "other" / "optax-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Name: optax\nVersion: 0.0.1\n")
    recipe = ["--optim.learning-rate", "0.5"]
    ended = end(start(untrained, 2, p1=recipe, path1=str(other.parent)))
    assert [status for status, *_ in ended] == [2, 2]
    assert "config field optim.learning_rate differs: 0.001 in process 0, 0.5 in" in ended[1][2]
    assert f"version of optax differs: {version('optax')} in process 0, 0.0.1 in" in ended[1][2]
    assert "the processes do not run the same" in ended[0][2]
    assert not (untrained / "runs").exists()


EPOCHS = 16  # long enough to be interrupted


@pytest.mark.slow
def test_lost_process_stops_the_other_and_two_or_one_go_on(untrained):
    epochs = ["--train.epochs", EPOCHS]
    started = start(untrained, 2, *epochs)
    wait_for(tiny_run(untrained).checkpoints / "6")
    started[1].kill()
    begun = time.monotonic()
    (status, _, errors), _ = end(started)
    assert time.monotonic() - begun < cluster.LOST_SECONDS + 10
    assert status == 2
    assert "error: another process of this training was lost" in errors
    # Again, and one of them is told to stop: both save and leave.
    started = start(untrained, 2, *epochs, "--resume")
    wait_for(tiny_run(untrained).checkpoints / "30")
    started[1].send_signal(signal.SIGTERM)
    stopped = end(started)
    assert [status for status, *_ in stopped] == [143, 143], stopped
    # What two processes wrote, one goes on from.
    rest = ["--devices", 2, *epochs]
    assert train(untrained, "--name", "tiny", "--resume", *rest) == 0
    assert train(untrained, "--name", "alone", *rest) == 0
    same_to_rounding(tiny_run(untrained), tiny_run(untrained, "alone"))


def test_process_that_is_ended_says_what_to_do():
    code = "import os; from bilstm_attn.runtime.distributed import run_distributed"
    code += "; run_distributed({})"
    ended = [
        subprocess.run([sys.executable, "-c", code.format(main)], capture_output=True, text=True)
        for main in ("os.abort", "lambda: 0")
    ]
    assert [done.returncode for done in ended] == [-signal.SIGABRT, 0]
    assert ended[0].stderr.endswith("was lost; start all of them again with --resume\n")
    assert ended[1].stderr == ""


# What does not come together


def answer_of(coordinator: str, monkeypatch, process_id: int = 1) -> str:
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 0.5)
    return error_of(cluster.join_processes, coordinator, 3, process_id)


def test_address_that_no_one_answers_is_an_error_in_time(monkeypatch):
    says = answer_of(f"127.0.0.1:{free_port()}", monkeypatch)
    assert says.startswith("no one answers at the coordinator's address 127.0.0.1:")
    assert "after 0.5 s" in says
    assert "no one answers" in answer_of("no.such.host.invalid:80", monkeypatch)


def greet_as_a_mail_server(server: socket.socket) -> None:
    caller, _ = server.accept()
    with caller:
        caller.sendall(b"220 mail.example ready\n")
        caller.recv(100)


def test_address_where_something_else_answers_is_an_error(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        answered = pool.submit(greet_as_a_mail_server, server)
        says = answer_of(f"127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        answered.result()
    assert "is not process 0 of this training; mend --coordinator" in says


def test_process_0_names_those_that_do_not_come_and_all_are_told(monkeypatch):
    coordinator = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(answer_of, coordinator, monkeypatch, 0)
        second = answer_of(coordinator, monkeypatch, 1)
    assert first.result() == second
    assert second.startswith("processes 2 of 3 have not come within 0.5 s")


def test_two_processes_of_one_number_are_told_so(monkeypatch):
    coordinator = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(answer_of, coordinator, monkeypatch, at) for at in (0, 1)]
        says = [answer_of(coordinator, monkeypatch, 1), *(other.result() for other in others)]
    assert len(set(says)) == 1
    assert says[0].startswith("a process says that it is number 1 of 3, when [0, 1] of 3 have come")


def test_port_that_is_taken_is_an_error(monkeypatch):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        says = answer_of(f"127.0.0.1:{port}", monkeypatch, 0)
    assert f"process 0 cannot listen at port {port} (" in says
    assert "Address already in use" in says


@pytest.mark.parametrize("coordinator", ["127.0.0.1", ":80", "host:", "host:http", "host:70000"])
def test_address_that_is_none_is_an_error(coordinator, monkeypatch):
    assert "--coordinator must be HOST:PORT, got" in answer_of(coordinator, monkeypatch)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"distributed": True, "coordinator": "host:80"}, "must be given together"),
        ({"coordinator": "host:80", "processes": 2, "process_id": 0}, "with --distributed"),
        (
            {"distributed": True, "coordinator": "host:80", "processes": 2, "process_id": 2},
            "--process-id must be at least 0 and below --processes, got 2 of 2",
        ),
    ],
)
def test_processes_half_said_are_an_error(fields, says):
    assert says in error_of(Processes, **fields)


def test_no_cluster_to_be_found_is_an_error(monkeypatch):
    def initialize(**given):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    says = error_of(cluster.join_processes, None, None, None)
    assert "the processes did not come together (coordinator_address should be defined.)" in says
    assert "give --coordinator HOST:PORT, --processes N and --process-id" in says

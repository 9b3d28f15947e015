"""Several processes: equal results, agreement before the first step, and no hanging afterwards."""

import signal
import subprocess
import sys
import time
from importlib.metadata import version

import jax
import numpy as np
import pytest
from process_group import end, losses, start, wait_for
from tiny_run import error_of, tiny_run, train

from bilstm_attn.runtime import distributed
from bilstm_attn.runtime.xla_flags import Processes
from bilstm_attn.training.run_dir import RunDir

pytestmark = pytest.mark.slow


def assert_equal_up_to_rounding(distributed_run: RunDir, single_run: RunDir) -> None:
    # Sums over processes have another order: one or two float32 roundings per step.
    np.testing.assert_allclose(losses(distributed_run), losses(single_run), rtol=1e-5)
    steps = [[record["step"] for record in run.records()] for run in (distributed_run, single_run)]
    assert steps[0] == steps[1]


def test_four_processes_train_like_one_process_with_four_devices(untrained):
    ended = end(start(untrained, 4))
    assert [status for status, *_ in ended] == [0] * 4, ended
    assert "held-out accuracy" in ended[0][1]
    assert not any("accuracy" in out for _, out, _ in ended[1:])  # only process 0 prints
    assert train(untrained, "--name", "alone", "--devices", 4) == 0
    assert_equal_up_to_rounding(tiny_run(untrained), tiny_run(untrained, "alone"))
    assert tiny_run(untrained).model.is_file()


def test_process_with_another_recipe_or_other_versions_is_refused_by_name(untrained):
    other = untrained / "other" / "optax-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Name: optax\nVersion: 0.0.1\n")
    recipe = ["--optim.learning-rate", "0.5"]
    ended = end(start(untrained, 2, p1=recipe, path1=str(other.parent)))
    assert [status for status, *_ in ended] == [2, 2]
    assert "config field optim.learning_rate differs: 0.001 in process 0, 0.5 in" in ended[1][2]
    assert f"version of optax differs: {version('optax')} in process 0, 0.0.1 in" in ended[1][2]
    assert "all processes must run the same program (another process differs)" in ended[0][2]
    assert not (untrained / "runs").exists()


EPOCHS = 16  # long enough to be interrupted


def test_run_that_lost_a_process_resumes_with_two_processes_or_one(untrained):
    epochs = ["--train.epochs", EPOCHS]
    started = start(untrained, 2, *epochs)
    wait_for(tiny_run(untrained).checkpoints / "6")
    started[1].kill()
    killed_at = time.monotonic()
    (status, _, errors), _ = end(started)
    assert time.monotonic() - killed_at < distributed.LOST_SECONDS + 10
    assert status == 2
    assert "error: another process of this training was lost" in errors
    # Resumed, and one of them gets SIGTERM: both save and exit.
    started = start(untrained, 2, *epochs, "--resume")
    wait_for(tiny_run(untrained).checkpoints / "30")
    started[1].send_signal(signal.SIGTERM)
    stopped = end(started)
    assert [status for status, *_ in stopped] == [143, 143], stopped
    # One process resumes the checkpoint of two.
    rest = ["--devices", 2, *epochs]
    assert train(untrained, "--name", "tiny", "--resume", *rest) == 0
    assert train(untrained, "--name", "alone", *rest) == 0
    assert_equal_up_to_rounding(tiny_run(untrained), tiny_run(untrained, "alone"))


def test_killed_process_reports_what_to_do():
    code = "import os; from bilstm_attn.runtime.distributed import run_distributed"
    code += "; run_distributed({})"
    ended = [
        subprocess.run([sys.executable, "-c", code.format(main)], capture_output=True, text=True)
        for main in ("os.abort", "lambda: 0")
    ]
    assert [done.returncode for done in ended] == [-signal.SIGABRT, 0]
    assert ended[0].stderr.endswith("was lost; start all processes again with --resume\n")
    assert ended[1].stderr == ""


# Errors on joining


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"distributed": True, "coordinator": "host:80"}, "must be given together"),
        ({"coordinator": "host:80", "processes": 2, "process_id": 0}, "with --distributed"),
        (
            {"distributed": True, "coordinator": "host:80", "processes": 2, "process_id": 2},
            "--process-id must be at least 0 and below --processes, got 2 of 2",
        ),
    ],
)
def test_incomplete_or_invalid_process_options_are_an_error(fields, expected):
    assert expected in error_of(Processes, **fields)


def test_error_without_a_cluster_asks_for_the_coordinator(monkeypatch):
    def initialize(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    message = error_of(distributed.join_processes, None, None, None)
    assert "the processes cannot connect (coordinator_address should be defined.)" in message
    assert "give --coordinator HOST:PORT, --processes N and --process-id" in message

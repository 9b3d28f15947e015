"""Several processes: what one computes, agreement before the first step, and no hanging after."""

import signal
import time

import numpy as np
import pytest
from peers import end, losses, start, wait_for
from tiny import tiny_run, train

from bilstm_attn import cluster


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_what_one_with_as_many_devices_does(empty, processes):
    ended = end(start(empty, processes))
    assert [status for status, *_ in ended] == [0] * processes, ended
    assert "held-out accuracy" in ended[0][1]
    assert not any("accuracy" in out for _, out, _ in ended[1:])  # the first alone prints
    assert train(empty, "--name", "alone", "--devices", processes) == 0
    together, alone = tiny_run(empty), tiny_run(empty, "alone")
    # Sums over processes have another order: a rounding or two of float32, through 12 steps.
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)
    assert [r["step"] for r in together.records()] == [r["step"] for r in alone.records()]
    assert together.model.is_file()


def test_process_of_another_recipe_is_named_and_refused(empty):
    ended = end(start(empty, 2, p1=["--optim.learning-rate", "0.5"]))
    assert [status for status, *_ in ended] == [2, 2]
    assert "config field optim.learning_rate differs: 0.001 in process 0, 0.5 in" in ended[1][2]
    assert "the processes do not run the same" in ended[0][2]
    assert not (empty / "runs").exists()


EPOCHS = ["--train.epochs", "30"]  # long enough to be interrupted


def test_lost_process_stops_the_other_and_a_restart_goes_on_to_the_same_bits(empty):
    started = start(empty, 2, *EPOCHS)
    wait_for(tiny_run(empty).checkpoints / "6")
    started[1].kill()
    begun = time.monotonic()
    (status, _, errors), _ = end(started)
    assert time.monotonic() - begun < cluster.LOST_SECONDS + 10
    assert status == 2
    assert "error: another process of this training was lost" in errors
    # Again, and one of them is told to stop: both save and leave.
    started = start(empty, 2, *EPOCHS, "--resume")
    wait_for(tiny_run(empty).checkpoints / "30")
    started[1].send_signal(signal.SIGTERM)
    stopped = end(started)
    assert [status for status, *_ in stopped] == [143, 143], stopped
    # What two processes wrote, one goes on from.
    assert train(empty, "--name", "tiny", "--resume", "--devices", 2, train__epochs=30) == 0
    assert train(empty, "--name", "alone", "--devices", 2, train__epochs=30) == 0
    np.testing.assert_allclose(losses(tiny_run(empty)), losses(tiny_run(empty, "alone")), rtol=1e-3)


def test_restart_of_all_processes_goes_on_to_the_same_bits(empty):
    assert train(empty, "--name", "alone", "--devices", 2) == 0

"""Interrupted, killed, damaged, out of disk, diverged: nothing saved is lost, no bit differs."""

import json
import os
import shutil
import signal
from functools import partial

import numpy as np
import pytest
from tiny_run import error_of, flip_bit, full_disk, tiny_run, train

from bilstm_attn.inference.exported import load_model
from bilstm_attn.runtime.files import tree_sha256
from bilstm_attn.training import checkpoint, seed_replica, train_command
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.training.train_command import train_seeds
from bilstm_attn.training.train_program import Program

# Interrupted and continued


def same_but_for_time(one: RunDir, two: RunDir) -> None:
    """Asserts that two runs have the same parameters, optimiser state, metrics and words."""

    def measured(run: RunDir) -> list[dict]:
        times = ("seconds", "measure_seconds", "examples_per_second")
        return [{key: line[key] for key in line if key not in times} for line in run.records()]

    def state(run: RunDir) -> str:
        return json.loads((run.checkpoints / "12/record/metadata").read_text())["state_sha256"]

    assert measured(one) == measured(two)
    assert state(one) == state(two)
    models = [load_model(run.model) for run in (one, two)]
    assert tree_sha256(models[0].params) == tree_sha256(models[1].params)
    assert models[0].vocabulary.words == models[1].vocabulary.words


def before_step(monkeypatch, number: int, act) -> None:
    """Calls `act` before training step `number`, counted from now on, is dispatched."""
    step, count = Program.step, iter(range(1, 1000))

    def act_and_step(*arguments):
        if next(count) == number:
            act()
        return step(*arguments)

    monkeypatch.setattr(Program, "step", act_and_step)


class Killed(BaseException):
    """Nothing in the program waits for it."""


def kill() -> None:
    raise Killed


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


# Of 12 steps, 6 an epoch, metrics every 2.


@pytest.mark.parametrize(
    ("step", "number", "status"),
    [
        (3, signal.SIGINT, 130),
        pytest.param(6, signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(8, signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_interrupted_run_continues_to_the_same_bits(
    trained, untrained, monkeypatch, capsys, step, number, status
):
    with monkeypatch.context() as patch:
        before_step(patch, step, lambda: send(number))
        assert train(untrained, "--name", "tiny") == status
    out = capsys.readouterr().out
    assert f"stopped at step {step}; its state is saved; continue with\n  python " in out
    assert out.endswith("--resume\n")
    assert train(untrained, "--name", "tiny", "--resume") == 0
    assert f"resuming at step {step}" in capsys.readouterr().out
    same_but_for_time(tiny_run(untrained), tiny_run(trained))


class Pruned(Exception):
    """Raised by a tuner."""


@pytest.mark.slow
def test_a_run_stopped_by_on_epoch_resumes_to_the_same_bits(trained, untrained, monkeypatch):
    records = []

    def prune(record):
        records.append(record)
        raise Pruned

    with monkeypatch.context() as patch:
        patch.setattr(train_command, "train_seeds", partial(train_seeds, on_epoch=prune))
        with pytest.raises(Pruned):
            train(untrained, "--name", "tiny")
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 6)]
    assert "validation_accuracy" in records[0]
    assert train(untrained, "--name", "tiny", "--resume") == 0
    same_but_for_time(tiny_run(untrained), tiny_run(trained))


@pytest.mark.slow
def test_run_killed_before_its_first_checkpoint_starts_again_and_says_so(
    trained, untrained, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        before_step(patch, 3, kill)
        with pytest.raises(Killed):
            train(untrained, "--name", "tiny")
    assert train(untrained, "--name", "tiny", "--resume") == 0
    assert "no checkpoint was saved yet; starting at step 0" in capsys.readouterr().out
    same_but_for_time(tiny_run(untrained), tiny_run(trained))


@pytest.mark.slow
def test_killed_run_continues_from_its_last_epoch_to_the_same_bits(trained, untrained, monkeypatch):
    with monkeypatch.context() as patch:
        before_step(patch, 9, kill)
        with pytest.raises(Killed):
            train(untrained, "--name", "tiny")
    run = tiny_run(untrained)
    assert run.records()[-1]["step"] > 6  # lines of steps that no checkpoint holds
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "train", "ste')
    assert train(untrained, "--name", "tiny", "--resume") == 0
    same_but_for_time(run, tiny_run(trained))


def test_finished_run_continued_changes_nothing(trained_copy, trained, capsys):
    assert train(trained_copy, "--name", "tiny", "--resume") == 0
    assert "held-out accuracy" in capsys.readouterr().out
    same_but_for_time(tiny_run(trained_copy), tiny_run(trained))


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_and_reaches_the_same_bits(trained_copy, trained, capsys):
    flip_bit(tiny_run(trained_copy).checkpoints / "12" / "state" / "manifest.ocdbt", 50)
    assert train(trained_copy, "--name", "tiny", "--resume") == 0
    caught = capsys.readouterr()
    assert "checkpoint 12 is damaged (its file state/manifest.ocdbt differs from" in caught.out
    assert "resuming at step 6" in caught.out
    assert "Traceback" not in caught.err
    same_but_for_time(tiny_run(trained_copy), tiny_run(trained))
    assert train(trained_copy, "--name", "tiny", "--resume") == 0  # it was saved again, whole
    assert "resuming at step 12" in capsys.readouterr().out


def test_checkpoints_all_damaged_are_one_error_and_the_model_stays(trained_copy):
    run = tiny_run(trained_copy)
    for step in ("6", "12"):
        flip_bit(run.checkpoints / step / "state" / "manifest.ocdbt", 50)
    model, metrics = run.model.read_bytes(), run.metrics_file.read_bytes()
    message = error_of(train, trained_copy, "--name", "tiny", "--resume")
    assert message.startswith(f"every checkpoint in {run.checkpoints} is damaged")
    assert (run.model.read_bytes(), run.metrics_file.read_bytes()) == (model, metrics)


@pytest.mark.slow
def test_checkpoint_of_another_model_is_named_and_not_read(trained_copy, untrained):
    assert train(untrained, "--name", "other", model__hidden_size=2) == 0
    run = tiny_run(trained_copy)
    shutil.rmtree(run.checkpoints)
    shutil.copytree(tiny_run(untrained, "other").checkpoints, run.checkpoints)
    says = error_of(train, trained_copy, "--name", "tiny", "--resume")
    assert "holds checkpoints of another config (name 'other' there, 'tiny' here; model.hid" in says
    assert "model.hidden_size 2 there, 3 here)" in says


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "holds this run already; continue it with --resume, or give --name or --seed"),
        (["--resume", "--optim.learning-rate", "0.5"], "optim.learning_rate 0.001 there, 0.5 here"),
        (["--model.hidden-size", "4"], "model.hidden_size 3 there, 4 here"),
    ],
)
def test_run_that_exists_is_left_as_it_is(trained_copy, words, says):
    before = {path: path.read_bytes() for path in trained_copy.rglob("*") if path.is_file()}
    assert says in error_of(train, trained_copy, "--name", "tiny", *words)
    assert before == {path: path.read_bytes() for path in trained_copy.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_mistake_in_the_data_does_not_take_the_runs_name(untrained):
    too_many = ["--name", "again", "--data.validation-examples", "60"]
    assert "require 61; lower one of them" in error_of(train, untrained, *too_many)
    assert train(untrained, "--name", "again") == 0


# Full disks and losses that are not finite


@pytest.mark.slow
def test_full_disk_while_saving_keeps_the_checkpoint_before(trained, untrained, monkeypatch):
    with monkeypatch.context() as patch:
        save = checkpoint.Checkpoints.save

        def save_on_a_full_disk(self, step, *more):
            if step < 12:
                return save(self, step, *more)
            with full_disk(256):
                return save(self, step, *more)

        patch.setattr(checkpoint.Checkpoints, "save", save_on_a_full_disk)
        message = error_of(train, untrained, "--name", "tiny")
    run = tiny_run(untrained)
    assert message.startswith(f"cannot save {run.checkpoints / '12'}: ")
    assert "everything saved earlier is intact: free some space, then run again" in message
    assert train(untrained, "--name", "tiny", "--resume") == 0
    assert run.records()[0] == tiny_run(trained).records()[0]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["12", "6"]
    same_but_for_time(run, tiny_run(trained))


def test_full_disk_while_exporting_keeps_the_model_before(trained_copy, monkeypatch):
    run = tiny_run(trained_copy)
    shutil.rmtree(run.checkpoints / "12")
    whole, size = run.model.read_bytes(), run.model.stat().st_size
    export = seed_replica.export_model

    def export_on_a_full_disk(*arguments):
        with full_disk(size // 2):
            export(*arguments)

    monkeypatch.setattr(seed_replica, "export_model", export_on_a_full_disk)
    message = error_of(train, trained_copy, "--name", "tiny", "--resume")
    assert message.startswith(f"cannot save {run.model}: File too large")
    assert run.model.read_bytes() == whole
    assert sorted(path.name for path in run.folder.iterdir() if "partial" in path.name) == []


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    trained_copy, trained, monkeypatch
):
    run = tiny_run(trained_copy)
    shutil.rmtree(run.checkpoints / "12")
    whole = run.model.read_bytes()
    with monkeypatch.context() as patch:
        step, number = Program.step, iter(range(7, 13))

        def step_on_bad_weights(program, layout, state, groups, key):
            factor = np.float32("nan" if next(number) == 9 else 1)
            groups = tuple(group._replace(weight=factor * group.weight) for group in groups)
            return step(program, layout, state, groups, key)

        patch.setattr(Program, "step", step_on_bad_weights)
        message = error_of(train, trained_copy, "--name", "tiny", "--resume")
    assert "not finite at step 9 (epoch 2)" in message
    assert "lower --optim.learning-rate" in message
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["6"]
    assert run.model.read_bytes() == whole
    assert train(trained_copy, "--name", "tiny", "--resume") == 0
    same_but_for_time(run, tiny_run(trained))


@pytest.mark.slow
def test_learning_rate_far_too_high_exports_no_epoch_and_says_the_step(untrained):
    # One step an epoch: nothing in its loss or gradient shows what the step made of the parameters.
    fields = {"optim__learning_rate": 1e38, "data__batch_size": 48, "model__dense_size": 16}
    message = error_of(train, untrained, "--name", "far", "--devices", 1, **fields)
    assert "not finite at step 1 (epoch 1)" in message
    run = tiny_run(untrained, "far")
    assert not run.model.exists()
    assert list(run.checkpoints.iterdir()) == []


def test_checkpoint_of_an_earlier_format_is_refused_in_one_line(untrained):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed_replica, "CHECKPOINT_FORMAT", 1)
        assert train(untrained, "--name", "tiny") == 0
    message = error_of(train, untrained, "--name", "tiny", "--resume")
    assert "holds checkpoints of another version; use the version of bilstm_attn" in message

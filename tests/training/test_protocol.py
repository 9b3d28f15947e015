"""Which examples are evaluated, select the epoch, and are measured once."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import train, train_once

from bilstm_attn.config import Config, DataConfig, TrainConfig
from bilstm_attn.errors import UserError
from bilstm_attn.inference.exported import load_model
from bilstm_attn.nn.tasks import Binary
from bilstm_attn.training import results, seed_replica
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.training.seed_replica import SeedReplica

IMDB = {"data__dataset": "imdb", "train__select": "best"}


@pytest.fixture
def untrained(tmp_path_factory, tmp_path, monkeypatch):
    """A folder with tokens and no run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").symlink_to(train_once(tmp_path_factory) / "cache")
    return tmp_path


def records(run, kind):
    return [record for record in run.records() if record["kind"] == kind]


@pytest.mark.slow
def test_tutorial_reports_test_after_each_epoch_and_exports_the_last(untrained, monkeypatch):
    measured = []

    def fake_measure(task, logits, labels):
        measured.append(len(labels))
        return {"accuracy": 1.0 / len(measured)}  # falls, so that a selection would show

    monkeypatch.setattr(Binary, "measure", fake_measure)
    monkeypatch.setattr(SeedReplica, "describe", lambda *arguments: [])
    monkeypatch.setattr(results, "draw_curves", lambda *arguments: None)
    fields = {"data__dataset": "imdb", "data__validation_examples": 0}
    assert train(untrained, recipe="tutorial", **fields) == 0
    run = RunDir(untrained / "runs" / "tutorial" / "seed0")
    assert measured == [20, 20]  # the whole test split, after each of two epochs
    assert [record["test_accuracy"] for record in records(run, "epoch")] == [1.0, 0.5]
    assert records(run, "final") == []
    last = load_model(run.model).params["logit"]["bias"]
    again = untrained / "again"
    again.mkdir()
    (again / "cache").symlink_to((untrained / "cache").resolve())
    assert train(again, recipe="tutorial", **fields, train__epochs=1) == 0
    first = load_model(again / "runs" / "tutorial" / "seed0" / "model.safetensors")
    assert not np.array_equal(first.params["logit"]["bias"], last)


@pytest.mark.slow
def test_best_validation_epoch_is_exported_and_test_is_measured_once(untrained, monkeypatch):
    accuracies, measure = iter([0.5, 0.9, 0.9, 0.4]), Binary.measure
    exported, tested = [], []

    def fake_measure(task, logits, labels):
        if tested:  # at the end
            return measure(task, logits, labels)
        assert len(labels) == 12  # the validation reviews, never test
        return {"accuracy": next(accuracies), "loss": 0.0}

    export, measure_split = seed_replica.export_model, results.measure_split

    def spy_on_export(path, *given):
        exported.append(len(records(run, "epoch")))
        export(path, *given)

    def spy_on_test(run, tokens, split, console):
        tested.append(split)
        return measure_split(run, tokens, split, console)

    run = RunDir(untrained / "runs" / "best" / "seed0")
    with monkeypatch.context() as patch:
        patch.setattr(Binary, "measure", fake_measure)
        patch.setattr(seed_replica, "export_model", spy_on_export)
        patch.setattr(results, "measure_split", spy_on_test)
        assert train(untrained, recipe="best", **IMDB, data__bucket_edges=7, train__epochs=4) == 0
        assert exported == [1, 2]  # of two equal epochs the first; a worse one never
        assert tested == ["test"]
        before = run.model.read_bytes()
        assert (
            train(
                untrained, "--resume", recipe="best", **IMDB, data__bucket_edges=7, train__epochs=4
            )
            == 0
        )
        assert tested == ["test"]
    assert run.model.read_bytes() == before
    (final,) = records(run, "final")
    assert final["split"] == "test"
    lines = run.predictions("test").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(range(20))


def test_selecting_on_test_is_refused():
    with pytest.raises(UserError, match="must not be used for selection"):
        Config(data=DataConfig(validation_examples=0), train=TrainConfig(eval_split="test"))
    with pytest.raises(UserError, match="must not be used for selection"):
        Config(train=TrainConfig(eval_split="test", select="last"))


def test_chosen_epoch_is_the_first_of_the_best_or_the_last():
    def chosen(select):
        replica = SeedReplica.__new__(SeedReplica)
        replica.config = Config(train=TrainConfig(select=select))
        replica.run = RunDir(Path())
        for value in (0.3, 0.7, 0.7, 0.6):
            replica.run.logged.append({"kind": "epoch", "validation_accuracy": value})
        return replica.epochs.index(replica.chosen)

    assert chosen("best") == 1
    assert chosen("last") == 3


@pytest.mark.slow
def test_data_of_another_digest_are_not_trained_on(untrained):
    assert train(untrained) == 0
    run = RunDir(untrained / "runs" / "quickstart" / "seed0")
    (environment,) = run.environments()
    run.write_environments([environment | {"data_sha256": "0" * 64}])
    with pytest.raises(UserError, match="was begun on other data"):
        train(untrained, "--resume")

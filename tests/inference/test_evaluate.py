"""The evaluate command, and errors that evaluate, predict and report share."""

import json

import numpy as np
import pytest
from tiny_run import error_of, flip_bit, load_script, tiny_run, train, truncate

from bilstm_attn.inference.evaluate import require_finite

evaluate = load_script("evaluate")
predict = load_script("predict")
report = load_script("report")


def test_evaluate_prints_metrics_and_saves_every_prediction(trained_copy, capsys):
    options = ["--split", "validation", "--cache", trained_copy / "cache"]
    assert evaluate(tiny_run(trained_copy).folder, *options) == 0
    [epoch] = [line for line in tiny_run(trained_copy).records() if line.get("epoch") == 2][-1:]
    out = capsys.readouterr().out
    assert f"accuracy           {epoch['validation_accuracy']:.6f}\n" in out
    assert f"loss               {epoch['validation_loss']:.6f}\n" in out
    lines = tiny_run(trained_copy).predictions("validation").read_text().splitlines()
    correct = [(line["probability"] > 0.5) == line["label"] for line in map(json.loads, lines)]
    assert (len(correct), np.mean(correct)) == (12, epoch["validation_accuracy"])


@pytest.mark.parametrize("split", ["test", "tset"])
def test_unknown_split_is_an_error_that_lists_the_splits(trained_copy, split):
    message = error_of(
        evaluate, tiny_run(trained_copy).folder, "--split", split, "--cache", trained_copy / "cache"
    )
    assert message.startswith(f"unknown split of movie_reviews {split!r}; choose train, validation")


def test_split_without_labels_is_an_error(untrained):
    fields = {"data__dataset": "imdb", "train__epochs": 1}
    assert train(untrained, "--name", "all", **fields) == 0
    folder = tiny_run(untrained, "all").folder
    message = error_of(evaluate, folder, "--split", "unlabelled", "--cache", untrained / "cache")
    assert message == "split 'unlabelled' has no labels to measure against; give --split test"
    final = tiny_run(untrained, "all").records()[-1]
    assert (final["kind"], final["split"]) == ("final", "test")
    assert len(tiny_run(untrained, "all").predictions("test").read_text().splitlines()) == 20


@pytest.mark.parametrize("command", [evaluate, lambda run: predict(run, "brillo")])
def test_run_without_a_finished_epoch_is_a_one_line_error(trained_copy, command):
    tiny_run(trained_copy).model.unlink()
    message = "has no model.safetensors yet: no epoch has ended; continue the run with --resume"
    assert message in error_of(command, tiny_run(trained_copy).folder)


@pytest.mark.parametrize("command", [evaluate, lambda run: predict(run, "brillo")])
def test_folder_without_a_run_is_a_one_line_error(tmp_path, command):
    assert error_of(command, tmp_path).startswith(f"{tmp_path} is not a run's folder")


@pytest.mark.parametrize("command", [evaluate, lambda run: predict(run, "brillo")])
@pytest.mark.parametrize("damage", ["changed bit", "truncated"])
def test_damaged_model_is_a_one_line_error(trained_copy, command, damage):
    run = tiny_run(trained_copy)
    size = run.model.stat().st_size
    flip_bit(run.model, size - 9) if damage == "changed bit" else truncate(run.model, size - 9)
    message = error_of(command, run.folder)
    assert message.startswith(f"{run.model} is ")
    assert ("damaged" if damage == "changed bit" else "not a model") in message


def test_report_takes_the_accuracy_from_the_metrics_file(trained_copy, capsys):
    assert report(trained_copy / "runs") == 0
    [row] = capsys.readouterr().out.splitlines()[3:]
    accuracy = tiny_run(trained_copy).records()[-1]["validation_accuracy"]
    assert row.startswith(f"| tiny | validation, epoch 2 | 1 | {100 * accuracy:.2f} % |")


def test_damaged_metrics_file_is_a_one_line_error(trained_copy):
    flip_bit(tiny_run(trained_copy).metrics_file, 0)
    assert error_of(report, trained_copy / "runs").startswith("line 1 of ")


def test_logits_that_are_not_finite_are_a_one_line_error():
    require_finite(np.zeros(2), "split 'test'")
    message = error_of(require_finite, np.array([0.0, np.nan]), "split 'test'")
    assert message.startswith("the model's logits on split 'test' are not finite; its training has")

"""Tables and curves from runs."""

import math
from pathlib import Path

import pytest
from matplotlib.image import imread

from bilstm_attn.config import Config, DataConfig, TrainConfig
from bilstm_attn.errors import UserError
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.training.run_table import draw_curves, summarise


def make_run(folder: Path, name: str, seed: int, accuracies: list[float], **final) -> RunDir:
    """Writes a run whose epochs took 10, 20, ... seconds and had these accuracies."""
    test = TrainConfig(eval_split="test", select="last")
    run = RunDir(folder / name / f"seed{seed}")
    run.start(Config(name=name, seed=seed, data=DataConfig(validation_examples=0), train=test), {})
    for epoch, accuracy in enumerate(accuracies, start=1):
        run.log({"kind": "train", "step": 5 * epoch, "loss": 0.5, "accuracy": 0.75})
        run.log(
            {"kind": "epoch", "step": 5 * epoch, "epoch": epoch, "seconds": 10.0 * epoch}
            | {"train_loss": 0.5, "train_accuracy": 0.75}
            | {"test_loss": 0.25, "test_accuracy": accuracy}
        )
    if final:
        run.log({"kind": "final", "step": 5 * len(accuracies), **final})
    return run


def test_table_has_mean_and_sample_deviation_over_seeds(tmp_path):
    for seed, accuracy in enumerate((0.86, 0.87, 0.91)):
        make_run(tmp_path, "best", seed, [accuracy])
    spread = math.sqrt(((86 - 88) ** 2 + (87 - 88) ** 2 + (91 - 88) ** 2) / 2)
    assert summarise([tmp_path]).splitlines() == [
        "| recipe | measured on | seeds | accuracy | seconds |",
        "|---|---|---|---|---|",
        f"| best | test, epoch 1 | 3 | 88.00 ± {spread:.2f} % | 10 ± 0 |",
    ]


def test_one_seed_has_no_deviation_and_each_epoch_a_row(tmp_path):
    make_run(tmp_path, "one", 0, [0.5, 0.625], split="test", accuracy=0.75)
    assert summarise([tmp_path]).splitlines()[2:] == [
        "| one | test, epoch 1 | 1 | 50.00 % | 10 |",
        "| one | test, epoch 2 | 1 | 62.50 % | 20 |",
        "| one | test, at the end | 1 | 75.00 % |  |",
    ]


def test_recipes_are_told_apart_and_folders_are_searched(tmp_path):
    make_run(tmp_path / "a", "one", 0, [0.5])
    make_run(tmp_path / "b" / "deep", "two", 0, [0.75])
    rows = summarise([tmp_path / "a", tmp_path / "b"]).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| one", "| two"]


@pytest.mark.parametrize("accuracies", [None, []])
def test_folder_without_epochs_is_one_line(tmp_path, accuracies):
    if accuracies is not None:
        make_run(tmp_path, "one", 0, accuracies)
    with pytest.raises(UserError) as caught:
        summarise([tmp_path])
    assert str(caught.value) == f"no epochs in {tmp_path}; give folders of runs"


def test_metrics_of_no_run_are_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "epoch"}\n')
    with pytest.raises(UserError, match="is not a run's folder"):
        summarise([tmp_path])


def test_curves_are_a_picture_that_shows_the_epochs(tmp_path):
    pictures = []
    for accuracies in ([0.5, 0.5], [0.5, 0.75]):
        run = make_run(tmp_path / str(len(pictures)), "one", 0, accuracies)
        draw_curves(run.records(), "test", run.curves)
        pictures.append(imread(run.curves))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()

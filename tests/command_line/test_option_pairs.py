"""Constructor options on the command line, over those of a recipe."""

import pytest
from tiny_run import error_of

from bilstm_attn.command_line.option_pairs import apply_options
from bilstm_attn.config import Config, ModelConfig, TrainConfig

RECIPE = Config(
    model=ModelConfig(cell="a", cell_options={"x": 1, "y": 2.5}, encoder_options={"width": 3}),
    train=TrainConfig(objective_options={"weight": 0.5}),
)


def applied(*words: str):
    config, rest = apply_options(RECIPE, words)
    return config.model.cell_options, rest


@pytest.mark.parametrize(
    "words",
    [
        ("--model.cell-options", "x", "3", "z", "true"),
        ("--model.cell_options", "x", "3", "z", "True"),
        ("--model.cell-options.x", "3", "--model.cell-options.z=true"),
        ("--model.cell-options", "x", "3", "--model.cell-options", "z", "true"),
    ],
)
def test_both_forms_add_to_the_options_of_the_recipe(words):
    assert applied(*words) == ({"x": 3, "y": 2.5, "z": True}, [])


def test_values_are_numbers_truth_values_or_text():
    options, _ = applied("--model.cell-options", "x", "-2", "y", "1e-3", "mode", "fast")
    assert options == {"x": -2, "y": 0.001, "mode": "fast"}
    assert isinstance(options["x"], int)


def test_naming_another_variant_drops_the_options_of_the_old_one():
    assert applied("--model.cell", "b") == ({}, ["--model.cell", "b"])
    assert applied("--model.cell=b", "--model.cell-options", "z", "1")[0] == {"z": 1}
    assert applied("--model.cell", "a")[0] == {"x": 1, "y": 2.5}
    config, _ = apply_options(RECIPE, ["--model.cell", "b", "--train.objective", "c"])
    assert config.model.encoder_options == {"width": 3}
    assert config.train.objective_options == {}


def test_options_without_pairs_clear_those_of_the_recipe():
    assert applied("--model.cell-options")[0] == {}


def test_other_arguments_keep_their_order():
    words = ["--seed", "3", "--model.cell-options", "x", "3", "--data.bucket-edges", "5", "7"]
    assert applied(*words)[1] == ["--seed", "3", "--data.bucket-edges", "5", "7"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model.cell-options", "x"], "takes pairs of name and value, got 'x'"),
        (["--model.sell-options", "x", "1"], "unknown options --model.sell-options; choose --data"),
    ],
)
def test_a_mistake_is_one_line(words, says):
    assert says in error_of(apply_options, RECIPE, words)

"""The config dataclasses: value and type checks, and derived properties."""

import pytest
from tiny_run import error_of
from unchecked import unchecked_copy

from bilstm_attn import config
from bilstm_attn.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

# The harness checks annotations before the package's own checks; in this copy it does not.
unchecked = unchecked_copy(config)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (DataConfig, "validation_examples", -1),
        (DataConfig, "train_examples", 0),
        (DataConfig, "vocabulary_size", 4),
        (DataConfig, "max_tokens", 0),
        (DataConfig, "batch_size", 0),
        (DataConfig, "bucket_edges", (4, 4)),
        (DataConfig, "bucket_edges", (4, 3)),
        (DataConfig, "bucket_edges", (0, 3)),
        (DataConfig, "batch_size", 6),  # not a multiple of the 4 length groups
        (DataConfig, "unlabelled_batch_size", -4),
        (DataConfig, "unlabelled_batch_size", 6),
        (ModelConfig, "embedding_size", 0),
        (ModelConfig, "hidden_size", -3),
        (ModelConfig, "layers", 0),
        (ModelConfig, "attention_size", 0),
        (ModelConfig, "dense_size", -1),
        (ModelConfig, "word_dropout", 1.0),
        (ModelConfig, "input_dropout", 1.0),
        (ModelConfig, "head_dropout", -0.1),
        (OptimConfig, "learning_rate", 0.0),
        (OptimConfig, "learning_rate", float("nan")),
        (OptimConfig, "warmup_steps", -1),
        (OptimConfig, "beta1", 1.0),
        (OptimConfig, "beta2", float("nan")),
        (OptimConfig, "epsilon", 0.0),
        (OptimConfig, "weight_decay", -0.1),
        (OptimConfig, "l2_penalty", -0.1),
        (OptimConfig, "clip_norm", 0.0),
        (TrainConfig, "epochs", 0),
        (TrainConfig, "microbatches", 0),
        (Config, "seed", -1),
        (Config, "seed", 2**32),
    ],
)
def test_error_for_a_value_out_of_range_names_the_field_and_the_value(kind, field, value):
    message = error_of(kind, **{field: value})
    assert field in message
    assert str(value) in message


@pytest.mark.parametrize(
    ("kind", "field", "value", "expected_type"),
    [
        ("DataConfig", "batch_size", 8.0, "int"),
        ("DataConfig", "train_examples", "all", "int | None"),
        ("DataConfig", "bucket_edges", [3, 5], "tuple[int, ...]"),
        ("ModelConfig", "hidden_size", "64", "int"),
        ("ModelConfig", "layers", True, "int"),
        ("ModelConfig", "cell", None, "str"),
        ("OptimConfig", "learning_rate", "fast", "float"),
        ("OptimConfig", "clip_norm", "none", "float | None"),
        ("TrainConfig", "epochs", 2.5, "int"),
        ("Config", "seed", 1.0, "int"),
        ("Config", "model", {"cell": "gru"}, "ModelConfig"),
    ],
)
def test_error_for_a_wrong_type_names_the_field_and_the_type(kind, field, value, expected_type):
    message = error_of(getattr(unchecked, kind), **{field: value})
    assert message.endswith(f"{field} must be {expected_type}, got {value!r}")


def test_unknown_choice_is_an_error_that_lists_the_choices():
    expected = "unknown train.select 'lst'; choose best, last (did you mean 'last'?)"
    assert error_of(unchecked.TrainConfig, select="lst") == expected


def test_the_test_split_cannot_be_used_for_selection():
    with_validation, without = DataConfig(), DataConfig(validation_examples=0)
    for data, select in [(with_validation, "last"), (without, "best")]:
        message = error_of(Config, data=data, train=TrainConfig(eval_split="test", select=select))
        assert "must not be used for selection" in message
    Config(data=without, train=TrainConfig(eval_split="test", select="last"))


def test_microbatches_that_do_not_divide_a_length_group_are_an_error():
    expected = (
        "train.microbatches must divide 64, the rows per length group, got 3; change it, "
        "data.batch_size or data.bucket_edges"
    )
    assert error_of(Config, train=TrainConfig(microbatches=3)) == expected


def test_evaluation_on_validation_needs_validation_examples():
    message = error_of(Config, data=DataConfig(validation_examples=0))
    assert message.startswith(
        "train.eval_split 'validation' needs data.validation_examples above 0"
    )


def test_last_padded_length_is_max_tokens():
    assert DataConfig(bucket_edges=(3, 5, 7), max_tokens=9).edges == (3, 5, 7, 9)
    assert DataConfig(bucket_edges=(3, 5, 7), max_tokens=5).edges == (3, 5)
    assert DataConfig(bucket_edges=(), max_tokens=5).edges == (5,)


def test_length_groups_divide_a_batch_equally():
    assert DataConfig(bucket_edges=(3, 5), max_tokens=9, batch_size=12).group_size == 4
    both = DataConfig(bucket_edges=(3, 5), max_tokens=9, batch_size=12, unlabelled_batch_size=6)
    assert both.group_size == 6

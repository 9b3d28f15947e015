"""Initial parameters from word vectors, a model or its encoder."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_run import error_of

from bilstm_attn.config import Config, ModelConfig, TrainConfig
from bilstm_attn.data.vocabulary import RESERVED, Vocabulary
from bilstm_attn.inference.exported import export_model, flatten_params
from bilstm_attn.nn.model import Model
from bilstm_attn.training.initial import (
    digest_of,
    initial_params,
    read_initial,
    require_recorded,
)

SOURCE_WORDS = Vocabulary(["filmo", "brillo", "dregg"])
WORDS = Vocabulary(["dregg", "novo", "filmo", "alt", "neu"])
CONFIG = ModelConfig(embedding_size=4, hidden_size=3, layers=1, attention_size=5, dense_size=7)


@pytest.fixture
def source(tmp_path):
    """Returns a run folder with an exported model, and the model's parameters."""
    params = initial_params(Model(CONFIG, SOURCE_WORDS.size), 3)
    export_model(tmp_path / "model.safetensors", params, Config(model=CONFIG), SOURCE_WORDS)
    return tmp_path, flatten_params(params)


def initialise(init_from: str, config: ModelConfig = CONFIG):
    """Returns the values, and the parameters with them and without, flat."""
    model = Model(config, WORDS.size)
    values = read_initial(init_from, model, WORDS)
    with_values, random = initial_params(model, 5, values), initial_params(model, 5)
    return values, flatten_params(with_values), flatten_params(random)


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_model_source_copies_every_parameter_and_maps_embedding_rows_by_word(source, file):
    folder, old = source
    values, params, random = initialise(f"model:{folder / file}")
    for name in old.keys() - {"embedding"}:
        np.testing.assert_array_equal(params[name], old[name])
    embedding, first = params["embedding"], RESERVED
    np.testing.assert_array_equal(embedding[:first], old["embedding"][:first])
    np.testing.assert_array_equal(embedding[first], old["embedding"][first + 2])  # dregg
    np.testing.assert_array_equal(embedding[first + 2], old["embedding"][first])  # filmo
    others = [first + 1, first + 3, first + 4]
    np.testing.assert_array_equal(embedding[others], random["embedding"][others])
    assert values.coverage.startswith("2 of 5 words have a vector; ")
    assert values.record["init_from_words"] == 2


def test_encoder_source_leaves_attention_and_head_random(source):
    folder, old = source
    values, params, random = initialise(f"encoder:{folder}")
    for name in old.keys() - {"embedding"}:
        expected = old if name.startswith("encoder.") else random
        np.testing.assert_array_equal(params[name], expected[name])
    assert all(name.startswith("encoder.") for name in values.params)


def test_model_source_leaves_parameters_of_another_shape_random_outside_the_encoder(source):
    folder, _ = source
    config = dataclasses.replace(CONFIG, attention_size=6)
    values, params, random = initialise(f"model:{folder}", config)
    left = params.keys() - values.params.keys() - {"embedding"}
    assert left
    assert all(name.startswith("attention.") for name in left)
    for name in left:
        np.testing.assert_array_equal(params[name], random[name])


@pytest.mark.parametrize("kind", ["model", "encoder"])
@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"hidden_size": 2}, "encoder."),
        ({"embedding_size": 6}, "embedding"),
        ({"layers": 2}, "encoder."),
        ({"cell": "gru"}, "encoder."),
    ],
)
def test_encoder_or_embedding_of_another_shape_is_one_line(source, kind, changes, parameter):
    model = Model(dataclasses.replace(CONFIG, **changes), WORDS.size)
    message = error_of(read_initial, f"{kind}:{source[0]}", model, WORDS)
    assert f"must have a parameter {parameter}" in message
    assert message.endswith("give the model options of that run")


def test_source_with_more_layers_is_one_line(tmp_path):
    deep = dataclasses.replace(CONFIG, layers=2)
    params = initial_params(Model(deep, SOURCE_WORDS.size), 3)
    path = tmp_path / "model.safetensors"
    export_model(path, params, Config(model=deep), SOURCE_WORDS)
    model = Model(CONFIG, WORDS.size)
    assert "which this model lacks" in error_of(read_initial, f"encoder:{path}", model, WORDS)


def test_empty_source_is_all_random():
    assert read_initial("", Model(CONFIG, WORDS.size), WORDS) is None


@pytest.mark.parametrize("init_from", ["some.vec", "vector:some.vec", "model:", ":some.vec"])
def test_source_of_another_syntax_is_one_line(init_from):
    message = error_of(TrainConfig, init_from=init_from)
    assert message.startswith(
        "train.init_from must be vectors:FILE, model:PATH, encoder:PATH or empty"
    )


def test_changed_source_is_refused_also_for_runs_of_earlier_versions(tmp_path):
    path = tmp_path / "some.vec"
    path.write_text("filmo 1 2 3 4\n")
    init_from = f"vectors:{path}"
    recorded = digest_of(init_from)
    for name in ("init_from_sha256", "vectors_sha256"):
        require_recorded(init_from, {name: recorded}, tmp_path)
    path.write_text("filmo 1 2 3 5\n")
    for name in ("init_from_sha256", "vectors_sha256"):
        message = error_of(require_recorded, init_from, {name: recorded}, tmp_path)
        assert "was initialised from another file" in message


def test_copied_parameters_are_the_models_own_arrays(source):
    """The training step donates its state, which must not consume the source's values."""
    model = Model(CONFIG, WORDS.size)
    values = read_initial(f"model:{source[0]}", model, WORDS)
    first, second = (initial_params(model, 5, values) for _ in range(2))
    jax.tree.map(lambda leaf: leaf.delete(), first)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(second))

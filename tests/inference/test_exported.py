"""The exported model: its task, and exports of earlier versions."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_run import error_of, train

from bilstm_attn.config import Config, DataConfig
from bilstm_attn.data.sources import DATASETS, MovieReviews
from bilstm_attn.data.vocabulary import Vocabulary
from bilstm_attn.inference.exported import export_model, load_model
from bilstm_attn.nn.tasks import make_task
from bilstm_attn.runtime.files import tree_sha256

PARAMS = {"logit": {"bias": np.array([3.0, 5.0], np.float32)}}


def write_export(path, metadata: dict[str, str]) -> None:
    """Writes an export whose digest covers the metadata."""
    flat = {"logit.bias": PARAMS["logit"]["bias"]}
    texts = {name: np.frombuffer(text.encode(), np.uint8) for name, text in metadata.items()}
    save_file(flat, path, metadata | {"sha256": tree_sha256([flat, texts])})


def old_metadata() -> dict[str, str]:
    """Returns the metadata of an export by the version before fields were renamed."""
    values = json.loads(Config().to_json())
    del values["model"]["task"], values["model"]["remat"], values["train"]["init_from"]
    del values["data"]["tokeniser"], values["data"]["tokeniser_options"]
    values["model"] |= {"recompute_gates": True, "vectors": "some.vec"}
    return {
        "format": "bilstm_attn 1",
        "config": json.dumps(values, indent=2),
        "vocabulary": "filmo\nbrillo",
    }


def test_export_of_an_earlier_version_loads_as_binary(tmp_path):
    path = tmp_path / "model.safetensors"
    write_export(path, old_metadata())
    exported = load_model(path)
    assert exported.config.model.remat
    assert (exported.config.data.tokeniser, exported.config.data.tokeniser_options) == ("keras", {})
    assert exported.config.train.init_from == "vectors:some.vec"
    assert exported.vocabulary.words == ("filmo", "brillo")
    assert exported.task == make_task("binary")
    np.testing.assert_array_equal(exported.params["logit"]["bias"], PARAMS["logit"]["bias"])


def test_export_stores_the_label_names_of_its_task(tmp_path):
    path = tmp_path / "model.safetensors"
    export_model(path, PARAMS, Config(), Vocabulary(["filmo"]))
    with safe_open(path, framework="numpy") as file:
        task = json.loads(file.metadata()["task"])
    assert task == {"name": "binary", "label_names": ["negative", "positive"]}
    assert load_model(path).task == make_task("binary")


def test_export_stores_the_label_names_of_the_data_set(tmp_path, monkeypatch):
    named = type("Named", (MovieReviews,), {"label_names": ("bad", "good")})
    monkeypatch.setitem(DATASETS, "movie_reviews", named)
    config = Config(data=DataConfig(dataset="movie_reviews"))
    export_model(tmp_path / "model", PARAMS, config, Vocabulary(["filmo"]))
    assert load_model(tmp_path / "model").task == make_task("binary", ("bad", "good"))


def test_data_set_with_three_labels_is_an_error_for_the_binary_task(untrained, monkeypatch):
    named = type("Named", (MovieReviews,), {"label_names": ("bad", "fair", "good")})
    monkeypatch.setitem(DATASETS, "movie_reviews", named)
    message = error_of(train, untrained)
    assert message.startswith("task binary must have 2 labels, got 3: bad, fair, good; ")


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ({"name": "ranking", "label_names": ["low", "high"]}, "unknown task 'ranking'"),
        ({"name": "binary", "label_names": ["a", "b", "c"]}, "must have 2 labels, got 3"),
    ],
)
def test_export_of_an_unsupported_task_is_a_one_line_error(tmp_path, task, reason):
    path = tmp_path / "model.safetensors"
    write_export(path, old_metadata() | {"task": json.dumps(task)})
    message = error_of(load_model, path)
    assert message.startswith(f"{path} cannot be used: ")
    assert reason in message

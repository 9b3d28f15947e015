"""The Python interface: train, load and predict without a command line."""

import subprocess
import sys
import threading

import pytest
from tiny_run import FIELDS, error_of, tiny_run

import bilstm_attn
from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.runtime.files import tree_sha256


def config(**changes):
    """Returns the config of the finished run in the fixture `trained`, with changes."""
    fields = {name.replace("-", "_"): value for name, value in FIELDS.items()}
    fields["data.bucket_edges"] = (fields["data.bucket_edges"],)
    return bilstm_attn.load_recipe("quickstart").replace(fields | {"name": "api"} | changes)


def options(folder, **changes):
    locations = DataLocations(cache=folder / "cache")
    fields = {"runs": folder / "runs", "log_every_steps": 2, "locations": locations} | changes
    return bilstm_attn.TrainOptions(**fields)


NAMES = (
    "Config DataConfig Model ModelConfig OptimConfig Prediction Predictor StopTraining TrainConfig "
    "TrainOptions TrainResult UserError load load_model load_recipe train"
)


def test_import_is_light_and_lists_its_names():
    code = (
        "import sys, bilstm_attn; assert 'jax' not in sys.modules;"
        f"names = {NAMES!r}.split(); assert set(names) <= set(dir(bilstm_attn));"
        "[getattr(bilstm_attn, name) for name in names]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_quiet_training_has_the_bits_of_the_script_and_returns_metrics_and_model(
    trained, untrained, capsys
):
    records = []
    result = bilstm_attn.train(config(), options(untrained), quiet=True, on_epoch=records.append)
    assert capsys.readouterr().out == ""
    assert list(records) == list(result.epochs)
    assert result.run_dir == untrained / "runs" / "api" / "seed0"
    assert result.metrics["validation_accuracy"] == result.epochs[-1]["validation_accuracy"]
    script = bilstm_attn.load_model(tiny_run(trained).model)
    exported = bilstm_attn.load_model(result.run_dir / "model.safetensors")
    assert tree_sha256(exported.params) == tree_sha256(script.params)
    for predictor in (result.predictor, bilstm_attn.load(result.run_dir)):
        (prediction,) = predictor(["brillo filmo wunda"])
        assert prediction.label in ("negative", "positive")


@pytest.mark.slow
def test_stop_training_ends_early_and_the_run_resumes_in_another_thread(trained, untrained):
    def stop(record):
        raise bilstm_attn.StopTraining

    result = bilstm_attn.train(config(), options(untrained), quiet=True, on_epoch=stop)
    assert [record["epoch"] for record in result.epochs] == [1]
    results = []
    thread = threading.Thread(  # signal handlers exist in the main thread only
        target=lambda: results.append(
            bilstm_attn.train(config(), options(untrained, resume=True), quiet=True)
        )
    )
    thread.start()
    thread.join()
    assert [record["epoch"] for record in results[0].epochs] == [1, 2]
    exported = bilstm_attn.load_model(results[0].run_dir / "model.safetensors")
    script = bilstm_attn.load_model(tiny_run(trained).model)
    assert tree_sha256(exported.params) == tree_sha256(script.params)


@pytest.mark.slow
def test_test_is_measured_once_and_only_after_the_last_epoch(untrained):
    fields = {"data.dataset": "imdb", "train.select": "best"}

    def stop(record):
        raise bilstm_attn.StopTraining

    early = bilstm_attn.train(config(**fields), options(untrained), quiet=True, on_epoch=stop)
    assert "test_accuracy" not in early.metrics
    whole = bilstm_attn.train(config(**fields), options(untrained, resume=True), quiet=True)
    assert 0 <= whole.metrics["test_accuracy"] <= 1


def test_fields_are_replaced_by_path():
    changed = config(**{"model.cell": "gru", "seed": 4})
    assert (changed.model.cell, changed.seed, changed.model.hidden_size) == ("gru", 4, 3)
    message = error_of(config, **{"model.cel": "gru"})
    assert message.startswith("unknown field 'model.cel'; choose ")
    assert "did you mean 'model.cell'?" in message


def test_several_seeds_in_one_call_are_refused(untrained):
    message = error_of(bilstm_attn.train, config(), options(untrained, seeds=2))
    assert message == "train() takes one seed: call it once per seed of the config"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        bilstm_attn.lode  # noqa: B018

"""The Python interface: train a config, load a model, predict.

import bilstm_attn

config = bilstm_attn.load_recipe("quickstart")
result = bilstm_attn.train(config, quiet=True)
result.metrics["validation_accuracy"]
result.predictor(["A film to see twice."])[0].label
"""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from bilstm_attn import config_files
from bilstm_attn.config import Config, require
from bilstm_attn.inference.predict import Predictor
from bilstm_attn.runtime.files import recipes_folder
from bilstm_attn.runtime.plugins import load_plugins
from bilstm_attn.runtime.xla_flags import request_deterministic_gpu_ops
from bilstm_attn.training.loop import OnEpoch, ignore
from bilstm_attn.training.opened_run import model_file
from bilstm_attn.training.options import TrainOptions
from bilstm_attn.training.train_command import train_seeds


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    run_dir: Path
    """The run folder, which every command takes."""
    metrics: Mapping[str, Any]
    """Record of the exported epoch, such as `validation_accuracy`, and `test_...` if measured."""
    epochs: tuple[Mapping[str, Any], ...]
    """Record of every epoch, as in metrics.jsonl."""

    @cached_property
    def predictor(self) -> Predictor:
        """The exported model."""
        return load(self.run_dir)


def train(
    config: Config,
    options: TrainOptions | None = None,
    *,
    quiet: bool = False,
    on_epoch: OnEpoch = ignore,
    plugins: Iterable[str] = (),
) -> TrainResult:
    """Trains a config in its run folder, as `scripts/train.py` does.

    Args:
      config: what to train. `load_recipe("best").replace({"optim.learning_rate": 3e-3})` changes a
        recipe; give it a `name` too.
      options: where and how; the run folder is `options.runs / config.name / f"seed{config.seed}"`.
      quiet: prints nothing.
      on_epoch: called with the record of each epoch, after its checkpoint is saved. It may raise
        `StopTraining` to end the training early. Any other exception is passed on, and the run can
        be resumed with `TrainOptions(resume=True)`.
      plugins: plug-ins to load first: Python files, modules or installed entry points.

    Raises:
      UserError: a mistake in the config, the data or the folder.
      Interrupted: Ctrl-C was pressed, or SIGTERM came; the state is saved.
    """
    options = options or TrainOptions()
    require(options.seeds == 1, "train() takes one seed: call it once per seed of the config")
    require(not options.processes.distributed, "several processes need scripts/train.py")
    load_plugins(plugins)
    if options.deterministic:
        request_deterministic_gpu_ops()
    (replica,) = train_seeds(config, options, on_epoch, quiet=quiet)
    finals = [record for record in replica.run.records() if record["kind"] == "final"]
    test = {
        f"test_{name}": value
        for record in finals
        for name, value in record.items()
        if isinstance(value, float)
    }
    return TrainResult(replica.run.folder, replica.chosen | test, tuple(replica.epochs))


def load(path: str | Path, plugins: Iterable[str] = ()) -> Predictor:
    """Returns the model of a run folder or of an exported `model.safetensors`.

    Raises:
      UserError: no such model, or it is damaged, or needs a plug-in.
    """
    load_plugins(plugins)
    return Predictor(model_file(Path(path)))


def load_recipe(name: str) -> Config:
    """Returns a recipe by its name, or by the path of a Python file or a saved config.json.

    Raises:
      UserError: there is no such recipe, or the file cannot be read.
    """
    return config_files.load_recipe(name, recipes_folder())

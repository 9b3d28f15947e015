"""The end of a training: test measured once, curves drawn, results printed."""

import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bilstm_attn.config import Backend, Config
from bilstm_attn.data.token_cache import TokenCache
from bilstm_attn.inference.exported import Exported, load_model
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console, percent
from bilstm_attn.runtime.distributed import broadcast, is_main_process, on_main_process
from bilstm_attn.training.evaluate_command import measure_split
from bilstm_attn.training.opened_run import OpenedRun
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.training.run_table import draw_curves
from bilstm_attn.training.seed_replica import SeedReplica


class Setting(NamedTuple):
    """What all seeds of a training share."""

    tokens: TokenCache
    backend: Backend
    mesh: Mesh
    console: Console


def finish(replica: SeedReplica, setting: Setting) -> float:
    """Measures test if that is due, draws the curves, prints results; returns the accuracy.

    Test is due after the last epoch of a run that evaluates on validation examples.
    """
    config = replica.config
    complete = len(replica.epochs) == config.train.epochs
    if complete and config.train.eval_split == "validation" and "test" in setting.tokens.splits:
        accuracy = _measure_test_once(replica, setting)
    else:
        accuracy = _print_chosen(replica, setting.console)
    if is_main_process():
        _print_paths(replica.run, config, setting.console)
    replica.run.close()
    return accuracy


def _print_chosen(replica: SeedReplica, console: Console) -> float:
    """Prints the accuracy of the exported epoch and how it was chosen; returns it."""
    config, chosen = replica.config, replica.chosen
    accuracy = chosen[f"{config.train.eval_split}_accuracy"]
    if config.train.eval_split == "test":
        console.print(f"test accuracy {percent(accuracy)} after epoch {chosen['epoch']}")
        return accuracy
    selected = "" if config.train.select == "last" else ", which also selected the epoch"
    console.print(
        f"held-out accuracy {percent(accuracy)} after epoch "
        f"{chosen['epoch']} ({replica.eval_examples.size:,} examples{selected})"
    )
    return accuracy


def _print_paths(run: RunDir, config: Config, console: Console) -> None:
    """Draws the curves; prints where they and the run are, and a command that uses the model."""
    draw_curves(run.records(), config.train.eval_split, run.curves)
    console.print(f"curves   {run.curves}")
    console.print(f"run      {run.folder}")
    folder = shlex.quote(str(run.folder))
    console.print(f'try it   {_predict_command()} {folder} "A film to see twice, and then again."')


def _predict_command() -> str:
    """Returns the installed program's name, or the script of a checkout, as the user began it."""
    script = Path(sys.argv[0])
    return "python scripts/predict.py" if script.name == "train.py" else "bilstm-attn predict"


def _measure_test_once(replica: SeedReplica, setting: Setting) -> float:
    """Measures the exported epoch on test and logs it, unless done before; returns accuracy."""
    run = replica.run
    done = on_main_process(lambda: [line for line in run.records() if line["kind"] == "final"])
    if done:
        measured = done[0]
    else:
        model = Model(replica.config.model, replica.vocabulary.size, setting.backend)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        params = broadcast(load_model(run.exported()).params if is_main_process() else params)
        exported = Exported(params, replica.config, replica.vocabulary)
        opened = OpenedRun(run, exported, model, setting.mesh)
        measured = measure_split(opened, setting.tokens, "test", setting.console)
        step = replica.chosen["step"]
        run.log({"kind": "final", "step": step, "split": "test", **measured})
    accuracy = measured["accuracy"]
    setting.console.print(f"test accuracy {percent(accuracy)}, measured once, at the end")
    return accuracy

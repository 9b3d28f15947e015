"""Trains a recipe: `python scripts/train.py RECIPE [--seed N] [--model.hidden-size 128 ...]`.

Or repeats the first steps of a run: `python scripts/train.py --verify RUN`.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from bilstm_attn.config import BackendChoice, Config
from bilstm_attn.config_files import load_recipe, recipe_names
from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.errors import UserError
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.files import recipes_folder
from bilstm_attn.runtime.plugins import load_plugins
from bilstm_attn.runtime.xla_flags import (
    Processes,
    request_deterministic_gpu_ops,
)


@dataclasses.dataclass(frozen=True)
class RunArguments:
    """Where and how to run; changes no number."""

    runs: Path = Path("runs")
    """Where runs lie: each in a folder NAME/seedN."""
    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    resume: bool = False
    """Continue this run from its newest checkpoint."""
    seeds: int = 1
    """Train so many seeds, from --seed on, in one program; each has its own folder."""
    devices: int | None = None
    """Devices of each process to share each batch; None is every accelerator, or up to 8 cores."""
    backend: BackendChoice = "auto"
    """How the recurrence runs: native (C++, CPU), pallas (GPU or TPU, unproven), scan or plain;
    auto is native where it can be built, else scan. The last digits differ."""
    deterministic: bool = False
    """Leave out what changes bits from run to run on a GPU; a CPU has nothing of it."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write TensorBoard files into the run's folder too."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    run: Annotated[RunArguments, arg(name="")]
    locations: Annotated[DataLocations, arg(name="")]
    processes: Annotated[Processes, arg(name="")]
    config: Annotated[Config, arg(name="")]


@dataclasses.dataclass(frozen=True)
class VerifyArguments:
    """The command line of a verification."""

    verify: Path
    """A run's folder."""
    deterministic: bool = False
    """As in training."""
    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def verify(arguments: list[str], program: str) -> int:
    """Repeats a run's first steps; returns the exit status."""
    parsed = parse(
        VerifyArguments,
        arguments,
        program=program,
        description="Repeats the first steps of a run, on the devices and backend that it had, and "
        "says whether bits, or only rounding, agree.",
    )
    if parsed.deterministic:
        request_deterministic_gpu_ops()
    load_plugins(parsed.plugin)
    from bilstm_attn.training.reproduce import run_verification

    return run_verification(parsed.verify, parsed.locations)


def main(arguments: list[str], program: str = "scripts/train.py") -> int:
    """Trains; returns the exit status."""
    if arguments[:1] and arguments[0].split("=")[0] == "--verify":
        return verify(arguments, program)
    recipes = recipes_folder()
    names = ", ".join(recipe_names(recipes))
    if arguments[:1] in (["-h"], ["--help"]):
        recipe, rest, config = "RECIPE", ["--help"], Config()
    elif not arguments or arguments[0].startswith("-"):
        raise UserError(f"the recipe comes first: {program} RECIPE [OPTIONS]; choose {names}")
    else:
        recipe, *rest = arguments
        config = load_recipe(recipe, recipes)
    parsed = parse(
        Arguments,
        rest,
        program=f"{program} {recipe}",
        description=f"Trains the recipe {recipe}. Recipes: {names}, or a Python file. "
        f"`{program} --verify RUN` repeats the first steps of a run instead.",
        default=Arguments(RunArguments(), DataLocations(), Processes(), config),
    )
    from bilstm_attn.training.commands import run_training

    load_plugins(parsed.run.plugin)
    options = {name: value for name, value in vars(parsed.run).items() if name != "plugin"}
    return run_training(parsed.config, parsed.locations, parsed.processes, **options)

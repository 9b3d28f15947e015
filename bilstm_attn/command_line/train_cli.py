"""Trains a recipe: `python scripts/train.py RECIPE [--seed N] [--model.hidden-size 128 ...]`.

Or repeats the first steps of a run: `python scripts/train.py --verify RUN`.
"""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from bilstm_attn.command_line.option_pairs import apply_options
from bilstm_attn.command_line.run_names import name_of_trial
from bilstm_attn.config import Config
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
from bilstm_attn.training.options import TrainOptions, VerifyOptions

NO_PREFIX = arg(name="")


@dataclasses.dataclass(frozen=True)
class RunArguments(TrainOptions):
    """Where and how to train; changes no number beyond rounding."""

    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, NO_PREFIX] = dataclasses.field(
        default_factory=DataLocations
    )
    processes: Annotated[Processes, NO_PREFIX] = dataclasses.field(default_factory=Processes)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    run: Annotated[RunArguments, NO_PREFIX]
    config: Annotated[Config, NO_PREFIX]


@dataclasses.dataclass(frozen=True)
class VerifyArguments(VerifyOptions):
    """The command line of a verification."""

    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, NO_PREFIX] = dataclasses.field(
        default_factory=DataLocations
    )


def verify(arguments: list[str], program: str) -> int:
    """Repeats a run's first steps; returns the exit status."""
    options = parse(
        VerifyArguments,
        arguments,
        program=program,
        description="Repeats the first steps of a run, on its devices and backend, and prints "
        "whether the bits, or the numbers up to rounding, are the same.",
    )
    if options.deterministic:
        request_deterministic_gpu_ops()
    load_plugins(options.plugin)
    from bilstm_attn.training.reproduce import run_verification

    return run_verification(options)


def main(arguments: list[str], program: str = "scripts/train.py") -> int:
    """Trains; returns the exit status."""
    if arguments[:1] and arguments[0].split("=")[0] == "--verify":
        return verify(arguments, program)
    recipes = recipes_folder()
    names = ", ".join(recipe_names(recipes))
    if arguments[:1] in (["-h"], ["--help"]):
        recipe_name, rest, recipe = "RECIPE", ["--help"], Config()
    elif not arguments or arguments[0].startswith("-"):
        raise UserError(f"the recipe comes first: {program} RECIPE [OPTIONS]; choose {names}")
    else:
        recipe_name, *rest = arguments
        recipe = load_recipe(recipe_name, recipes)
    config, rest = apply_options(recipe, rest)
    parsed = parse(
        Arguments,
        rest,
        program=f"{program} {recipe_name}",
        description=f"Trains the recipe {recipe_name}. Recipes: {names}, or a Python file or saved "
        f"config.json. `{program} --verify RUN` repeats the first steps of a run instead.",
        default=Arguments(RunArguments(), config),
    )
    from bilstm_attn.training.train_command import run_training

    load_plugins(parsed.run.plugin)
    config = parsed.config
    if not any(argument.split("=")[0] == "--name" for argument in rest):
        config = dataclasses.replace(config, name=name_of_trial(recipe, config))
    return run_training(config, parsed.run)

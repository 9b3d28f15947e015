"""Measures a run on a split: `python scripts/evaluate.py RUN [--split test]`."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.plugins import load_plugins
from bilstm_attn.training.options import EvaluateOptions


@dataclasses.dataclass(frozen=True)
class Arguments(EvaluateOptions):
    """The command line."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, runs/NAME/seedN."""
    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def main(arguments: list[str], program: str = "scripts/evaluate.py") -> int:
    """Evaluates; returns the exit status."""
    options = parse(
        Arguments,
        arguments,
        program=program,
        description="Measures a run's model on a whole split, and saves a prediction per example.",
    )
    load_plugins(options.plugin)
    from bilstm_attn.training.evaluate_command import run_evaluation

    return run_evaluation(options)

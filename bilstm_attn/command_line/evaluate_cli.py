"""Measures a run on a split: `python scripts/evaluate.py RUN [--split test]`."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bilstm_attn.config import BackendChoice
from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.plugins import load_plugins


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run's folder, runs/RECIPE/seedN."""
    split: str | None = None
    """test, validation (the reviews this run held out) or train (all of them, held out or not);
    None is test, or validation where there is no test."""
    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )
    devices: int | None = None
    """Devices to share each batch; None is every accelerator, or up to 8 cores."""
    backend: BackendChoice = "auto"
    """How the recurrence runs on a CPU: native (compiled C++), scan or plain; auto is native where
    it can be built. The last digits differ."""


def main(arguments: list[str], program: str = "scripts/evaluate.py") -> int:
    """Evaluates; returns the exit status."""
    parsed = parse(
        Arguments,
        arguments,
        program=program,
        description="Measures a run's model over a whole split and saves a prediction a review.",
    )
    load_plugins(parsed.plugin)
    from bilstm_attn.training.commands import run_evaluation

    return run_evaluation(
        parsed.run, parsed.split, parsed.locations, parsed.devices, parsed.backend
    )

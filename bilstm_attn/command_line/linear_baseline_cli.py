"""Measures the linear baseline: `python scripts/linear_baseline.py [--cache DIR]`."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from bilstm_attn.baselines.linear_options import LinearOptions
from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.plugins import load_plugins


@dataclasses.dataclass(frozen=True)
class Arguments(LinearOptions):
    """The command line."""

    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def main(arguments: list[str], program: str = "scripts/linear_baseline.py") -> int:
    """Fits and measures; returns the exit status."""
    options = parse(
        Arguments,
        arguments,
        program=program,
        description="Fits logistic regression on binary uni- and bigrams, weighted by naive Bayes "
        "ratios: chooses C on held-out training examples, fits again on all of them, and measures "
        "once on the test split.",
    )
    load_plugins(options.plugin)
    from bilstm_attn.baselines.linear_command import run_linear_baseline

    return run_linear_baseline(options)

"""Tests whether attention is an explanation: `python scripts/study_attention.py RUN [RUN ...]`."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.plugins import load_plugins
from bilstm_attn.studies.attention_as_explanation.study_options import StudyOptions


@dataclasses.dataclass(frozen=True)
class Arguments(StudyOptions):
    """The command line."""

    run: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")]
    """Folders of finished runs with distinct names. Other seeds of a run are compared
    automatically."""
    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def main(arguments: list[str], program: str = "scripts/study_attention.py") -> int:
    """Runs the study; returns the exit status."""
    options = parse(
        Arguments,
        arguments,
        program=program,
        description="Runs the experiments of Jain and Wallace, 2019, and of Wiegreffe and Pinter, "
        "2019, and measures of faithfulness on finished runs; writes a report. Results are cached "
        "in each run's folder, so an interrupted study resumes.",
    )
    load_plugins(options.plugin)
    from bilstm_attn.studies.attention_as_explanation.study_command import run_study

    return run_study(options)

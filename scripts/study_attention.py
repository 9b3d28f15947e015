"""Asks whether attention is an explanation: `python scripts/study_attention.py RUN [RUN ...]`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from bilstm_attn.config import BackendChoice
from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.runtime.cli import parse, run_script
from bilstm_attn.runtime.xla_flags import configure_process


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    run: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")]
    """Folders of finished runs. Other seeds beside one are compared with it."""
    out: Path | None = None
    """Where the report goes; None is RUN/attention, of the first."""
    limit: int = 4356
    """How many test reviews are asked about."""
    few: int = 512
    """Of how many of them every attribution's faithfulness is measured."""
    seed: int = 0
    """Draws them."""
    strengths: tuple[float, ...] = (0.0, 1e-3, 3e-3, 1e-2, 1e-1)
    """Of the trained adversary: how much another attention is worth against another answer."""
    epochs: int | None = None
    """Of the models trained beside each run, as many as its own by default; 0 trains none."""
    adversary_epochs: int | None = None
    """Of the trained adversaries, as --epochs by default; theirs had up to 80."""
    adversary_start: Literal["base", "random"] = "base"
    """Whether they begin as the run's model, but for its attention, or as the paper's at random."""
    devices: int | None = None
    """Devices to share each batch; None is every accelerator, or up to 8 cores."""
    backend: BackendChoice = "auto"
    """How the recurrence runs, as in scripts/train.py."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def main(arguments: list[str]) -> int:
    """Examines; returns the exit status."""
    parsed = parse(
        Arguments,
        arguments,
        program="scripts/study_attention.py",
        description="Puts runs through the experiments of Jain and Wallace, 2019, and of Wiegreffe "
        "and Pinter, 2019, and through measures of faithfulness; writes a report. What is found is "
        "kept in each run's folder, so that it goes on where it was stopped.",
    )
    from bilstm_attn.studies.attention_as_explanation.study_command import run_examination

    given: dict[str, Any] = dict(vars(parsed))
    return run_examination(given.pop("run"), **given)


if __name__ == "__main__":
    configure_process()
    run_script(main)

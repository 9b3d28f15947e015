"""Makes a table of runs: `python scripts/report.py runs/tutorial [runs/best ...]`."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bilstm_attn.runtime.cli import parse


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="FOLDER ...")]
    """Folders that hold runs, at any depth."""


def main(arguments: list[str], program: str = "scripts/report.py") -> int:
    """Prints the table; returns the exit status."""
    parsed = parse(
        Arguments,
        arguments,
        program=program,
        description="Prints a Markdown table of runs: mean and standard deviation over seeds.",
    )
    from bilstm_attn.training.run_table import summarise

    print(summarise(parsed.folders))
    return 0

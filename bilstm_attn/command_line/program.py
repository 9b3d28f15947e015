"""The installed program: `bilstm-attn COMMAND ...` does what `scripts/COMMAND.py` does."""

import importlib
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from bilstm_attn.errors import UserError
from bilstm_attn.registry import look_up
from bilstm_attn.runtime.cli import run_script
from bilstm_attn.runtime.xla_flags import configure_process, use_cuda_graphs

PROGRAM = "bilstm-attn"


class Command(NamedTuple):
    """One command: its module, what sets up its process, and its line in the help."""

    module: str
    configure: Callable[[], None] | None
    summary: str


COMMANDS = {
    "train": Command("train_cli", configure_process, "train a recipe, or verify a run"),
    "evaluate": Command("evaluate_cli", configure_process, "measure a run on a split"),
    "predict": Command("predict_cli", use_cuda_graphs, "predict the labels of texts"),
    "explain": Command("explain_cli", configure_process, "attribute predictions to words"),
    "report": Command("report_cli", None, "print a table of runs"),
    "study-attention": Command(
        "study_attention_cli", configure_process, "test whether attention is an explanation"
    ),
    "prepare-data": Command("prepare_data_cli", None, "tokenise a data set once"),
    "linear-baseline": Command("linear_baseline_cli", None, "fit a linear model on bigrams"),
    "benchmark": Command("benchmark_cli", use_cuda_graphs, "compare the speed of implementations"),
}


def help_text() -> str:
    """Returns the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    usage = f"usage: {PROGRAM} COMMAND [ARGUMENTS]"
    return "\n".join([usage, "", *lines, "", f"`{PROGRAM} COMMAND --help` lists its arguments."])


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status.

    Raises:
      UserError: no command, an unknown one, or a mistake in its arguments.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(help_text())
        return 0
    if not arguments:
        raise UserError(f"{PROGRAM} needs a command; choose {', '.join(sorted(COMMANDS))}")
    name, *rest = arguments
    command = look_up("command", COMMANDS, name)
    if command.configure is not None:
        command.configure()
    module = importlib.import_module(f"bilstm_attn.command_line.{command.module}")
    return module.main(rest, program=f"{PROGRAM} {name}")


def run() -> NoReturn:
    """Runs the program on the command line of this process."""
    run_script(main)

"""Command lines: parsing, one-line errors, exit statuses and help."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import pytest

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.cli import parse

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Inner:
    hidden_size: int = 64
    """Hidden units per direction."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    model: Inner = Inner()
    folder: Path = Path()
    """A folder."""
    rate: float | None = None
    """A rate."""


def parse_words(*words: str) -> Arguments:
    return parse(Arguments, words, program="scripts/a.py", description="Runs a.")


def test_fields_come_from_the_command_line():
    arguments = parse_words("--model.hidden-size", "3", "--rate", "0.5", "--folder", "a")
    assert arguments == Arguments(Inner(hidden_size=3), Path("a"), 0.5)
    assert parse_words() == Arguments()


@pytest.mark.parametrize("columns", ["200", "40"])
@pytest.mark.parametrize(
    ("words", "mentioned"),
    [
        (["--model.hiden-size", "3"], ["--model.hiden-size", "--model.hidden-size"]),
        (["--model.hidden-size", "three"], ["--model.hidden-size", "'three'"]),
        (["--model.hidden-size", "3.5"], ["--model.hidden-size", "'3.5'"]),
        (["--model.schedule", "cosin"], ["--model.schedule", "'cosin'", "'constant', 'cosine'"]),
        (["--rate", "fast"], ["--rate", "fast"]),
        (["--rate"], ["--rate"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_mistake_on_the_command_line_is_one_plain_line(monkeypatch, words, mentioned, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(UserError) as caught:
        parse_words(*words)
    message = str(caught.value)
    assert [word for word in mentioned if word not in message] == []
    assert message.endswith("; see scripts/a.py --help")
    assert message.isprintable()  # neither a newline nor an escape sequence
    assert not set("╭╰│─") & set(message)


def test_help_lists_the_fields_and_exits_with_status_zero(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_words("--help")
    assert not caught.value.code
    out = capsys.readouterr().out
    assert "Runs a." in out
    assert "--model.hidden-size" in out
    assert "Hidden units per direction." in out


# Exit statuses


def run_script(body: str, pipe: str = "") -> subprocess.CompletedProcess:
    """Runs a script whose `main` has this body, its output piped through `pipe`."""
    code = "from bilstm_attn.errors import UserError\n"
    code += "from bilstm_attn.runtime.cli import run_script\n"
    code += "from bilstm_attn.runtime.console import Console\n"
    code += f"def main(arguments):\n{textwrap.indent(body, '    ')}\nrun_script(main)\n"
    command = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {pipe}', sys.executable, code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_user_error_is_one_line_with_status_two():
    done = run_script("print('before'); raise UserError('give more')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "before\n", "error: give more\n")


def test_script_exits_with_the_status_of_main():
    assert run_script("return 130").returncode == 130
    assert run_script("return 0").returncode == 0


def test_interrupt_is_one_line_with_status_130():
    done = run_script("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "stopped\n")


@pytest.mark.parametrize(
    "body",
    [
        "for number in range(100_000): print(number)",
        "for number in range(100_000): print(number, flush=True)",
        "for number in range(10_000): Console().print(str(number))",
        # The last line is still in the buffer when main returns, after head has exited.
        "import time; print(0, flush=True); time.sleep(0.5); print(1)",
    ],
)
def test_closed_pipe_gives_no_traceback(body):
    done = run_script(body, "| head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (1, "0\n", "")


def test_other_exceptions_keep_their_traceback():
    done = run_script("raise ZeroDivisionError")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("path", sorted(ROOT.glob("scripts/*.py")), ids=lambda path: path.stem)
def test_help_of_a_script_starts_with_its_name(path):
    environment = os.environ | {"COLUMNS": "100", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, path, "--help"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: scripts/{path.name}" in done.stdout

"""What a person sees: one line an error, no colours where they are not wanted."""

import dataclasses
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console as RichConsole

from bilstm_attn.errors import UserError
from bilstm_attn.explain.text_shading import shade_words
from bilstm_attn.runtime.cli import parse
from bilstm_attn.runtime.console import Console, percent

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Inner:
    hidden_size: int = 64
    """Hidden units of one direction."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    model: Inner = Inner()
    folder: Path = Path()
    """Where."""
    rate: float | None = None
    """How much."""


def parsed(*words: str) -> Arguments:
    return parse(Arguments, words, program="scripts/a.py", description="Does a.")


def test_fields_come_from_the_command_line():
    found = parsed("--model.hidden-size", "3", "--rate", "0.5", "--folder", "a")
    assert found == Arguments(Inner(hidden_size=3), Path("a"), 0.5)
    assert parsed() == Arguments()


@pytest.mark.parametrize("columns", ["200", "40"])
@pytest.mark.parametrize(
    ("words", "says"),
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
def test_mistake_on_the_command_line_is_one_plain_line(monkeypatch, words, says, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(UserError) as caught:
        parsed(*words)
    message = str(caught.value)
    assert [word for word in says if word not in message] == []
    assert message.endswith("; see scripts/a.py --help")
    assert message.isprintable()  # no newline, no colour
    assert not set("╭╰│─") & set(message)


def test_help_lists_fields_and_leaves_with_status_zero(capsys):
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert not caught.value.code
    out = capsys.readouterr().out
    assert "Does a." in out
    assert "--model.hidden-size" in out
    assert "Hidden units of one direction." in out


# Scripts


def run_script(body: str, pipe: str = "") -> subprocess.CompletedProcess:
    """Runs a script whose `main` has this body, and its output through `pipe`."""
    code = "from bilstm_attn.errors import UserError\n"
    code += "from bilstm_attn.runtime.cli import run_script\n"
    code += "from bilstm_attn.runtime.console import Console\n"
    code += f"def main(arguments):\n{textwrap.indent(body, '    ')}\nrun_script(main)\n"
    command = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {pipe}', sys.executable, code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_user_error_is_one_line_and_status_two():
    done = run_script("print('before'); raise UserError('give more')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "before\n", "error: give more\n")


def test_status_of_main_is_the_scripts():
    assert run_script("return 130").returncode == 130
    assert run_script("return 0").returncode == 0


def test_interrupt_is_one_line_and_status_130():
    done = run_script("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "stopped\n")


@pytest.mark.parametrize(
    "body",
    [
        "for number in range(100_000): print(number)",
        "for number in range(100_000): print(number, flush=True)",
        "for number in range(10_000): Console().print(str(number))",
        # All of it still in the buffer when main returns, and head has gone.
        "import time; print(0, flush=True); time.sleep(0.5); print(1)",
    ],
)
def test_closed_pipe_is_no_traceback(body):
    done = run_script(body, "| head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (1, "0\n", "")


def test_other_faults_keep_their_traceback():
    done = run_script("raise ZeroDivisionError")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


# Lines and bars

RECORD = {
    "epoch": 2,
    "train_loss": 0.51234,
    "train_accuracy": 0.75,
    "test_loss": 0.25,
    "test_accuracy": 0.87934,
    "examples_per_second": 12345.6,
    "seconds": 9.87,
}


def shown(terminal: bool, draw) -> str:
    file = io.StringIO()
    console = RichConsole(
        file=file, force_terminal=terminal, width=60, highlight=False, soft_wrap=True
    )
    draw(Console(console))
    return file.getvalue()


def test_line_of_an_epoch_is_one_line_however_narrow_the_terminal():
    assert shown(False, lambda console: console.epoch(RECORD, "test")) == (
        "epoch 2  train loss 0.5123 accuracy 75.00 %  test loss 0.2500 accuracy 87.93 %  "
        "12,346 reviews/s  9.9 s\n"
    )


def draw_bar(console: Console) -> None:
    with console.bar("epoch 1/3", 10, 4) as bar:
        bar.advance(3)
        bar.describe("loss 0.5")


def test_bar_is_drawn_on_a_terminal_alone():
    assert shown(False, draw_bar) == ""
    drawn = shown(True, draw_bar)
    assert "7/10" in drawn
    assert "loss 0.5" in drawn


def test_markup_in_what_is_said_stays_as_it_is():
    assert shown(False, lambda console: console.print("[bold]a[/bold] [x")) == "[bold]a[/bold] [x\n"


def test_no_color_leaves_no_colour(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[3" in shown(True, draw_bar)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in shown(True, draw_bar)


@pytest.mark.parametrize("path", sorted(ROOT.glob("scripts/*.py")), ids=lambda path: path.stem)
def test_help_of_a_script_names_it(path):
    environment = os.environ | {"COLUMNS": "100", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, path, "--help"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: scripts/{path.name}" in done.stdout


def test_shades_stay_on_their_words_after_control_characters():
    text = "good\r\nbad\x07 end"
    shaded = shade_words(text, [(0, 4), (6, 9), (11, 14)], [1.0, -0.5, 0.25], signed=True)
    assert len(shaded.plain) == len(text)
    assert [shaded.plain[slice(*span[:2])] for span in shaded.spans] == ["good", "bad", "end"]


def test_percent_has_two_places():
    assert percent(0.87934) == "87.93 %"

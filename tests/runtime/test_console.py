"""Lines and progress bars, on a terminal and elsewhere."""

import io

from rich.console import Console as RichConsole

from bilstm_attn.runtime.console import Console, percent
from bilstm_attn.training.metrics_log import describe_epoch

RECORD = {
    "epoch": 2,
    "train_loss": 0.51234,
    "train_accuracy": 0.75,
    "test_loss": 0.25,
    "test_accuracy": 0.87934,
    "examples_per_second": 12345.6,
    "seconds": 9.87,
}


def output(terminal: bool, draw) -> str:
    """Returns what `draw` prints to a console, which is a terminal or a file."""
    file = io.StringIO()
    console = RichConsole(
        file=file, force_terminal=terminal, width=60, highlight=False, soft_wrap=True
    )
    draw(Console(console))
    return file.getvalue()


def test_line_of_an_epoch_is_one_line_however_narrow_the_terminal():
    assert output(False, lambda console: console.print(describe_epoch(RECORD, "test"))) == (
        "epoch 2  train loss 0.5123 accuracy 75.00 %  test loss 0.2500 accuracy 87.93 %  "
        "12,346 examples/s  9.9 s\n"
    )


def draw_bar(console: Console) -> None:
    with console.bar("epoch 1/3", 10, 4) as bar:
        bar.advance(3)
        bar.describe("loss 0.5")


def test_progress_bar_is_drawn_only_on_a_terminal():
    assert output(False, draw_bar) == ""
    drawn = output(True, draw_bar)
    assert "7/10" in drawn
    assert "loss 0.5" in drawn


def test_square_brackets_in_a_line_are_printed_unchanged():
    line = "[bold]a[/bold] [x"
    assert output(False, lambda console: console.print(line)) == f"{line}\n"


def test_no_color_in_the_environment_disables_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[3" in output(True, draw_bar)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in output(True, draw_bar)


def test_percent_has_two_decimals():
    assert percent(0.87934) == "87.93 %"

"""The linter, the formatter and the type checker report nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "tool",
    ["ruff check .", "ruff format --check .", pytest.param("basedpyright", marks=pytest.mark.slow)],
)
def test_tool_reports_nothing(tool):
    name, *arguments = tool.split()
    if name == "basedpyright":
        arguments += ["--pythonpath", sys.executable]
    process = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr

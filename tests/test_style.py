"""The linters, as part of the tests, so that one command runs all that CI runs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "tool",
    ["ruff check .", "ruff format --check .", pytest.param("basedpyright", marks=pytest.mark.slow)],
)
def test_tool_finds_nothing(tool):
    name, *words = tool.split()
    if name == "basedpyright":
        words += ["--pythonpath", sys.executable]
    done = subprocess.run(
        [sys.executable, "-m", name, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

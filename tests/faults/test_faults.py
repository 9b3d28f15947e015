"""The short form of the harness: in a process of its own, which has not used jax."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_nothing_is_lost():
    command = [sys.executable, Path(__file__).with_name("harness.py"), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 16
    assert all(row.endswith("| 0 |") for row in rows)

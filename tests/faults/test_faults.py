"""The short form of the fault harness, in a process that has not used JAX."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_injected_fault_is_survived():
    command = [sys.executable, Path(__file__).with_name("harness.py"), "--short"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert process.returncode == 0, process.stderr
    rows = [line for line in process.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 16
    assert all(row.endswith("| 0 |") for row in rows)

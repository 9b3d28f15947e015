"""The short form of the harness: in a process of its own, which has not used jax."""

import subprocess
import sys
from pathlib import Path


def test_nothing_is_lost():
    command = [sys.executable, Path(__file__).with_name("harness.py"), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[2:]
    assert len(lines) == 13
    assert all(line.endswith("| 0 |") for line in lines)

"""Several processes that train the tiny recipe together, on 127.0.0.1."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tiny_run import FIELDS, ROOT

from bilstm_attn.training.run_dir import RunDir

SECONDS = 120  # for processes that share two cores with others


def free_port() -> int:
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


def start(folder: Path, processes: int, *more: str, **of_process: Any) -> list:
    """Starts the tiny recipe in so many processes of one device.

    `p1=[...]` are words for process 1 alone, `path1` is where it finds modules first.
    """
    words = [ROOT / "scripts" / "train.py", "quickstart", "--name", "tiny", "--distributed"]
    words += [word for name, value in FIELDS.items() for word in (f"--{name}", value)]
    words += ["--runs", folder / "runs", "--cache", folder / "cache", "--log-every-steps", 2]
    words += ["--devices", 1, "--coordinator", f"127.0.0.1:{free_port()}"]
    words += ["--processes", processes, *more]
    here = os.environ.get("PYTHONPATH")
    return [
        subprocess.Popen(
            [str(word) for word in (sys.executable, *words, *own, "--process-id", number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [first, here]))},
        )
        for number in range(processes)
        for own, first in [(of_process.get(f"p{number}", []), of_process.get(f"path{number}"))]
    ]


def end(started: list) -> list[tuple[int, str, str]]:
    """Returns status, output and errors of each process."""
    try:
        said = [process.communicate(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *lines) for process, lines in zip(started, said, strict=True)]


def losses(run: RunDir) -> list[float]:
    return [r[name] for r in run.records() for name in ("loss", "train_loss") if name in r]


def digests(run: RunDir) -> list[str]:
    folders = sorted(run.checkpoints.iterdir(), key=lambda path: int(path.name))
    return [json.loads((at / "record/metadata").read_text())["state_sha256"] for at in folders]


def wait_for(path: Path) -> None:
    """Returns when there is such a file."""
    until = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)

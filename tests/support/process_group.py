"""Starts, waits for and inspects processes that train one tiny run together on 127.0.0.1."""

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

TIMEOUT_SECONDS = 120  # processes may share two cores with other tests


def free_port() -> int:
    with socket.socket() as local:
        local.bind(("127.0.0.1", 0))
        return local.getsockname()[1]


def start(folder: Path, processes: int, *more: str, **of_process: Any) -> list:
    """Starts `processes` processes with one device each; returns `subprocess.Popen` objects.

    `p1=[...]` are arguments of process 1 only; `path1=folder` precedes its module search path.
    """
    command = [ROOT / "scripts" / "train.py", "quickstart", "--name", "tiny", "--distributed"]
    command += [word for name, value in FIELDS.items() for word in (f"--{name}", value)]
    command += ["--runs", folder / "runs", "--cache", folder / "cache", "--log-every-steps", 2]
    command += ["--devices", 1, "--coordinator", f"127.0.0.1:{free_port()}"]
    command += ["--processes", processes, *more]
    started = []
    for number in range(processes):
        arguments = [*command, *of_process.get(f"p{number}", []), "--process-id", number]
        paths = of_process.get(f"path{number}"), os.environ.get("PYTHONPATH")
        process = subprocess.Popen(
            [str(argument) for argument in (sys.executable, *arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        started.append(process)
    return started


def end(started: list) -> list[tuple[int, str, str]]:
    """Waits for all processes; returns the status, output and error output of each."""
    try:
        outputs = [process.communicate(timeout=TIMEOUT_SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *output) for p, output in zip(started, outputs, strict=True)]


def losses(run: RunDir) -> list[float]:
    """Returns all training losses in the metrics of a run."""
    return [r[name] for r in run.records() for name in ("loss", "train_loss") if name in r]


def digests(run: RunDir) -> list[str]:
    """Returns the digest of the training state in every checkpoint of a run."""
    folders = sorted(run.checkpoints.iterdir(), key=lambda path: int(path.name))
    records = [json.loads((folder / "record/metadata").read_text()) for folder in folders]
    return [record["state_sha256"] for record in records]


def wait_for(path: Path) -> None:
    """Waits until a file exists."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)

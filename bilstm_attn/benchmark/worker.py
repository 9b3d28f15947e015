"""The worker process of one implementation: reads commands, writes one JSON line for each."""

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bilstm_attn.benchmark.peer import Peer, Setting, Unmeasured
from bilstm_attn.benchmark.peers import PEERS
from bilstm_attn.benchmark.workload import Workload, load_workload, make_params
from bilstm_attn.config import ModelConfig
from bilstm_attn.errors import UserError

COMMANDS: dict[str, Callable[[Peer, Workload], Any]] = {
    "first step": lambda peer, workload: peer.train_step(workload.batch),
    "train": lambda peer, workload: peer.train_step(workload.batch),
    "logits": lambda peer, workload: peer.logits(workload.batch),
    "single": lambda peer, workload: peer.logits(workload.single),
    "epoch": lambda peer, workload: peer.train_epoch(workload.epoch),
    "layers": lambda peer, workload: peer.encoder_gradient(workload.batch),
}


def setting_to_json(setting: Setting) -> str:
    """Returns a setting as JSON, for the command line of a worker."""
    return json.dumps(setting._asdict() | {"config": dataclasses.asdict(setting.config)})


def setting_from_json(text: str) -> Setting:
    """Returns the setting that `setting_to_json` wrote."""
    fields = json.loads(text)
    return Setting(**fields | {"config": ModelConfig(**fields["config"])})


def run_command(command: str, peer: Peer, workload: Workload) -> dict[str, Any]:
    """Runs a command; returns seconds, page faults, peak memory in MiB, and the logits if any.

    Each call except the first step and the epoch is preceded by an untimed one, so that it finds
    warm memory as it would in a loop.
    """
    try:
        if command not in ("first step", "epoch"):
            COMMANDS[command](peer, workload)
    except Unmeasured as error:
        return {"missing": str(error)}
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    logits = COMMANDS[command](peer, workload)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "faults": float(after.ru_minflt - before.ru_minflt),
        "peak_mib": after.ru_maxrss / 1024,
        "logits": None if logits is None else [float(value) for value in logits],
    }


def main(name: str, path: str, setting_json: str) -> None:
    """Builds the implementation `name`, then runs each command on standard input.

    Args:
      name: a name in `PEERS`.
      path: the file of the workload.
      setting_json: the setting, as JSON.
    """
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print to standard output
    setting, workload = setting_from_json(setting_json), load_workload(Path(path))
    params = make_params(setting.config)
    # Our own layers set their precision themselves; this is for the other implementations in JAX.
    jax.config.update("jax_default_matmul_precision", setting.config.matmul_precision)
    try:
        if setting.on_gpu and (setting.devices or 1) > 1 and not name.startswith("ours"):
            raise Unmeasured("it runs on one GPU")
        peer = PEERS[name](params, setting)
    except (ImportError, Unmeasured, UserError) as error:
        print(json.dumps({"missing": str(error)}), file=out, flush=True)
        return
    print(json.dumps({}), file=out, flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "logits":
            peer.set_params(params)  # training steps changed the parameters of some peers
        print(json.dumps(run_command(command, peer, workload)), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

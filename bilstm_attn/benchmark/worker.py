"""A process that runs one implementation: commands on standard input, a JSON line back for each."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bilstm_attn.benchmark.peer import VOCABULARY, Peer, Setting, Unmeasured
from bilstm_attn.benchmark.peers import PEERS
from bilstm_attn.config import ModelConfig
from bilstm_attn.errors import UserError
from bilstm_attn.nn.model import Model
from bilstm_attn.types import Batch, Params

FIELDS = ("tokens", "length", "label", "weight")  # of a batch


class Work(NamedTuple):
    """What all implementations are given."""

    batch: Batch  # for a training step, and for inference
    one: Batch  # a single review, without padding
    epoch: list[tuple[Batch, ...]]  # some batches of an epoch, each in its groups

    @property
    def rows(self) -> int:
        """What divides every batch's rows."""
        groups = [group for groups in self.epoch for group in groups]
        return int(np.gcd.reduce([len(part.length) for part in (self.batch, *groups)]))


def save_work(file: Path, work: Work) -> None:
    """Writes `work` so that `load_work` reads it back."""
    parts = {"batch": work.batch, "one": work.one} | {
        f"epoch {step} {group}": part
        for step, groups in enumerate(work.epoch)
        for group, part in enumerate(groups)
    }
    arrays: dict[str, Any] = {
        f"{name}.{field}": np.asarray(array)
        for name, part in parts.items()
        for field, array in zip(FIELDS, part, strict=False)
    }
    np.savez(file, **arrays)


def load_work(file: Path) -> Work:
    """Returns what `save_work` wrote."""
    with np.load(file) as arrays:
        names = dict.fromkeys(name.split(".")[0] for name in arrays)
        parts = {
            name: Batch(**{field: arrays[f"{name}.{field}"] for field in FIELDS}) for name in names
        }
    steps: dict[str, list[Batch]] = {}
    for name, part in parts.items():
        if name.startswith("epoch"):
            steps.setdefault(name.split()[1], []).append(part)
    return Work(parts["batch"], parts["one"], [tuple(groups) for groups in steps.values()])


def make_params(config: ModelConfig) -> Params:
    """Returns the parameters that all implementations get: logits of size 1 come of them.

    By NumPy, since what first runs in jax settles how many devices a CPU is.
    """
    model, noise = Model(config, VOCABULARY), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return jax.tree.map(lambda leaf: noise.normal(0, 0.4, leaf.shape).astype(np.float32), shapes)


COMMANDS: dict[str, Callable[[Peer, Work], Any]] = {
    "first step": lambda peer, work: peer.train(work.batch),
    "train": lambda peer, work: peer.train(work.batch),
    "logits": lambda peer, work: peer.logits(work.batch),
    "one": lambda peer, work: peer.logits(work.one),
    "epoch": lambda peer, work: peer.epoch(work.epoch),
    "layers": lambda peer, work: peer.layers(work.batch),
}


def answer(command: str, peer: Peer, work: Work) -> dict[str, Any]:
    """Runs a command; returns seconds, page faults, peak memory, and the logits if any.

    All but the first step and an epoch run once before, so that they are timed as in a loop: what
    memory a process gave back, it gets again the faster the less has happened since.
    """
    try:
        if command not in ("first step", "epoch"):
            COMMANDS[command](peer, work)
    except Unmeasured as error:
        return {"missing": str(error)}
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = COMMANDS[command](peer, work)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "faults": float(after.ru_minflt - before.ru_minflt),
        "peak_mib": after.ru_maxrss / 1024,
        "logits": None if result is None else [float(value) for value in result],
    }


def main(name: str, file: str, setting: str) -> None:
    """Makes the implementation, then answers a line for each line read.

    `setting` is JSON: fields of the model's config, and `devices` and `on_gpu`.
    """
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    sizes = json.loads(setting)
    devices, on_gpu = sizes.pop("devices"), sizes.pop("on_gpu")
    work, config = load_work(Path(file)), ModelConfig(**sizes)
    params = make_params(config)
    jax.config.update(
        "jax_default_matmul_precision", config.matmul_precision
    )  # of the others in JAX
    try:
        if on_gpu and (devices or 1) > 1 and not name.startswith("ours"):
            raise Unmeasured("it runs on one GPU")
        peer = PEERS[name](params, Setting(config, work.rows, devices, on_gpu))
    except (ImportError, Unmeasured, UserError) as error:
        print(json.dumps({"missing": str(error)}), file=out, flush=True)
        return
    print(json.dumps({}), file=out, flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "logits":
            peer.fill(params)  # training has moved some implementations' own
        print(json.dumps(answer(command, peer, work)), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A process that runs one implementation: commands on standard input, a JSON line back for each."""

import json
import resource
import sys
import time

import jax
import numpy as np

from bilstm_attn.benchmark.peers import CONFIG, PEERS, VOCABULARY
from bilstm_attn.model import Model
from bilstm_attn.types import Batch, Params


def make_params() -> Params:
    """Returns the parameters that all implementations get: logits of size 1 come of them."""
    params = Model(CONFIG, VOCABULARY).init(jax.random.key(0))
    leaves, shape = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(shape, [np.asarray(leaf) for leaf in moved])


def answer(command: str, peer: object, name: str) -> dict:
    """Runs `train` or `logits`; returns seconds, page faults, peak memory, and the logits."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = getattr(peer, command)()
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "peer": name,
        "command": command,
        "seconds": seconds,
        "faults": after.ru_minflt - before.ru_minflt,
        "peak_mib": after.ru_maxrss / 1024,
        "logits": None if result is None else [float(value) for value in result],
    }


def main(name: str, batch_file: str) -> None:
    """Makes the implementation, then answers a line for each line read."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    with np.load(batch_file) as arrays:
        batch = Batch(**{field: arrays[field] for field in Batch._fields})
    begun = time.perf_counter()
    try:
        peer = PEERS[name](make_params(), batch)
    except ImportError as error:
        print(json.dumps({"peer": name, "missing": str(error)}), file=out, flush=True)
        return
    made = {"peer": name, "command": "make", "seconds": time.perf_counter() - begun}
    print(json.dumps(made), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(line.strip(), peer, name)), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

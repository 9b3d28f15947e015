"""One pass over a split: every review's logit, once, in the split's order."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from bilstm_attn.checkpoint import write_file
from bilstm_attn.config import DataConfig
from bilstm_attn.data.batches import Examples, plan_by_length, read_batch
from bilstm_attn.metrics import sigmoid
from bilstm_attn.model import Model
from bilstm_attn.sharding import ROWS, WHOLE, own_part, place_rows
from bilstm_attn.types import Batch, Logits, Params

LogitsOf = Callable[[Params, Batch], Float[Array, " b"]]


def make_logits_step(model: Model, mesh: Mesh) -> LogitsOf:
    """Returns the compiled function from parameters and a batch on the mesh to logits `[b]`."""

    def logits_of(params: Params, batch: Batch) -> Logits:
        return model(params, batch.tokens, batch.length).logits

    # check_vma=False: the native kernel does not say what it varies over.
    over_mesh = jax.shard_map(
        logits_of, mesh=mesh, in_specs=(WHOLE, ROWS), out_specs=ROWS, check_vma=False
    )
    return jax.jit(over_mesh, out_shardings=NamedSharding(mesh, WHOLE))


def predict_logits(
    logits_of: LogitsOf,
    params: Params,
    examples: Examples,
    config: DataConfig,
    mesh: Mesh,
    advance: Callable[[int], object] = lambda reviews: None,
) -> np.ndarray:
    """Returns the logit of every example, `float32[n]`, in the examples' order.

    `advance` is called with the number of reviews done since the last call.
    """
    logits = np.full(examples.size, np.nan, np.float32)
    waiting = None

    def collect(plan, device_logits) -> None:
        own = plan.slots >= 0
        logits[plan.slots[own]] = np.asarray(device_logits)[own]
        advance(plan.size)

    for plan in plan_by_length(examples.lengths, config):
        (group,) = place_rows(read_batch(examples, plan, config, own_part(mesh)), mesh)
        dispatched = plan, logits_of(params, group)
        if waiting is not None:
            collect(*waiting)  # while the device works on the next batch
        waiting = dispatched
    if waiting is not None:
        collect(*waiting)
    return logits


def save_predictions(path: Path, examples: Examples, logits: np.ndarray) -> None:
    """Writes a JSON line a review: its row in the split, its label, its probability."""
    lines = [
        json.dumps({"row": int(row), "label": int(label), "probability": round(float(p), 6)})
        for row, label, p in zip(examples.rows, examples.labels, sigmoid(logits), strict=True)
    ]
    write_file(path, ("\n".join(lines) + "\n").encode())

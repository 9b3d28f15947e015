"""One pass over a split: the logit of every example, in the order of the split."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from bilstm_attn.config import DataConfig
from bilstm_attn.data.batches import BatchPlan, plan_by_length, read_batch
from bilstm_attn.data.splits import Examples
from bilstm_attn.errors import UserError
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.tasks import Task
from bilstm_attn.runtime.devices import REPLICATED, SHARDED, process_part, shard_rows
from bilstm_attn.runtime.files import write_atomically
from bilstm_attn.types import Batch, Logits, Params

Rows = Int[Array, " b"]  # of the split
LogitsOf = Callable[[Params, Batch], Float[Array, " b"]]


def make_step(function: Callable[[Params, Any], Any], mesh: Mesh) -> Callable[[Params, Any], Any]:
    """Compiles `function(params, rows)` for the mesh: rows are sharded, results are replicated."""
    # check_vma=False: the native kernel does not declare over which axes its results vary.
    over_mesh = jax.shard_map(
        function, mesh=mesh, in_specs=(REPLICATED, SHARDED), out_specs=SHARDED, check_vma=False
    )
    return jax.jit(over_mesh, out_shardings=NamedSharding(mesh, REPLICATED))


def make_logits_step(model: Model, mesh: Mesh) -> LogitsOf:
    """Returns the compiled function from parameters and a batch on the mesh to logits `[b]`."""

    def logits_of(params: Params, batch: Batch) -> Logits:
        return model(params, batch.tokens, batch.length).logits

    return make_step(logits_of, mesh)


def map_examples(
    step: Callable[[Params, Batch, Rows], Any],
    params: Params,
    examples: Examples,
    config: DataConfig,
    mesh: Mesh,
    advance: Callable[[int], object] = lambda examples: None,
) -> Any:
    """Applies `step` to every example; results are in the original order.

    Its results are arrays `[b]` or `[b t]`; the latter are padded with zeros to
    `config.max_tokens`. `advance` is called with the number of examples done since the last call.
    """
    collected, waiting = [], None

    def collect(plan: BatchPlan, on_device: Any) -> None:
        own = plan.slots >= 0
        found = jax.tree.map(lambda leaf: np.asarray(leaf)[own], on_device)
        collected.append((plan.slots[own], found))
        advance(plan.size)

    for plan in plan_by_length(examples.lengths, config):
        (group,) = read_batch(examples, plan, config, part := process_part(mesh))
        rows: Any = examples.rows[np.split(plan.slots, part.parts)[part.number]].astype(np.int32)
        dispatched = plan, step(params, *shard_rows((group, rows), mesh))
        if waiting is not None:
            collect(*waiting)  # while the device works on the next batch
        waiting = dispatched
    if waiting is not None:
        collect(*waiting)

    def join(*parts: np.ndarray) -> np.ndarray:
        shape = (examples.size, *[config.max_tokens] * (parts[0].ndim - 1))
        whole = np.zeros(shape, parts[0].dtype)
        for (slots, _), part in zip(collected, parts, strict=True):
            whole[(slots, *(slice(size) for size in part.shape[1:]))] = part
        return whole

    return jax.tree.map(join, *(found for _, found in collected))


def predict_logits(
    logits_of: LogitsOf,
    params: Params,
    examples: Examples,
    config: DataConfig,
    mesh: Mesh,
    advance: Callable[[int], object] = lambda examples: None,
) -> np.ndarray:
    """Returns the logit of every example, `float32[n]`, in the examples' order."""

    def step(params: Params, batch: Batch, rows: Rows) -> Float[Array, " b"]:
        del rows
        return logits_of(params, batch)

    return map_examples(step, params, examples, config, mesh, advance)


def require_finite(logits: np.ndarray, where: str) -> None:
    """Raises a `UserError` if a logit on `where` is not finite."""
    if not np.isfinite(logits).all():
        raise UserError(
            f"the model's logits on {where} are not finite; its training has diverged: "
            "train again with a lower --optim.learning-rate"
        )


def save_predictions(path: Path, examples: Examples, logits: np.ndarray, task: Task) -> None:
    """Writes a JSON line per example: row in the split, label, probability of the last label."""
    probabilities = task.probabilities(logits)[:, -1]
    lines = [
        json.dumps({"row": int(row), "label": int(label), "probability": round(float(p), 6)})
        for row, label, p in zip(examples.rows, examples.labels, probabilities, strict=True)
    ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())

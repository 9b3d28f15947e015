"""The training loop, of one seed or of several in one program."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from bilstm_attn.config import Config
from bilstm_attn.data.batches import BatchPlan, read_batch
from bilstm_attn.inference.evaluate import LogitsOf, make_logits_step, predict_logits
from bilstm_attn.inference.exported import export_model
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.tasks import make_task
from bilstm_attn.registry import make
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import process_part, replicate, rows_shape, rows_spec, shard_rows
from bilstm_attn.runtime.distributed import max_over_processes, on_main_process
from bilstm_attn.runtime.files import tree_sha256
from bilstm_attn.runtime.signals import Interrupted, interruptible
from bilstm_attn.training.metrics_log import MetricsLog, divergence_error, means_of
from bilstm_attn.training.objectives import OBJECTIVES, Objective
from bilstm_attn.training.optim import make_optimizer
from bilstm_attn.training.seed_replica import SeedReplica
from bilstm_attn.training.step import (
    TrainState,
    TrainStep,
    initial_state,
    make_train_step,
    stack,
    unstack,
)
from bilstm_attn.types import Params

PROOF_STEP = 10  # after this step the digest of the state is logged, for `--verify`
STOP_CHECK_STEPS = 10  # how often the processes agree on whether to stop


def train(
    replicas: Sequence[SeedReplica],
    model: Model,
    *,
    mesh: Mesh,
    console: Console,
    log_every_steps: int = 10,
    until_step: int | None = None,
    on_epoch: Callable[[dict[str, Any]], object] = lambda record: None,
) -> None:
    """Trains to the last epoch of the config, from the newest checkpoints if there are any.

    Stops after `until_step` if given, without saving. With several seeds, whose configs differ in
    nothing else, all are trained in one program; each matches its single-seed run up to rounding.

    `on_epoch` is called with a copy of the record of each epoch trained, after its checkpoint is
    handed over for saving. It may raise to stop early, as a tuner does to prune a trial; the
    exception is passed on, and the run can be resumed.

    Raises:
      UserError: the loss is not finite, or a run cannot be written. Earlier checkpoints are intact.
      Interrupted: Ctrl-C was pressed, or SIGTERM came.
    """
    config, reviews = replicas[0].config, replicas[0].training.size
    steps_per_epoch = -(-reviews // config.data.batch_size)
    objective = make(
        "objective", OBJECTIVES, config.train.objective, config.train.objective_options
    )
    optimizer = make_optimizer(config.optim, steps_per_epoch * config.train.epochs)
    step_fn = make_train_step(
        model, objective, optimizer, mesh, config.train.microbatches, len(replicas)
    )
    logits_of = make_logits_step(model, mesh)
    keys = replicate(stack([np.asarray(jax.random.key_data(m.key)) for m in replicas]), mesh)
    key = jax.random.wrap_key_data(keys)
    rows, part = rows_spec(len(replicas)), process_part(mesh)

    with ExitStack() as stack_of_contexts:
        for replica in replicas:
            stack_of_contexts.enter_context(replica.checkpoints)
        stops = stack_of_contexts.enter_context(interruptible())
        firsts = [
            initial_state(
                model, objective, optimizer, replica.config.seed, replica.initial_values(model)
            )
            for replica in replicas
        ]
        states, records = _restore(replicas, firsts, console)
        state, step = replicate(stack(states), mesh), int(states[0].step)
        logs, spent = [], records[0]["seconds"]  # spent on an interrupted epoch
        for at, (replica, record) in enumerate(zip(replicas, records, strict=True)):
            replica.run.rewind(step, record["metrics"])
            replica.checkpoints.rewind(step)
            place = () if len(replicas) == 1 else (at,)
            pending = record["pending"]
            logs.append(MetricsLog(replica.run, objective, log_every_steps, pending, place))
        to_run = {
            epoch: _plan_epoch(replicas, epoch)
            for epoch in range(len(replicas[0].epochs), config.train.epochs)
        }
        layouts = {plans[0].edges for steps in to_run.values() for plans in steps}
        compiled = {}
        if layouts:
            compiled = _compile(step_fn, state, key, config, layouts, mesh, len(replicas), console)
        for epoch, steps in to_run.items():
            begun, spent = time.perf_counter() - spent, 0.0
            done = step - epoch * steps_per_epoch
            if not done:
                zeros = stack([objective.zero_terms()] * len(replicas))
                state = state._replace(terms=replicate(zeros, mesh))
            reviews_done = sum(plans[0].size for plans in steps[:done])
            with console.bar(
                f"epoch {epoch + 1}/{config.train.epochs}", reviews, reviews_done
            ) as bar:
                for plans in steps[done:]:
                    batch = stack(
                        [
                            read_batch(replica.training, plan, config.data, part)
                            for replica, plan in zip(replicas, plans, strict=True)
                        ]
                    )
                    groups = shard_rows(batch, mesh, rows)
                    state, terms = compiled[plans[0].edges](state, groups, key)
                    step += 1
                    for log in logs:
                        log.add(step, epoch + 1, terms)
                    bar.advance(plans[0].size)
                    bar.describe(logs[0].latest)
                    if step == min(PROOF_STEP, steps_per_epoch):
                        _log_proof(replicas, state, step, objective.minimised[0])
                    if step == until_step:
                        return
                    if plans is not steps[-1] and (stop := _stop_signal(stops, step)):
                        seconds = time.perf_counter() - begun
                        pending = [log.pending() for log in logs]
                        _save(replicas, step, state, pending, seconds)
                        raise Interrupted(step, stop)
            seconds = time.perf_counter() - begun
            for replica, log, own in zip(
                replicas, logs, unstack(state, len(replicas)), strict=True
            ):
                log.flush()
                _end_epoch(replica, own, objective, logits_of, seconds, mesh, console)
            _save(replicas, step, state, [[] for _ in replicas], 0.0)
            for replica in replicas:
                prefix = f"seed {replica.config.seed}  " if len(replicas) > 1 else ""
                console.epoch(replica.epochs[-1], config.train.eval_split, prefix)
            for replica in replicas:
                on_epoch(dict(replica.epochs[-1]))
            if epoch + 1 < config.train.epochs and (stop := _stop_signal(stops)):
                raise Interrupted(step, stop)


def _restore(
    replicas: Sequence[SeedReplica], firsts: list[TrainState], console: Console
) -> tuple[list[TrainState], list[dict[str, Any]]]:
    """Returns the state and record of every seed at the newest step that all of them have."""
    step: int | None = None
    while True:
        found = [
            replica.restore(first, console, step)
            for replica, first in zip(replicas, firsts, strict=True)
        ]
        steps = [int(state.step) for state, _ in found]
        if len(set(steps)) == 1:
            break
        step = min(steps)
    if any(replica.checkpoints.steps() for replica in replicas):
        console.print(f"resuming at step {steps[0]}")
    return [state for state, _ in found], [record for _, record in found]


def _plan_epoch(replicas: Sequence[SeedReplica], epoch: int) -> list[tuple[BatchPlan, ...]]:
    """Returns the batches of an epoch, one per seed and step, padded alike within a step."""
    together = []
    for plans in zip(*(replica.plan(epoch) for replica in replicas), strict=True):
        edges = tuple(map(max, zip(*(plan.edges for plan in plans), strict=True)))
        together.append(tuple(plan._replace(edges=edges) for plan in plans))
    return together


def _stop_signal(stops: list[int], step: int = 0) -> int:
    """Returns the signal that requests a stop, received by any process, or 0."""
    if jax.process_count() > 1 and step % STOP_CHECK_STEPS:
        return 0
    return max_over_processes(stops[0] if stops else 0)


def _save(
    replicas: Sequence[SeedReplica],
    step: int,
    state: TrainState,
    pending: list[Any],
    seconds: float,
) -> None:
    """Saves every replica's state at `step`."""
    for replica, own, waiting in zip(replicas, unstack(state, len(replicas)), pending, strict=True):
        replica.checkpoints.save(step, own, replica.record(waiting, seconds))


def _log_proof(
    replicas: Sequence[SeedReplica], state: TrainState, step: int, reference: str
) -> None:
    """Logs the digest of the state and the loss so far, which `--verify` compares."""
    for replica, own in zip(replicas, unstack(jax.device_get(state), len(replicas)), strict=True):
        proof = {"state_sha256": tree_sha256(own), "loss": float(own.terms[reference].sum)}
        replica.run.log({"kind": "proof", "step": step, **proof})


def _end_epoch(
    replica: SeedReplica,
    state: TrainState,
    objective: Objective,
    logits_of: LogitsOf,
    seconds: float,
    mesh: Mesh,
    console: Console,
) -> None:
    """Evaluates, logs, and exports the epoch if it is the one selected so far."""
    split, config = replica.config.train.eval_split, replica.config
    epoch, step = len(replica.epochs) + 1, int(state.step)
    trained = means_of(objective, jax.device_get(state.terms))
    begun = time.perf_counter()
    with console.bar(f"measure {split}", replica.eval_examples.size, 0) as bar:
        logits = predict_logits(
            logits_of, state.params, replica.eval_examples, config.data, mesh, bar.advance
        )
    if not np.isfinite(logits).all():
        raise divergence_error(step, epoch)
    measured = make_task(config.model.task).measure(logits, replica.eval_examples.labels)
    record = {
        "epoch": epoch,
        "step": step,
        "seconds": seconds,
        "measure_seconds": time.perf_counter() - begun,
        "examples_per_second": replica.training.size / seconds,
        **{f"train_{name}": value for name, value in trained.items()},
        **{f"{split}_{name}": value for name, value in measured.items()},
    }
    replica.run.log({"kind": "epoch", **record})
    if replica.chosen["epoch"] == epoch:
        params: Params = jax.device_get(state.params)
        on_main_process(lambda: export_model(replica.run.model, params, config, replica.vocabulary))


def _compile(
    step_fn: Any,
    state: TrainState,
    key: Key[Array, "*s"],
    config: Config,
    layouts: set[tuple[int, ...]],
    mesh: Mesh,
    seeds: int,
    console: Console,
) -> dict[tuple[int, ...], TrainStep]:
    """Returns the step compiled for each layout, the padded lengths of a batch's groups."""
    begun, compiled = time.perf_counter(), {}
    with console.bar("compile", len(layouts), 0) as bar:
        for edges in sorted(layouts):
            rows = config.data.batch_size // len(edges)
            groups = tuple(rows_shape(rows, edge, mesh, seeds) for edge in edges)
            compiled[edges] = step_fn.lower(state, groups, key).compile()
            bar.advance(1)
    shapes = "; ".join(
        f"{config.data.batch_size // len(edges)} reviews × {', '.join(map(str, edges))} tokens"
        for edges in compiled
    )
    console.print(
        f"compiled {len(compiled)} layouts of a batch ({shapes}) "
        f"in {time.perf_counter() - begun:.1f} s; a step takes "
        f"{max(map(_peak_bytes, compiled.values())) / 2**20:,.0f} MiB on each device"
    )
    return compiled


def _peak_bytes(compiled: Any) -> int:
    """Returns the memory of a compiled step on one device: state, batch and temporaries."""
    sizes = compiled.memory_analysis()
    given, made = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    return given + made - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes

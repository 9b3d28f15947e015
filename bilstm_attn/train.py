"""The training loop: of one seed, or of several in one program."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from bilstm_attn.checkpoint import digest, export_model
from bilstm_attn.cluster import from_first, greatest
from bilstm_attn.config import Config
from bilstm_attn.data.batches import BatchPlan, read_batch
from bilstm_attn.evaluate import LogitsOf, make_logits_step, predict_logits
from bilstm_attn.interruption import Interrupted, interruptible
from bilstm_attn.member import Member
from bilstm_attn.metrics import measure
from bilstm_attn.model import Model
from bilstm_attn.objectives import OBJECTIVES
from bilstm_attn.optim import make_optimizer
from bilstm_attn.registry import make
from bilstm_attn.sharding import own_part, place_rows, place_whole, rows_shape, rows_spec
from bilstm_attn.step_log import StepLog, not_finite
from bilstm_attn.terminal import Show
from bilstm_attn.train_step import (
    TrainState,
    TrainStep,
    initial_state,
    make_train_step,
    stack,
    unstack,
    zero_sums,
)
from bilstm_attn.types import Params, Sums

PROOF_STEP = 10  # after which the state's digest is logged, for others to compare with
TOGETHER_STEPS = 10  # after which several processes ask each other whether one was told to stop


def train(
    members: Sequence[Member],
    model: Model,
    *,
    mesh: Mesh,
    show: Show,
    log_every_steps: int = 10,
    until_step: int | None = None,
) -> None:
    """Trains to the config's last epoch, from the newest checkpoints in the runs if there are any.

    Or until after `until_step`, of which nothing is saved.

    The members' configs differ in their seeds alone. Several are trained in one program: each
    one's steps are those that it takes alone, to rounding.

    Raises:
      UserError: the loss is not finite, or a run cannot be written. Earlier checkpoints stay.
      Interrupted: Ctrl-C was pressed, or SIGTERM came.
    """
    config, reviews = members[0].config, members[0].training.size
    steps_per_epoch = -(-reviews // config.data.batch_size)
    objective = make(
        "objective", OBJECTIVES, config.train.objective, config.train.objective_options
    )
    optimizer = make_optimizer(config.optim, steps_per_epoch * config.train.epochs)
    step_fn = make_train_step(
        model, objective, optimizer, mesh, config.train.microbatches, len(members)
    )
    logits_of = make_logits_step(model, mesh)
    keys = place_whole(stack([np.asarray(jax.random.key_data(m.key)) for m in members]), mesh)
    key = jax.random.wrap_key_data(keys)
    rows, part = rows_spec(len(members)), own_part(mesh)

    with ExitStack() as stack_of_contexts:
        for member in members:
            stack_of_contexts.enter_context(member.checkpoints)
        stops = stack_of_contexts.enter_context(interruptible())
        firsts = [
            initial_state(model, optimizer, member.config.seed, member.vectors())
            for member in members
        ]
        states, records = _restore(members, firsts, show)
        state, step = place_whole(stack(states), mesh), int(states[0].step)
        logs, spent = [], records[0]["seconds"]  # of an interrupted epoch
        for at, (member, record) in enumerate(zip(members, records, strict=True)):
            member.run.rewind(step, record["metrics"])
            member.checkpoints.rewind(step)
            place = () if len(members) == 1 else (at,)
            logs.append(StepLog(member.run, log_every_steps, record["pending"], place))
        to_run = {
            epoch: _plan_together(members, epoch)
            for epoch in range(len(members[0].epochs), config.train.epochs)
        }
        layouts = {plans[0].edges for steps in to_run.values() for plans in steps}
        compiled = {}
        if layouts:
            compiled = _compile(step_fn, state, key, config, layouts, mesh, len(members), show)
        for epoch, steps in to_run.items():
            begun, spent = time.perf_counter() - spent, 0.0
            done = step - epoch * steps_per_epoch
            if not done:
                no_sums = stack([zero_sums()] * len(members))
                state = state._replace(sums=place_whole(no_sums, mesh))
            reviews_done = sum(plans[0].size for plans in steps[:done])
            with show.bar(f"epoch {epoch + 1}/{config.train.epochs}", reviews, reviews_done) as bar:
                for plans in steps[done:]:
                    batch = stack(
                        [
                            read_batch(member.training, plan, config.data, part)
                            for member, plan in zip(members, plans, strict=True)
                        ]
                    )
                    groups = place_rows(batch, mesh, rows)
                    state, sums = compiled[plans[0].edges](state, groups, key)
                    step += 1
                    for log in logs:
                        log.add(step, epoch + 1, sums)
                    bar.advance(plans[0].size)
                    bar.describe(logs[0].latest)
                    if step == min(PROOF_STEP, steps_per_epoch):
                        _log_proof(members, state, step)
                    if step == until_step:
                        return
                    if plans is not steps[-1] and (stop := _told_to_stop(stops, step)):
                        seconds = time.perf_counter() - begun
                        pending = [log.pending() for log in logs]
                        _save(members, step, state, pending, seconds)
                        raise Interrupted(step, stop)
            seconds = time.perf_counter() - begun
            for member, log, own in zip(members, logs, unstack(state, len(members)), strict=True):
                log.flush()
                _end_epoch(member, own, logits_of, seconds, mesh, show)
            _save(members, step, state, [[] for _ in members], 0.0)
            for member in members:
                prefix = f"seed {member.config.seed}  " if len(members) > 1 else ""
                show.epoch(member.epochs[-1], config.train.each_epoch, prefix)
            if epoch + 1 < config.train.epochs and (stop := _told_to_stop(stops)):
                raise Interrupted(step, stop)


def _restore(
    members: Sequence[Member], firsts: list[TrainState], show: Show
) -> tuple[list[TrainState], list[dict[str, Any]]]:
    """Returns every member's state and record at the newest step that all of them have."""
    step: int | None = None
    while True:
        found = [
            member.restore(first, show, step) for member, first in zip(members, firsts, strict=True)
        ]
        steps = [int(state.step) for state, _ in found]
        if len(set(steps)) == 1:
            break
        step = min(steps)
    if any(member.checkpoints.steps() for member in members):
        show.say(f"resuming at step {steps[0]}")
    return [state for state, _ in found], [record for _, record in found]


def _plan_together(members: Sequence[Member], epoch: int) -> list[tuple[BatchPlan, ...]]:
    """Returns the members' batches of an epoch, step by step, those of a step padded alike."""
    together = []
    for plans in zip(*(member.plan(epoch) for member in members), strict=True):
        edges = tuple(map(max, zip(*(plan.edges for plan in plans), strict=True)))
        together.append(tuple(plan._replace(edges=edges) for plan in plans))
    return together


def _told_to_stop(stops: list[int], step: int = 0) -> int:
    """Returns the signal that asks to stop, or 0: of several processes, one that any received."""
    if jax.process_count() > 1 and step % TOGETHER_STEPS:
        return 0
    return greatest(stops[0] if stops else 0)


def _save(
    members: Sequence[Member], step: int, state: TrainState, pending: list[Any], seconds: float
) -> None:
    """Saves every member's state at `step`."""
    for member, own, waiting in zip(members, unstack(state, len(members)), pending, strict=True):
        member.checkpoints.save(step, own, member.record(waiting, seconds))


def _log_proof(members: Sequence[Member], state: TrainState, step: int) -> None:
    """Logs what `--verify` compares with: the digest of the state, and the loss so far."""
    for member, own in zip(members, unstack(jax.device_get(state), len(members)), strict=True):
        proof = {"state_sha256": digest(own), "loss": float(own.sums.loss)}
        member.run.log({"kind": "proof", "step": step, **proof})


def _end_epoch(
    member: Member,
    state: TrainState,
    logits_of: LogitsOf,
    seconds: float,
    mesh: Mesh,
    show: Show,
) -> None:
    """Measures, logs, and exports if it is the epoch to choose."""
    split, config = member.config.train.each_epoch, member.config
    epoch, step = len(member.epochs) + 1, int(state.step)
    trained: Sums = jax.device_get(state.sums)
    begun = time.perf_counter()
    with show.bar(f"measure {split}", member.watched.size, 0) as bar:
        logits = predict_logits(
            logits_of, state.params, member.watched, config.data, mesh, bar.advance
        )
    if not np.isfinite(logits).all():
        raise not_finite(step, epoch)
    measured = measure(logits, member.watched.labels)
    record = {
        "epoch": epoch,
        "step": step,
        "train_loss": float(trained.loss / trained.weight),
        "train_accuracy": float(trained.correct / trained.weight),
        "seconds": seconds,
        "measure_seconds": time.perf_counter() - begun,
        "reviews_per_second": member.training.size / seconds,
    } | {f"{split}_{name}": value for name, value in measured.items()}
    member.run.log({"kind": "epoch", **record})
    if member.chosen["epoch"] == epoch:
        params: Params = jax.device_get(state.params)
        from_first(lambda: export_model(member.run.model, params, config, member.vocabulary))


def _compile(
    step_fn: Any,
    state: TrainState,
    key: Key[Array, "*s"],
    config: Config,
    layouts: set[tuple[int, ...]],
    mesh: Mesh,
    seeds: int,
    show: Show,
) -> dict[tuple[int, ...], TrainStep]:
    """Returns the step compiled for each layout: what a batch's groups are padded to."""
    begun, compiled = time.perf_counter(), {}
    with show.bar("compile", len(layouts), 0) as bar:
        for edges in sorted(layouts):
            rows = config.data.batch_size // len(edges)
            groups = tuple(rows_shape(rows, edge, mesh, seeds) for edge in edges)
            compiled[edges] = step_fn.lower(state, groups, key).compile()
            bar.advance(1)
    shapes = "; ".join(
        f"{config.data.batch_size // len(edges)} reviews × {', '.join(map(str, edges))} tokens"
        for edges in compiled
    )
    show.say(
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

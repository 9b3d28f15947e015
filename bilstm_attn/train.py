"""The training loop: of one seed, or of several in one program."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from bilstm_attn.checkpoint import Checkpoints, digest, export_model
from bilstm_attn.cluster import from_first, greatest
from bilstm_attn.config import Config, differences, from_json
from bilstm_attn.data.batches import BatchPlan, Examples, plan_epoch, read_batch
from bilstm_attn.dropout import stream
from bilstm_attn.errors import UserError
from bilstm_attn.evaluate import LogitsOf, make_logits_step, predict_logits
from bilstm_attn.metrics import measure
from bilstm_attn.model import Model
from bilstm_attn.objectives import OBJECTIVES
from bilstm_attn.optim import make_optimizer
from bilstm_attn.registry import make
from bilstm_attn.run import Run
from bilstm_attn.sharding import own_part, place_rows, place_whole, rows_shape, rows_spec
from bilstm_attn.terminal import Show
from bilstm_attn.text import Vocabulary
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


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yields the signals that asked to stop: SIGTERM, or Ctrl-C (the second stops at once)."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if number in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    asking = (signal.SIGINT, signal.SIGTERM)
    # None is a handler that is not Python's.
    before = [signal.signal(number, receive) or signal.SIG_DFL for number in asking]
    try:
        yield received
    finally:
        for number, handler in zip(asking, before, strict=True):
            signal.signal(number, handler)


class Interrupted(Exception):
    """A signal asked to stop; the state at `step` is saved."""

    def __init__(self, step: int, signal_number: int):
        self.step = step
        self.status = 128 + signal_number  # of the program, as shells have it


def not_finite(step: int, epoch: int) -> UserError:
    """Returns the error of a run that has diverged."""
    return UserError(
        f"the loss or its gradient is not finite at step {step} (epoch {epoch}); what was saved "
        "before is kept; lower --optim.learning-rate or set --optim.clip-norm 1, with another "
        "--name"
    )


class StepLog:
    """Reads the sums of steps a few at a time, always leaving one in flight: no device waits."""

    def __init__(self, run: Run, every_steps: int, pending: list[Any], seed: tuple[int, ...] = ()):
        """Takes what `pending` returned before an interruption, or nothing.

        `seed` is the place of this run's sums among those of several seeds.
        """
        self.latest = ""  # what to show beside the bar
        self._run, self._every_steps, self._seed = run, every_steps, seed
        self._pending = [(step, epoch, Sums(*sums)) for step, epoch, sums in pending]

    def add(self, step: int, epoch: int, sums: Sums) -> None:
        """Takes the sums of a step that was just dispatched.

        Raises:
          UserError: the loss of an earlier step is not finite.
        """
        if step % self._every_steps == 0:
            self.flush()
        self._pending.append((step, epoch, sums))

    def pending(self) -> list[tuple[int, int, list[float]]]:
        """Returns step, epoch and sums of every step that is not logged yet, waiting for them.

        Raises:
          UserError: the loss of one is not finite.
        """
        fetched = []
        for step, epoch, sums in jax.device_get(self._pending):
            own = [float(value if np.ndim(value) == 0 else value[self._seed]) for value in sums]
            if not np.isfinite(own[0]):
                raise not_finite(step, epoch)
            fetched.append((step, epoch, own))
        return fetched

    def flush(self) -> None:
        """Logs the mean over every step taken so far, waiting for them.

        Raises:
          UserError: the loss of one is not finite.
        """
        if not self._pending:
            return
        fetched = self.pending()
        self._pending = []
        loss, correct, weight = (
            sum(values) for values in zip(*(sums for *_, sums in fetched), strict=True)
        )
        step, epoch, _ = fetched[-1]
        means = {"loss": loss / max(weight, 1), "accuracy": correct / max(weight, 1)}
        self._run.log({"kind": "train", "step": step, "epoch": epoch, **means})
        self.latest = f"loss {means['loss']:.3f}"


class Member:
    """One seed's part of a training: what it reads, where it writes, what it has reached."""

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        training: Examples,
        watched: Examples,
        run: Run,
    ):
        """Takes the reviews to train on, and the split that `config.train.each_epoch` names.

        That is measured after each epoch, and by `config.train.select` decides which is exported.
        """
        self.config, self.vocabulary, self.run = config, vocabulary, run
        self.training, self.watched = training, watched
        self.checkpoints = Checkpoints(run.checkpoints)
        self.epochs: list[dict[str, Any]] = []  # the records of those that have ended

    @property
    def key(self) -> Key[Array, ""]:
        """What all dropout follows from."""
        return stream(jax.random.key(self.config.seed), "dropout")

    @property
    def chosen(self) -> dict[str, Any]:
        """The record of the epoch to export; of equally good ones the first."""
        if self.config.train.select == "last":
            return self.epochs[-1]
        name = f"{self.config.train.each_epoch}_accuracy"
        return max(self.epochs, key=lambda record: record[name])

    def plan(self, epoch: int) -> list[BatchPlan]:
        """Returns the batches of an epoch."""
        return plan_epoch(self.training.lengths, self.config.data, self.config.seed, epoch)

    def record(self, pending: list[Any], seconds: float) -> dict[str, Any]:
        """Returns what a checkpoint holds beside the state."""
        config = self.config.to_json()
        return {"config": config, "epochs": self.epochs, "pending": pending, "seconds": seconds}

    def restore(
        self, like: TrainState, show: Show, at_most: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Returns state and record of the newest whole checkpoint, or those of the first step.

        Raises:
          UserError: the checkpoint is of another config, or every one is damaged.
        """

        def accept(record: dict[str, Any]) -> None:
            config = from_json(record["config"], f"a checkpoint in {self.checkpoints.folder}")
            if differing := differences(config, self.config):
                raise UserError(
                    f"{self.checkpoints.folder} holds checkpoints of another config "
                    f"({'; '.join(differing[:3])}); put back this run's own, or give --name"
                )

        restored = self.checkpoints.restore(like, show.say, accept, at_most)
        return restored or (like, self.record([], 0.0))


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
        firsts = [initial_state(model, optimizer, member.config.seed) for member in members]
        states, records = _restore(members, firsts, show)
        state, step = place_whole(stack(states), mesh), int(states[0].step)
        logs, spent = [], records[0]["seconds"]  # of an interrupted epoch
        for at, (member, record) in enumerate(zip(members, records, strict=True)):
            member.epochs, pending = record["epochs"], record["pending"]
            member.run.rewind(step, pending[0][0] - 1 if pending else step)
            member.checkpoints.rewind(step)
            place = () if len(members) == 1 else (at,)
            logs.append(StepLog(member.run, log_every_steps, pending, place))
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
    member.epochs = [*member.epochs, record]
    if member.chosen is record:
        params: Params = jax.device_get(state.params)
        from_first(lambda: export_model(member.run.model, params, config, member.vocabulary))
    member.run.log({"kind": "epoch", **record})


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

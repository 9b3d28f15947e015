"""Train state, the pure step, and the loop."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from bilstm_attn.checkpoint import Checkpoints, export_model
from bilstm_attn.config import Config
from bilstm_attn.data.batches import Examples, plan_epoch, read_batch
from bilstm_attn.dropout import stream
from bilstm_attn.errors import UserError
from bilstm_attn.evaluate import make_logits_step, predict_logits
from bilstm_attn.metrics import measure
from bilstm_attn.model import Model
from bilstm_attn.objectives import OBJECTIVES, Objective
from bilstm_attn.optim import make_optimizer
from bilstm_attn.registry import make
from bilstm_attn.run import Run
from bilstm_attn.sharding import AXIS, ROWS, WHOLE, place_rows, place_whole, rows_shape
from bilstm_attn.terminal import Show
from bilstm_attn.text import Vocabulary
from bilstm_attn.types import Batch, Keys, Params, Sums


class TrainState(NamedTuple):
    """All that the next step depends on, beside the config."""

    step: Int[Array, ""]
    params: Params
    optimizer: Any
    sums: Sums  # over the epoch so far


Groups = tuple[Batch, ...]  # one batch: reviews of similar length, padded alike, are a group
TrainStep = Callable[[TrainState, Groups, Key[Array, ""]], tuple[TrainState, Sums]]


def zero_sums() -> Sums:
    """Returns the sums over no review."""
    return Sums(*(jnp.zeros((), jnp.float32) for _ in Sums._fields))


def initial_state(model: Model, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Returns the state before the first step, made by one compiled program."""

    @jax.jit
    def make(key: Key[Array, ""]) -> TrainState:
        params = model.init(stream(key, "params"))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), zero_sums())

    return make(jax.random.key(seed))


def make_gradient(
    model: Model, objective: Objective, *, on_cpu: bool, microbatches: int = 1
) -> Callable[[Params, Groups, tuple[Keys, ...]], tuple[Params, Sums]]:
    """Returns what every device does with its rows: the gradient's sum over all devices, and sums.

    It runs under `jax.shard_map`, or `jax.pmap`, with the axis `sharding.AXIS`. The groups take
    turns, each in `microbatches` parts, so that memory is that of the largest part; devices meet
    once, after the last.
    """

    def loss(params: Params, group: Batch, keys: Keys) -> tuple[Array, Sums]:
        sums = objective(model, params, group, keys)
        return sums.loss, sums

    def add(total: Any, params: Params, group: Batch, keys: Keys) -> tuple[Params, Sums]:
        return jax.tree.map(jnp.add, total, jax.grad(loss, has_aux=True)(params, group, keys))

    def of_rows(params: Params, groups: Groups, keys: tuple[Keys, ...]) -> tuple[Params, Sums]:
        total = (jax.tree.map(jnp.zeros_like, params), zero_sums())
        pairs = zip(groups, keys, strict=True)
        parts = [part for pair in pairs for part in _cut(pair, microbatches)]
        for group, keys_of_group in reversed(parts):
            given = (total, params, group, keys_of_group)
            if on_cpu:  # where only a condition keeps the groups' temporaries apart
                any_review = (group.weight != 0).any()
                total = lax.cond(any_review, add, lambda total, *_: total, *given)
            else:  # where a condition would make the host wait
                total, params = lax.optimization_barrier((add(*given), params))
        return lax.psum(total, AXIS)

    return of_rows


def _cut(rows: Any, parts: int) -> list[Any]:
    """Returns a tree's rows in so many equal parts, one after the other."""
    cut = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), rows)
    return [jax.tree.map(lambda leaf, at=at: leaf[at], cut) for at in range(parts)]


def make_train_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    microbatches: int = 1,
) -> TrainStep:
    """Returns the compiled step: state, a batch's groups and the run's key to state and sums.

    The gradient is divided by the weight of the whole batch. The state is donated.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    # check_vma=False: gradients inside are of the device's own rows, and psum adds them, no more.
    over_mesh = jax.shard_map(
        make_gradient(model, objective, on_cpu=on_cpu, microbatches=microbatches),
        mesh=mesh,
        in_specs=(WHOLE, ROWS, ROWS),
        out_specs=WHOLE,
        check_vma=False,
    )

    def step(state: TrainState, groups: Groups, key: Key[Array, ""]) -> tuple[TrainState, Sums]:
        sizes = [group.length.shape[0] for group in groups]
        keys = jax.random.split(jax.random.fold_in(key, state.step), sum(sizes))
        keys = tuple(jnp.split(keys, np.cumsum(sizes)[:-1]))
        gradients, sums = over_mesh(state.params, groups, keys)
        # A gradient that is not finite shows in the loss, so that one check on the host finds both.
        finite = jnp.isfinite(optax.tree.norm(gradients))
        sums = sums._replace(loss=jnp.where(finite, sums.loss, jnp.nan))
        mean = jax.tree.map(lambda g: g / jnp.maximum(sums.weight, 1), gradients)
        updates, optimizer_state = optimizer.update(mean, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, optimizer_state, state.sums.add(sums)), sums

    return jax.jit(step, donate_argnums=0)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yields the signals that asked to stop: SIGTERM, or Ctrl-C (the second stops at once)."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if number in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    asking = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, receive) for number in asking]
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

    def __init__(self, run: Run, every_steps: int, pending: list[Any]):
        """Takes what `pending` returned before an interruption, or nothing."""
        self.latest = ""  # what to show beside the bar
        self._run, self._every_steps = run, every_steps
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
            if not np.isfinite(sums.loss):
                raise not_finite(step, epoch)
            fetched.append((step, epoch, [float(value) for value in sums]))
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


def train(
    config: Config,
    model: Model,
    vocabulary: Vocabulary,
    training: Examples,
    watched: Examples,
    *,
    run: Run,
    mesh: Mesh,
    show: Show,
    log_every_steps: int = 10,
) -> dict[str, Any]:
    """Trains to the config's last epoch, from the newest checkpoint in `run` if there is one.

    `watched` is the split `config.train.each_epoch` names; it is measured after each epoch, and by
    `config.train.select` decides which epoch is exported.

    Returns:
      The record of the exported epoch.

    Raises:
      UserError: the loss is not finite, or the run cannot be written. Earlier checkpoints stay.
      Interrupted: Ctrl-C was pressed, or SIGTERM came.
    """
    objective = make(
        "objective", OBJECTIVES, config.train.objective, config.train.objective_options
    )
    steps_per_epoch = -(-training.size // config.data.batch_size)
    optimizer = make_optimizer(config.optim, steps_per_epoch * config.train.epochs)
    step_fn = make_train_step(model, objective, optimizer, mesh, config.train.microbatches)
    logits_of = make_logits_step(model, mesh)
    key = stream(jax.random.key(config.seed), "dropout")
    state = place_whole(initial_state(model, optimizer, config.seed), mesh)
    epochs: list[dict[str, Any]] = []
    pending: list[Any] = []
    spent = 0.0  # seconds of an interrupted epoch
    split = config.train.each_epoch

    with Checkpoints(run.checkpoints) as checkpoints, interruptible() as stops:
        if (restored := checkpoints.restore(state, show.say)) is not None:
            state, record = restored
            epochs, pending, spent = record["epochs"], record["pending"], record["seconds"]
            show.say(f"resuming at step {int(state.step)}")
        step = int(state.step)
        run.rewind(pending[0][0] - 1 if pending else step)
        log = StepLog(run, log_every_steps, pending)
        to_run = {
            epoch: plan_epoch(training.lengths, config.data, config.seed, epoch)
            for epoch in range(len(epochs), config.train.epochs)
        }
        layouts = {plan.edges for plans in to_run.values() for plan in plans}
        compiled = _compile(step_fn, state, key, config, layouts, mesh, show) if layouts else {}
        for epoch, plans in to_run.items():
            begun, spent = time.perf_counter() - spent, 0.0
            done = plans[: step - epoch * steps_per_epoch]
            if not done:
                state = state._replace(sums=place_whole(zero_sums(), mesh))
            reviews_done = sum(plan.size for plan in done)
            name = f"epoch {epoch + 1}/{config.train.epochs}"
            with show.bar(name, training.size, reviews_done) as bar:
                for plan in plans[len(done) :]:
                    groups = place_rows(read_batch(training, plan, config.data), mesh)
                    state, sums = compiled[plan.edges](state, groups, key)
                    step += 1
                    log.add(step, epoch + 1, sums)
                    bar.advance(plan.size)
                    bar.describe(log.latest)
                    if stops and plan is not plans[-1]:
                        record = {"epochs": epochs, "pending": log.pending()}
                        record["seconds"] = time.perf_counter() - begun
                        checkpoints.save(step, state, record)
                        raise Interrupted(step, stops[0])
            log.flush()
            seconds = time.perf_counter() - begun
            trained: Sums = jax.device_get(state.sums)
            begun = time.perf_counter()
            with show.bar(f"measure {split}", watched.size, 0) as bar:
                logits = predict_logits(
                    logits_of, state.params, watched, config.data, mesh, bar.advance
                )
            if not np.isfinite(logits).all():
                raise not_finite(step, epoch + 1)
            measured = measure(logits, watched.labels)
            record = {
                "epoch": epoch + 1,
                "step": step,
                "train_loss": float(trained.loss / trained.weight),
                "train_accuracy": float(trained.correct / trained.weight),
                "seconds": seconds,
                "measure_seconds": time.perf_counter() - begun,
                "reviews_per_second": training.size / seconds,
            } | {f"{split}_{name}": value for name, value in measured.items()}
            epochs.append(record)
            if chosen_epoch(config, epochs) is record:
                export_model(run.model, jax.device_get(state.params), config, vocabulary)
            run.log({"kind": "epoch", **record})
            checkpoints.save(step, state, {"epochs": epochs, "pending": [], "seconds": 0.0})
            show.epoch(record, split)
            if stops and epoch + 1 < config.train.epochs:
                raise Interrupted(step, stops[0])
    return chosen_epoch(config, epochs)


def chosen_epoch(config: Config, epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the record of the epoch to export; of equally good ones the first."""
    if config.train.select == "last":
        return epochs[-1]
    return max(epochs, key=lambda record: record[f"{config.train.each_epoch}_accuracy"])


def _compile(
    step_fn: Any,
    state: TrainState,
    key: Key[Array, ""],
    config: Config,
    layouts: set[tuple[int, ...]],
    mesh: Mesh,
    show: Show,
) -> dict[tuple[int, ...], TrainStep]:
    """Returns the step compiled for each layout: what a batch's groups are padded to."""
    begun, compiled = time.perf_counter(), {}
    with show.bar("compile", len(layouts), 0) as bar:
        for edges in sorted(layouts):
            rows = config.data.batch_size // len(edges)
            groups = tuple(rows_shape(rows, edge, mesh) for edge in edges)
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

"""The training loop."""

import time
from collections.abc import Callable

import jax

from bilstm_attn.data.batches import steps_per_epoch
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.distributed import max_over_processes
from bilstm_attn.runtime.signals import Interrupted, interruptible
from bilstm_attn.training.train_program import Program
from bilstm_attn.training.training_run import Record, TrainingRun

PROOF_STEP = 10  # after this step the digest of the state is logged, for `--verify`
STOP_CHECK_STEPS = 10  # how often the processes agree on whether to stop


OnEpoch = Callable[[Record], object]


def ignore(record: Record) -> None:
    """Does nothing with the record of an epoch."""


class StopTraining(Exception):
    """Raised by `on_epoch` to end a training early, without an error."""


def train(
    run: TrainingRun,
    program: Program,
    *,
    console: Console,
    until_step: int | None = None,
    on_epoch: OnEpoch = ignore,
) -> None:
    """Trains to the last epoch of the config, from the newest checkpoint if there is one.

    Args:
      run: the examples, and where metrics and checkpoints go.
      program: the compiled step.
      console: prints progress.
      until_step: the step after which to return, without saving.
      on_epoch: called with a copy of the record of each epoch, after its checkpoint is saved. It
        may raise `StopTraining` to end here. Any other exception is passed on, as a tuner needs to
        prune a trial; the run can be resumed.

    Raises:
      UserError: the loss is not finite, or a run cannot be written. Earlier checkpoints are intact.
      Interrupted: Ctrl-C was pressed, or SIGTERM came; the state is saved.
    """
    epochs, steps = run.config.train.epochs, steps_per_epoch(run.size, run.config.data)
    with run.opened(), interruptible() as stops:
        state, step, spent = run.begin(program, console)
        state, key_data = program.replicate((state, run.key_data))
        key = jax.random.wrap_key_data(key_data)
        plans = {epoch: run.plan(epoch) for epoch in range(step // steps, epochs)}
        layouts = {plan.edges: plan for batches in plans.values() for plan in batches}
        program.compile(state, key, layouts, lambda plan: run.read(plan, program.part), console)

        for epoch, batches in plans.items():
            begun, done = time.perf_counter() - spent, step - epoch * steps
            if done == 0:
                state = program.reset_terms(state)
            with console.bar(
                f"epoch {epoch + 1}/{epochs}",
                sum(plan.size for plan in batches),
                sum(plan.size for plan in batches[:done]),
            ) as bar:
                for plan in batches[done:]:
                    groups = run.read(plan, program.part)
                    state, terms = program.step(plan.edges, state, groups, key)
                    step += 1
                    loss = run.log_step(step, epoch + 1, terms)
                    bar.advance(plan.size)
                    bar.describe(loss)
                    if step == min(PROOF_STEP, steps):
                        run.log_proof(step, state)
                    if step == until_step:
                        return
                    if step % steps and (stop := _stop_signal(stops, step)):
                        run.save(step, state, time.perf_counter() - begun)
                        raise Interrupted(step, stop)
            records = run.end_epoch(program, state, time.perf_counter() - begun, console)
            run.save(step, state)
            spent = 0.0
            for line in run.describe(records):
                console.print(line)
            try:
                for record in records:
                    on_epoch(dict(record))
            except StopTraining:
                return
            if epoch + 1 < epochs and (stop := _stop_signal(stops)):
                raise Interrupted(step, stop)


def _stop_signal(stops: list[int], step: int = 0) -> int:
    """Returns the signal that requests a stop, received by any process, or 0."""
    if jax.process_count() > 1 and step % STOP_CHECK_STEPS:
        return 0
    return max_over_processes(stops[0] if stops else 0)

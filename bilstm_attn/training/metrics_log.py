"""Logging of training metrics: the terms of a few steps are fetched at a time and averaged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.console import percent
from bilstm_attn.training.objectives import Objective, Term, Terms


def divergence_error(step: int, epoch: int) -> UserError:
    """Returns the error of a run that has diverged."""
    return UserError(
        f"the loss or its gradient is not finite at step {step} (epoch {epoch}); everything saved "
        "earlier is intact; lower --optim.learning-rate or set --optim.clip-norm 1, with another "
        "--name"
    )


def means_of(objective: Objective, terms: Mapping[str, Any]) -> dict[str, float]:
    """Returns the loss and the mean of every term, from sums and counts on the host."""
    means = {name: float(term[0]) / max(float(term[1]), 1) for name, term in terms.items()}
    loss = sum(objective.coefficients[name] * means[name] for name in objective.minimised)
    return {"loss": loss} | means


def describe_epoch(record: Mapping[str, Any], split: str) -> str:
    """Returns the line that is printed after an epoch."""

    def measured(part: str) -> str:
        values = [f"{part} loss {record[f'{part}_loss']:.4f}"]
        if f"{part}_accuracy" in record:  # an objective of its own may have no such term
            values.append(f"accuracy {percent(record[f'{part}_accuracy'])}")
        return " ".join(values)

    return (
        f"epoch {record['epoch']}  {measured('train')}  {measured(split)}  "
        f"{record['examples_per_second']:,.0f} examples/s  {record['seconds']:.1f} s"
    )


# XLA:CPU deadlocks with more than 32 steps in flight: one device waits in an all-reduce for a step
# that the other device never dequeues.
MAX_STEPS_IN_FLIGHT = 8


class MetricsLog:
    """Fetches the terms of several steps at once, so that devices do not wait for the host."""

    def __init__(
        self,
        objective: Objective,
        write: Callable[[dict[str, Any]], object] = lambda record: None,
        every_steps: int = 10,
        *,
        pending: Sequence[Any] = (),
        seed_index: tuple[int, ...] = (),
        divergence: Callable[[int, int], UserError] = divergence_error,
    ):
        """Creates the log of one seed.

        Args:
          objective: the objective whose terms the steps return.
          write: called with each line of the log.
          every_steps: the number of steps between log lines.
          pending: the result of `pending()` before an interruption.
          seed_index: the index of this seed in the terms of several seeds.
          divergence: returns the error of a loss that is not finite, from step and epoch.
        """
        self.latest = ""  # shown next to the progress bar
        self.objective = objective
        self._write, self._every_steps, self._divergence = write, every_steps, divergence
        self._seed_index = seed_index
        self._pending: list[tuple[int, int, Terms]] = [
            (step, epoch, {name: Term(*term) for name, term in terms.items()})
            for step, epoch, terms in pending
        ]

    def add(self, step: int, epoch: int, terms: Terms) -> None:
        """Adds the terms of a step that was just dispatched.

        Raises:
          UserError: the loss of an earlier step is not finite.
        """
        if step % self._every_steps == 0:
            self.flush()
        self._pending.append((step, epoch, terms))
        if len(self._pending) > MAX_STEPS_IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - MAX_STEPS_IN_FLIGHT][2])

    def pending(self) -> list[tuple[int, int, dict[str, list[float]]]]:
        """Waits for the steps that are not logged yet; returns step, epoch and terms of each.

        Raises:
          UserError: the loss of a step is not finite.
        """
        fetched = []
        for step, epoch, terms in jax.device_get(self._pending):
            values = {
                name: [float(x if np.ndim(x) == 0 else x[self._seed_index]) for x in term]
                for name, term in terms.items()
            }
            if not np.isfinite([values[name][0] for name in self.objective.minimised]).all():
                raise self._divergence(step, epoch)
            fetched.append((step, epoch, values))
        return fetched

    def flush(self) -> None:
        """Waits for all steps taken so far, and logs the mean over those not logged yet.

        Raises:
          UserError: the loss of a step is not finite.
        """
        if not self._pending:
            return
        fetched = self.pending()
        self._pending = []
        step, epoch, _ = fetched[-1]
        total = {
            name: [sum(terms[name][part] for *_, terms in fetched) for part in (0, 1)]
            for name in self.objective.coefficients
        }
        means = means_of(self.objective, total)
        self._write({"kind": "train", "step": step, "epoch": epoch, **means})
        self.latest = f"loss {means['loss']:.3f}"

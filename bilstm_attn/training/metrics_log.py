"""Logging of training metrics: the terms of a few steps are fetched at a time and averaged."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bilstm_attn.errors import UserError
from bilstm_attn.training.objectives import Objective, Term, Terms
from bilstm_attn.training.run_dir import RunDir


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


# XLA:CPU deadlocks with more than 32 steps in flight: one device waits in the all-reduce while the
# step of the other one is never dequeued.
MAX_STEPS_IN_FLIGHT = 8


class MetricsLog:
    """Fetches the terms of several steps at once and keeps one step in flight: no device waits."""

    def __init__(
        self,
        run: RunDir,
        objective: Objective,
        every_steps: int,
        pending: list[Any],
        seed_index: tuple[int, ...] = (),
    ):
        """Creates the log of one seed.

        Args:
          run: the run whose metrics are written.
          objective: the objective whose terms the steps return.
          every_steps: the number of steps between log lines.
          pending: the result of `pending()` before an interruption, or an empty list.
          seed_index: the index of this seed in the terms of several seeds.
        """
        self.latest = ""  # shown next to the progress bar
        self._run, self._objective, self._every_steps = run, objective, every_steps
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
            if not np.isfinite([values[name][0] for name in self._objective.minimised]).all():
                raise divergence_error(step, epoch)
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
            for name in self._objective.coefficients
        }
        means = means_of(self._objective, total)
        self._run.log({"kind": "train", "step": step, "epoch": epoch, **means})
        self.latest = f"loss {means['loss']:.3f}"

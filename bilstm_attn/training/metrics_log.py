"""What training steps return, read a few at a time, and the mean of it logged."""

from typing import Any

import jax
import numpy as np

from bilstm_attn.errors import UserError
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.types import Sums


def divergence_error(step: int, epoch: int) -> UserError:
    """Returns the error of a run that has diverged."""
    return UserError(
        f"the loss or its gradient is not finite at step {step} (epoch {epoch}); what was saved "
        "before is kept; lower --optim.learning-rate or set --optim.clip-norm 1, with another "
        "--name"
    )


# Two devices of a CPU wait for each other for good where more than 32 steps are under way, as XLA
# takes no more: the one's threads wait in a sum over devices, the other's step is not taken.
MOST_UNDER_WAY = 8


class MetricsLog:
    """Reads the sums of steps a few at a time, always leaving one in flight: no device waits."""

    def __init__(
        self, run: RunDir, every_steps: int, pending: list[Any], seed: tuple[int, ...] = ()
    ):
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
        if len(self._pending) > MOST_UNDER_WAY:
            jax.block_until_ready(self._pending[-1 - MOST_UNDER_WAY][2])

    def pending(self) -> list[tuple[int, int, list[float]]]:
        """Returns step, epoch and sums of every step that is not logged yet, waiting for them.

        Raises:
          UserError: the loss of one is not finite.
        """
        fetched = []
        for step, epoch, sums in jax.device_get(self._pending):
            own = [float(value if np.ndim(value) == 0 else value[self._seed]) for value in sums]
            if not np.isfinite(own[0]):
                raise divergence_error(step, epoch)
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

"""A training without a folder, for models that are used at once and never resumed."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bilstm_attn.config import Config
from bilstm_attn.data.batches import BatchPlan, plan_epoch, read_batch
from bilstm_attn.data.splits import Examples
from bilstm_attn.errors import UserError
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import Part
from bilstm_attn.runtime.prng import stream
from bilstm_attn.training.initial import InitialValues
from bilstm_attn.training.metrics_log import MetricsLog, divergence_error, means_of
from bilstm_attn.training.objectives import Terms
from bilstm_attn.training.step import Groups, TrainState, initial_state
from bilstm_attn.training.train_program import Program
from bilstm_attn.training.training_run import Position, Record, TrainingRun
from bilstm_attn.types import Params


class InMemoryRun(TrainingRun):
    """Trains on labelled examples and stores the parameters of one epoch in `params`."""

    def __init__(
        self,
        config: Config,
        examples: Examples,
        *,
        values: InitialValues | None = None,
        start: Params | None = None,
        select: Literal["last", "least_loss"] = "last",
        divergence: Callable[[int, int], UserError] = divergence_error,
    ):
        """Creates the run.

        Args:
          config: seed, batches, optimiser and epochs.
          examples: the training examples; an objective may read their extras.
          values: initial values that replace random ones.
          start: initial parameters by module name, which replace those.
          select: the epoch whose parameters are stored.
          divergence: returns the error of a loss that is not finite, from step and epoch.
        """
        self.config, self.params, self._examples = config, {}, examples
        self._values, self._start, self._select = values, start or {}, select
        self._least_loss, self._epoch, self._divergence = np.inf, 0, divergence
        self._log: MetricsLog

    @property
    def size(self) -> int:
        """Number of training examples."""
        return self._examples.size

    @property
    def key_data(self) -> np.ndarray:
        """The data of the root key of all dropout."""
        key = stream(jax.random.key(self.config.seed), "dropout")
        return np.asarray(jax.random.key_data(key))

    def begin(self, program: Program, console: Console) -> Position:
        """Returns the initial state."""
        seed = self.config.seed
        state = initial_state(
            program.model, program.objective, program.optimizer, seed, self._values
        )
        # A copy, since the step donates its arguments.
        state = state._replace(params=state.params | jax.tree.map(jnp.copy, self._start))
        self._log = MetricsLog(program.objective, divergence=self._divergence)
        return Position(state, 0, 0.0)

    def plan(self, epoch: int) -> list[BatchPlan]:
        """Returns the batches of an epoch."""
        return plan_epoch(self._examples.lengths, self.config.data, self.config.seed, epoch)

    def read(self, plan: BatchPlan, part: Part) -> Groups:
        """Returns the rows of one process of a planned batch."""
        return read_batch(self._examples, plan, self.config.data, part)

    def log_step(self, step: int, epoch: int, terms: Terms) -> str:
        """Checks the loss of earlier steps; returns the newest one, as text."""
        self._log.add(step, epoch, terms)
        return self._log.latest

    def end_epoch(
        self, program: Program, state: TrainState, seconds: float, console: Console
    ) -> list[Record]:
        """Stores the parameters if this epoch is the one selected so far."""
        self._log.flush()
        self._epoch += 1
        means = means_of(program.objective, jax.device_get(state.terms))
        if self._select == "last" or means["loss"] < self._least_loss:
            self._least_loss, self.params = means["loss"], jax.device_get(state.params)
        return [{"epoch": self._epoch, "seconds": seconds, **means}]

    def describe(self, records: list[Record]) -> list[str]:
        """Returns the line that is printed after an epoch."""
        epochs = self.config.train.epochs
        return [f"epoch {each['epoch']}/{epochs}  loss {each['loss']:.4f}" for each in records]

    def log_proof(self, step: int, state: TrainState) -> None:
        """Logs nothing: there is no folder."""

    def save(self, step: int, state: TrainState, seconds: float = 0.0) -> None:
        """Saves nothing: there is no folder."""

"""Several seeds of a recipe, trained in one program that is vmapped over them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from bilstm_attn.data.batches import BatchPlan
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import Part
from bilstm_attn.training.objectives import Terms
from bilstm_attn.training.seed_replica import SeedReplica
from bilstm_attn.training.step import Groups, TrainState
from bilstm_attn.training.train_program import Layout, Program
from bilstm_attn.training.training_run import Position, Record, TrainingRun


class PlanOfSeeds(NamedTuple):
    """The batches of a step, one per seed, padded alike."""

    plans: tuple[BatchPlan, ...]
    edges: Layout

    @property
    def size(self) -> int:
        """Number of examples of one seed."""
        return self.plans[0].size


class VmappedSeeds(TrainingRun):
    """Replicas whose configs differ in the seed only; each matches its own run up to rounding."""

    def __init__(self, replicas: Sequence[SeedReplica]):
        self.replicas, self.config = replicas, replicas[0].config

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Opens the checkpoints of every seed."""
        with ExitStack() as stack:
            for replica in self.replicas:
                stack.enter_context(replica.opened())
            yield

    @property
    def size(self) -> int:
        """Number of labelled training examples of one seed."""
        return self.replicas[0].size

    @property
    def key_data(self) -> np.ndarray:
        """The data of the root keys of dropout, stacked."""
        return np.stack([replica.key_data for replica in self.replicas])

    def begin(self, program: Program, console: Console) -> Position:
        """Returns the states at the newest step that every seed has a checkpoint of."""
        at_most = None
        while True:
            restored = [replica.restore(program, console, at_most) for replica in self.replicas]
            steps = [int(state.step) for state, _ in restored]
            if len(set(steps)) == 1:
                break
            at_most = min(steps)
        if any(replica.checkpoints.steps() for replica in self.replicas):
            console.print(f"resuming at step {steps[0]}")
        positions = [
            replica.rewind(state, record, program, (index,))
            for index, (replica, (state, record)) in enumerate(
                zip(self.replicas, restored, strict=True)
            )
        ]
        state = _stack([position.state for position in positions])
        return Position(state, steps[0], positions[0].seconds)

    def plan(self, epoch: int) -> list[PlanOfSeeds]:
        """Returns the batches of an epoch, each padded to the longest of the seeds' layouts."""
        steps = zip(*(replica.plan(epoch) for replica in self.replicas), strict=True)
        return [
            PlanOfSeeds(plans, tuple(map(max, zip(*(plan.edges for plan in plans), strict=True))))
            for plans in steps
        ]

    def read(self, plan: PlanOfSeeds, part: Part) -> Groups:
        """Returns the rows of one process of a planned batch, stacked over seeds."""
        pairs = zip(self.replicas, plan.plans, strict=True)
        return _stack(
            [replica.read(each._replace(edges=plan.edges), part) for replica, each in pairs]
        )

    def log_step(self, step: int, epoch: int, terms: Terms) -> str:
        """Logs a step of every seed; returns the newest loss of the first one."""
        first, *_ = [replica.log_step(step, epoch, terms) for replica in self.replicas]
        return first

    def log_proof(self, step: int, state: TrainState) -> None:
        """Logs the digest of every seed's state."""
        self._for_each(jax.device_get(state), lambda replica, own: replica.log_proof(step, own))

    def end_epoch(
        self, program: Program, state: TrainState, seconds: float, console: Console
    ) -> list[Record]:
        """Evaluates, logs and exports the epoch of every seed."""
        return self._for_each(
            state, lambda replica, own: replica.end_epoch(program, own, seconds, console)[0]
        )

    def describe(self, records: list[Record]) -> list[str]:
        """Returns the lines that are printed after an epoch, one per seed."""
        seeds, lines = (r.config.seed for r in self.replicas), self.replicas[0].describe(records)
        return [f"seed {seed}  {line}" for seed, line in zip(seeds, lines, strict=True)]

    def save(self, step: int, state: TrainState, seconds: float = 0.0) -> None:
        """Saves a checkpoint of every seed."""
        self._for_each(state, lambda replica, own: replica.save(step, own, seconds))

    def _for_each(
        self, state: TrainState, call: Callable[[SeedReplica, TrainState], Any]
    ) -> list[Any]:
        """Calls a function with every replica and its own state."""
        return [
            call(replica, jax.tree.map(lambda leaf, index=index: leaf[index], state))
            for index, replica in enumerate(self.replicas)
        ]


def _stack(trees: Sequence[Any]) -> Any:
    """Stacks trees of arrays along a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

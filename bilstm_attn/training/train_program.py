"""The compiled functions of a training: one step for each layout of a batch, and the logits."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bilstm_attn.config import Config
from bilstm_attn.data.batches import steps_per_epoch
from bilstm_attn.inference.evaluate import make_logits_step
from bilstm_attn.nn.model import Model
from bilstm_attn.registry import make
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import (
    SHARDED,
    SHARDED_AFTER_SEEDS,
    process_part,
    replicate,
    shard_rows,
)
from bilstm_attn.training.objectives import OBJECTIVES, Objective, Terms
from bilstm_attn.training.optim import Optimizer, freeze, make_optimizer
from bilstm_attn.training.step import Groups, TrainState, TrainStep, make_train_step

Layout = tuple[int, ...]  # the padded length of each group of a batch


class Program:
    """The compiled training of one model; runs of several seeds take turns with it."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        optimizer: Optimizer,
        mesh: Mesh,
        microbatches: int = 1,
        seeds: int = 1,
    ):
        """With `seeds` above 1, every argument of a step has a leading axis of that size."""
        self.model, self.objective, self.optimizer, self.mesh = model, objective, optimizer, mesh
        self.part = process_part(mesh)
        self.logits_of = make_logits_step(model, mesh)
        self._rows = SHARDED if seeds == 1 else SHARDED_AFTER_SEEDS
        self._jitted = make_train_step(model, objective, optimizer, mesh, microbatches, seeds)
        self._compiled: dict[Layout, TrainStep] = {}

    def replicate(self, tree: Any) -> Any:
        """Returns the arrays on every device."""
        return replicate(tree, self.mesh)

    def compile(
        self,
        state: TrainState,
        key: Any,
        layouts: Mapping[Layout, Any],
        read: Callable[[Any], Groups],
        console: Console,
    ) -> None:
        """Compiles the step for every layout that has not been compiled yet.

        Args:
          state: on the devices, like the key.
          key: the root key of dropout.
          layouts: the plan of a batch of each layout.
          read: returns the rows of a planned batch, whose shapes are compiled for.
          console: prints what was compiled.
        """
        missing, rows = sorted(set(layouts) - set(self._compiled)), 0
        if not missing:
            return
        begun, peak = time.perf_counter(), 0
        with console.bar("compile", len(missing), 0) as bar:
            for layout in missing:
                groups = shard_rows(read(layouts[layout]), self.mesh, self._rows)
                rows = groups[0].length.shape[-1]
                compiled = self._jitted.lower(state, groups, key).compile()
                self._compiled[layout], peak = compiled, max(peak, _peak_bytes(compiled))
                bar.advance(1)
        shapes = "; ".join(f"{rows} examples × {', '.join(map(str, each))}" for each in missing)
        console.print(
            f"compiled {len(missing)} batch layout{'s' * (len(missing) > 1)} ({shapes} tokens) in "
            f"{time.perf_counter() - begun:.1f} s; a step takes {peak / 2**20:,.0f} MiB on each "
            "device"
        )

    def step(
        self, layout: Layout, state: TrainState, groups: Groups, key: Any
    ) -> tuple[TrainState, Terms]:
        """Dispatches a step on a batch from the host; the state is donated."""
        return self._compiled[layout](state, shard_rows(groups, self.mesh, self._rows), key)

    def reset_terms(self, state: TrainState) -> TrainState:
        """Returns the state with the sums and counts of a new epoch."""
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.terms)
        return state._replace(terms=self.replicate(zeros))


def make_program(
    config: Config,
    model: Model,
    examples: int,
    mesh: Mesh,
    *,
    objective: Objective | None = None,
    frozen: Collection[str] = (),
    seeds: int = 1,
) -> Program:
    """Returns the program of a config that trains on a number of labelled examples.

    Args:
      config: names the objective and the optimiser.
      model: the model to train.
      examples: number of labelled training examples, which gives the length of the schedule.
      mesh: the devices that share a batch.
      objective: minimised instead of the objective that the config names.
      frozen: names of modules that keep their initial parameters, such as `attention`.
      seeds: number of seeds to train in one program.

    Raises:
      UserError: there is no such objective, or it has no such option.
    """
    train = config.train
    if objective is None:
        objective = make("objective", OBJECTIVES, train.objective, train.objective_options)
    steps = steps_per_epoch(examples, config.data) * train.epochs
    optimizer = make_optimizer(config.optim, steps)
    if frozen:
        optimizer = freeze(optimizer, frozen)
    return Program(model, objective, optimizer, mesh, train.microbatches, seeds)


def _peak_bytes(compiled: Any) -> int:
    """Returns the memory of a compiled step on one device: state, batch and temporaries."""
    sizes = compiled.memory_analysis()
    arguments, results = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    return arguments + results - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes

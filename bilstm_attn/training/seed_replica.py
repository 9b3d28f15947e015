"""The state that one seed owns during training: data, run folder, checkpoints."""

from typing import Any

import jax
from jaxtyping import Array, Key

from bilstm_attn.config import Config, differences
from bilstm_attn.config_files import from_json
from bilstm_attn.data.batches import BatchPlan, plan_epoch
from bilstm_attn.data.splits import Examples
from bilstm_attn.data.vocabulary import Vocabulary
from bilstm_attn.errors import UserError
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.prng import stream
from bilstm_attn.training.checkpoint import Checkpoints
from bilstm_attn.training.initial import InitialValues, read_initial
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.training.step import TrainState

CHECKPOINT_FORMAT = 2  # one more whenever the train state or the record has another structure


class SeedReplica:
    """One seed of a training run: its data, its run folder, and the epochs it has completed."""

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        training: Examples,
        eval_examples: Examples,
        run: RunDir,
    ):
        """`eval_examples` is scored after each epoch.

        `config.train.select` says whether the best or the last epoch is exported.
        """
        self.config, self.vocabulary, self.run = config, vocabulary, run
        self.training, self.eval_examples = training, eval_examples
        self.checkpoints = Checkpoints(run.checkpoints)
        self._initial: InitialValues | None = None

    @property
    def key(self) -> Key[Array, ""]:
        """Root key of all dropout."""
        return stream(jax.random.key(self.config.seed), "dropout")

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of the completed epochs."""
        return [record for record in self.run.logged if record["kind"] == "epoch"]

    @property
    def chosen(self) -> dict[str, Any]:
        """The record of the epoch to export; the first of equally good ones."""
        if self.config.train.select == "last":
            return self.epochs[-1]
        name = f"{self.config.train.eval_split}_accuracy"
        return max(self.epochs, key=lambda record: record[name])

    def initial_values(self, model: Model) -> InitialValues | None:
        """Returns the values that `train.init_from` names, read once; None if it is empty.

        Raises:
          UserError: the source cannot be read, or does not fit the model.
        """
        if self._initial is None:
            self._initial = read_initial(self.config.train.init_from, model, self.vocabulary)
        return self._initial

    def plan(self, epoch: int) -> list[BatchPlan]:
        """Returns the batches of an epoch."""
        return plan_epoch(self.training.lengths, self.config.data, self.config.seed, epoch)

    def record(self, pending: list[Any], seconds: float) -> dict[str, Any]:
        """Returns the part of a checkpoint that is plain JSON."""
        return {
            "format": CHECKPOINT_FORMAT,
            "config": self.config.to_json(),
            "metrics": self.run.logged,
            "pending": pending,
            "seconds": seconds,
        }

    def restore(
        self, like: TrainState, console: Console, at_most: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Returns state and record of the newest intact checkpoint, or those of the first step.

        Raises:
          UserError: the checkpoint is of another config, or every one is damaged.
        """

        def accept(record: dict[str, Any]) -> None:
            if record.get("format") != CHECKPOINT_FORMAT:
                raise UserError(
                    f"{self.checkpoints.folder} holds checkpoints of another version; use the "
                    "version of bilstm_attn that wrote them, or give --name"
                )
            config = from_json(record["config"], f"a checkpoint in {self.checkpoints.folder}")
            if differing := differences(config, self.config):
                raise UserError(
                    f"{self.checkpoints.folder} holds checkpoints of another config "
                    f"({'; '.join(differing[:3])}); put back this run's own, or give --name"
                )

        restored = self.checkpoints.restore(like, console.print, accept, at_most)
        return restored or (like, self.record([], 0.0))

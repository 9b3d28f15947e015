"""One seed of a recipe: its examples, its run folder, its checkpoints."""

import time
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from bilstm_attn.config import Config, differences
from bilstm_attn.config_files import from_json
from bilstm_attn.data.batches import BatchPlan, Stream, plan_epoch, read_batch
from bilstm_attn.data.splits import (
    Examples,
    concatenate,
    count_vocabulary,
    draw_parts,
    examples_of_rows,
    read_rows,
    split_examples,
    unlabelled_examples,
)
from bilstm_attn.data.token_cache import TokenCache
from bilstm_attn.data.vocabulary import Vocabulary
from bilstm_attn.errors import UserError
from bilstm_attn.inference.evaluate import predict_logits
from bilstm_attn.inference.exported import export_model
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import Part
from bilstm_attn.runtime.distributed import on_main_process
from bilstm_attn.runtime.files import tree_sha256
from bilstm_attn.runtime.prng import stream
from bilstm_attn.training.checkpoint import Checkpoints
from bilstm_attn.training.initial import InitialValues, read_initial
from bilstm_attn.training.metrics_log import (
    MetricsLog,
    describe_epoch,
    divergence_error,
    means_of,
)
from bilstm_attn.training.objectives import Terms
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.training.step import Groups, TrainState, initial_state
from bilstm_attn.training.train_program import Program
from bilstm_attn.training.training_run import Position, Record, TrainingRun

CHECKPOINT_FORMAT = 2  # raise it when the train state or the record changes its structure


class SeedReplica(TrainingRun):
    """The training of one seed in a run folder."""

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        training: Examples,
        eval_examples: Examples,
        run: RunDir,
        *,
        streams: tuple[Stream, ...] = (),
        log_every_steps: int = 10,
    ):
        """Creates the replica; nothing is read or written yet.

        Args:
          config: the recipe with this seed.
          vocabulary: the words of this seed's training examples.
          training: the labelled examples, then those of the streams.
          eval_examples: evaluated after each epoch. `config.train.select` says whether the best or
            the last epoch is exported.
          run: the folder of the run.
          streams: further sources of rows.
          log_every_steps: number of steps between log lines.
        """
        self.config, self.vocabulary, self.run = config, vocabulary, run
        self.training, self.eval_examples, self.streams = training, eval_examples, streams
        self.checkpoints = Checkpoints(run.checkpoints)
        self._initial: InitialValues | None = None
        self._log_every_steps = log_every_steps
        self._log: MetricsLog

    def opened(self) -> AbstractContextManager[object]:
        """Opens the checkpoints."""
        return self.checkpoints

    @property
    def size(self) -> int:
        """Number of labelled training examples."""
        return self.training.size - sum(len(stream.examples) for stream in self.streams)

    @property
    def labelled(self) -> Examples:
        """The labelled training examples."""
        return self.training.take(np.arange(self.size)) if self.streams else self.training

    @property
    def key_data(self) -> np.ndarray:
        """The data of the root key of all dropout."""
        return np.asarray(jax.random.key_data(stream(jax.random.key(self.config.seed), "dropout")))

    @property
    def epochs(self) -> list[Record]:
        """The records of the completed epochs."""
        return [record for record in self.run.logged if record["kind"] == "epoch"]

    @property
    def chosen(self) -> Record:
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
        seed = self.config.seed
        return plan_epoch(self.training.lengths, self.config.data, seed, epoch, self.streams)

    def read(self, plan: BatchPlan, part: Part) -> Groups:
        """Returns the rows of one process of a planned batch."""
        return read_batch(self.training, plan, self.config.data, part)

    def begin(self, program: Program, console: Console) -> Position:
        """Returns the state of the newest intact checkpoint, or the initial one."""
        state, record = self.restore(program, console)
        if self.checkpoints.steps():
            console.print(f"resuming at step {int(state.step)}")
        return self.rewind(state, record, program)

    def restore(
        self, program: Program, console: Console, at_most: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Returns state and record of the newest intact checkpoint, or those of step 0.

        Raises:
          UserError: the checkpoint has another config, or every one is damaged.
        """
        initial = initial_state(
            program.model,
            program.objective,
            program.optimizer,
            self.config.seed,
            self.initial_values(program.model),
        )
        restored = self.checkpoints.restore(initial, console.print, self._require_config, at_most)
        return restored or (initial, self._record([], 0.0))

    def rewind(
        self,
        state: TrainState,
        record: dict[str, Any],
        program: Program,
        seed_index: tuple[int, ...] = (),
    ) -> Position:
        """Makes log and checkpoints those of a restored state, and returns its position.

        `seed_index` is the index of this seed in the terms of several seeds.
        """
        step = int(state.step)
        self.run.rewind(step, record["metrics"])
        self.checkpoints.rewind(step)
        self._log = MetricsLog(
            program.objective,
            self.run.log,
            self._log_every_steps,
            pending=record["pending"],
            seed_index=seed_index,
        )
        return Position(state, step, record["seconds"])

    def log_step(self, step: int, epoch: int, terms: Terms) -> str:
        """Logs a step; returns the newest loss, as text."""
        self._log.add(step, epoch, terms)
        return self._log.latest

    def log_proof(self, step: int, state: TrainState) -> None:
        """Logs the digest of the state and the sum of the loss, which `--verify` compares."""
        state = jax.device_get(state)
        loss = float(state.terms[self._log.objective.minimised[0]].sum)
        proof = {"state_sha256": tree_sha256(state), "loss": loss}
        self.run.log({"kind": "proof", "step": step, **proof})

    def end_epoch(
        self, program: Program, state: TrainState, seconds: float, console: Console
    ) -> list[Record]:
        """Evaluates and logs an epoch, and exports it if it is the one selected so far."""
        self._log.flush()
        split, epoch, step = self.config.train.eval_split, len(self.epochs) + 1, int(state.step)
        trained = means_of(program.objective, jax.device_get(state.terms))
        begun = time.perf_counter()
        with console.bar(f"evaluate {split}", self.eval_examples.size, 0) as bar:
            logits = predict_logits(
                program.logits_of,
                state.params,
                self.eval_examples,
                self.config.data,
                program.mesh,
                bar.advance,
            )
        if not np.isfinite(logits).all():
            raise divergence_error(step, epoch)
        measured = program.model.task.measure(logits, self.eval_examples.labels)
        record = {
            "epoch": epoch,
            "step": step,
            "seconds": seconds,
            "measure_seconds": time.perf_counter() - begun,
            "examples_per_second": self.size / seconds,
            **{f"train_{name}": value for name, value in trained.items()},
            **{f"{split}_{name}": value for name, value in measured.items()},
        }
        self.run.log({"kind": "epoch", **record})
        if self.chosen["epoch"] == epoch:
            params = jax.device_get(state.params)
            on_main_process(
                lambda: export_model(self.run.model, params, self.config, self.vocabulary)
            )
        return [self.epochs[-1]]

    def describe(self, records: list[Record]) -> list[str]:
        """Returns the line that is printed after an epoch."""
        return [describe_epoch(record, self.config.train.eval_split) for record in records]

    def save(self, step: int, state: TrainState, seconds: float = 0.0) -> None:
        """Saves a checkpoint.

        Raises:
          UserError: it cannot be written; earlier checkpoints are intact.
        """
        self.checkpoints.save(step, state, self._record(self._log.pending(), seconds))

    def _record(self, pending: list[Any], seconds: float) -> dict[str, Any]:
        """Returns the part of a checkpoint that is plain JSON."""
        return {
            "format": CHECKPOINT_FORMAT,
            "config": self.config.to_json(),
            "metrics": self.run.logged,
            "pending": pending,
            "seconds": seconds,
        }

    def _require_config(self, record: dict[str, Any]) -> None:
        """Requires a checkpoint's record to be of this version and of this config."""
        folder = self.checkpoints.folder
        if record.get("format") != CHECKPOINT_FORMAT:
            raise UserError(
                f"{folder} holds checkpoints of another version; use the version of bilstm_attn "
                "that wrote them, or give --name"
            )
        config = from_json(record["config"], f"a checkpoint in {folder}")
        if differing := differences(config, self.config):
            raise UserError(
                f"{folder} holds checkpoints of another config ({'; '.join(differing[:3])}); "
                "restore this run's own checkpoints, or give --name"
            )


def make_replica(
    tokens: TokenCache, config: Config, run: RunDir, log_every_steps: int = 10
) -> SeedReplica:
    """Returns the replica of a seed: its vocabulary, training and evaluation examples.

    Raises:
      UserError: the config needs more examples than there are, or unlabelled ones where the data
        set has none.
    """
    train_split = tokens.split("train")
    rows = read_rows(train_split, config.data)
    training_rows, held_out = draw_parts(rows, config.data, config.seed)
    vocabulary = count_vocabulary(
        train_split, training_rows, tokens.lexicon(), config.data.vocabulary_size
    )
    if config.train.eval_split == "test":
        eval_examples = split_examples(tokens, "test", vocabulary, config)
    else:
        eval_examples = examples_of_rows(tokens, "train", held_out, vocabulary, config)
    training = examples_of_rows(tokens, "train", training_rows, vocabulary, config)
    streams = ()
    if quota := config.data.unlabelled_batch_size:
        labelled, unlabelled = training, unlabelled_examples(tokens, vocabulary, config)
        training = concatenate(labelled, unlabelled)
        streams = (Stream("unlabelled", range(labelled.size, training.size), quota),)
    return SeedReplica(
        config,
        vocabulary,
        training,
        eval_examples,
        run,
        streams=streams,
        log_every_steps=log_every_steps,
    )

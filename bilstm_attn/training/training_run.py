"""What the training loop works on: where batches come from, and where results go."""

import abc
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np

from bilstm_attn.config import Config
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import Part
from bilstm_attn.training.objectives import Terms
from bilstm_attn.training.step import Groups, TrainState
from bilstm_attn.training.train_program import Layout, Program

Record = dict[str, Any]  # of an epoch, as in metrics.jsonl


class Position(NamedTuple):
    """Where training begins or continues."""

    state: TrainState
    step: int
    seconds: float  # spent on the epoch before an interruption


class Plan(Protocol):
    """A batch before its tokens are read."""

    @property
    def edges(self) -> Layout:
        """The padded length of each group."""
        ...

    @property
    def size(self) -> int:
        """Number of examples, without filler."""
        ...


class TrainingRun(abc.ABC):
    """One training, of one seed or of several in one program."""

    config: Config

    def opened(self) -> AbstractContextManager[object]:
        """Holds what is open while training, such as the checkpoints."""
        return nullcontext()

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of labelled training examples: an epoch is one pass over them."""

    @property
    @abc.abstractmethod
    def key_data(self) -> np.ndarray:
        """The data of the root key of all dropout."""

    @abc.abstractmethod
    def begin(self, program: Program, console: Console) -> Position:
        """Returns the state of the newest checkpoint, or the initial one."""

    @abc.abstractmethod
    def plan(self, epoch: int) -> list[Any]:
        """Returns the batches of an epoch, numbered from 0, as a list of `Plan`."""

    @abc.abstractmethod
    def read(self, plan: Any, part: Part) -> Groups:
        """Returns the rows of one process of a planned batch, on the host."""

    @abc.abstractmethod
    def log_step(self, step: int, epoch: int, terms: Terms) -> str:
        """Logs a step that was just dispatched; returns the newest loss, as text."""

    @abc.abstractmethod
    def log_proof(self, step: int, state: TrainState) -> None:
        """Logs the digest of the state that `--verify` compares."""

    @abc.abstractmethod
    def end_epoch(
        self, program: Program, state: TrainState, seconds: float, console: Console
    ) -> list[Record]:
        """Evaluates, logs and exports an epoch; returns its record, one per seed."""

    @abc.abstractmethod
    def describe(self, records: list[Record]) -> list[str]:
        """Returns the lines that are printed after an epoch, one per seed."""

    @abc.abstractmethod
    def save(self, step: int, state: TrainState, seconds: float = 0.0) -> None:
        """Saves a checkpoint; `seconds` are those spent on an unfinished epoch."""

"""What the benchmark asks of an implementation of the tutorial's model."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bilstm_attn.config import ModelConfig
from bilstm_attn.types import Batch, Params

VOCABULARY = 10_000


class Unmeasured(Exception):
    """An implementation cannot run in this setting; says why."""


class Setting(NamedTuple):
    """What else an implementation is made for."""

    config: ModelConfig
    rows: int  # divides the rows of every batch
    devices: int | None = None  # devices or threads; None is all
    on_gpu: bool = False


class Peer(abc.ABC):
    """The model with given parameters. Public methods return when their work is done.

    The constructor may raise `Unmeasured`, or `ImportError` where its library is not installed.
    """

    @abc.abstractmethod
    def __init__(self, params: Params, setting: Setting):
        """Takes parameters in the shape of `Model.init`'s."""

    @abc.abstractmethod
    def fill(self, params: Params) -> None:
        """Sets the parameters of `logits`."""

    @abc.abstractmethod
    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logit of each review `[b]`, without dropout."""

    @abc.abstractmethod
    def train(self, batch: Batch) -> None:
        """Takes a step of Adam with dropout."""

    def epoch(self, batches: Sequence[tuple[Batch, ...]]) -> None:
        """Takes a step on each batch of an epoch, as its users would; here padded as a whole."""
        for groups in batches:
            self.train(join(groups))

    def layers(self, batch: Batch) -> None:
        """Runs the recurrent layers alone, with dropout, forward and backward."""
        raise Unmeasured("its layers are not timed by themselves")


def join(groups: Sequence[Batch]) -> Batch:
    """Returns one batch of the groups' rows, padded to the longest."""
    steps = max(group.tokens.shape[1] for group in groups)
    parts: Any = [
        group._replace(tokens=np.pad(group.tokens, ((0, 0), (0, steps - group.tokens.shape[1]))))
        for group in groups
    ]
    on_host: Any = [np.concatenate(field) for field in zip(*parts, strict=True)]
    return Batch(*on_host)

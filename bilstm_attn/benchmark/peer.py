"""The interface of a benchmarked implementation of the tutorial's model."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bilstm_attn.config import ModelConfig
from bilstm_attn.types import Batch, Params

VOCABULARY = 10_000


class Unmeasured(Exception):
    """An implementation cannot run with this setting; the message gives the reason."""


class Setting(NamedTuple):
    """The model's sizes and the hardware of one measurement."""

    config: ModelConfig
    rows: int  # a common divisor of the number of rows of every batch
    devices: int | None = None  # number of devices or threads; None is all
    on_gpu: bool = False


class Peer(abc.ABC):
    """An implementation with its own parameters. Every method blocks until its result is ready.

    The constructor raises `Unmeasured` if the implementation cannot run with the setting, and
    `ImportError` if its library is not installed.
    """

    @abc.abstractmethod
    def __init__(self, params: Params, setting: Setting):
        """Builds the model with `params`, a tree like that of `Model.init`."""

    @abc.abstractmethod
    def set_params(self, params: Params) -> None:
        """Sets the parameters that `logits` uses."""

    @abc.abstractmethod
    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logit of each example `[b]`, without dropout."""

    @abc.abstractmethod
    def train_step(self, batch: Batch) -> None:
        """Takes one step of Adam, with dropout."""

    def train_epoch(self, batches: Sequence[tuple[Batch, ...]]) -> None:
        """Takes one step per batch, given as its length groups; here padded to one length."""
        for groups in batches:
            self.train_step(join_groups(groups))

    def encoder_gradient(self, batch: Batch) -> None:
        """Runs only the recurrent layers, with dropout, forward and backward."""
        raise Unmeasured("its recurrent layers are not timed separately")


def join_groups(groups: Sequence[Batch]) -> Batch:
    """Returns one batch of the rows of all groups, padded to the longest."""
    steps = max(group.tokens.shape[1] for group in groups)
    padded: Any = [
        group._replace(tokens=np.pad(group.tokens, ((0, 0), (0, steps - group.tokens.shape[1]))))
        for group in groups
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *padded)

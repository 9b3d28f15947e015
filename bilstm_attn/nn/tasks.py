"""Tasks: the meaning of the head's outputs. A new task is one class and one line in `TASKS`.

A task knows the names of the labels, the width of the head, the loss, the predicted label, the
probabilities and the metrics. No other file takes the sigmoid of a logit or compares one with 0.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from bilstm_attn.errors import UserError
from bilstm_attn.nn.metrics import measure_binary, sigmoid
from bilstm_attn.registry import look_up
from bilstm_attn.types import Logits

UNLABELLED = -1  # the label of an example without one


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """The labels of a data set, and how logits predict them.

    Methods without NumPy annotations work on JAX arrays under `jit` and preserve leading axes.
    """

    label_names: tuple[str, ...]
    """The name of each label, in the order of the labels 0, 1, ..."""

    name: ClassVar[str]
    """The key in `TASKS`."""
    default_label_names: ClassVar[tuple[str, ...]]
    """The label names for a data set without label names."""

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """The width of the head."""

    @abc.abstractmethod
    def logits(self, outputs: Float[Array, "b o"]) -> Logits:
        """Returns the logits from the outputs of the head."""

    @abc.abstractmethod
    def loss(self, logits: Logits, labels: Int[Array, " b"]) -> Float[Array, " b"]:
        """Returns the loss of every example, in nats; finite for unlabelled examples."""

    @abc.abstractmethod
    def predicted(self, logits: Any) -> Any:
        """Returns the predicted label of every example, from JAX or NumPy logits."""

    def correct(self, logits: Logits, labels: Int[Array, " b"]) -> Bool[Array, " b"]:
        """Returns whether the predicted label equals the label of each example."""
        return self.predicted(logits) == labels

    @abc.abstractmethod
    def probability(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the probability of the last label."""

    @abc.abstractmethod
    def toward_predicted(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns ±1: the sign that makes a larger logit support the predicted label."""

    @abc.abstractmethod
    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Returns the probability of every label, float64 `[n c]`."""

    @abc.abstractmethod
    def measure(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Returns the metrics by name, from `logits[n]` and `labels[n]` of at least one example."""


@dataclasses.dataclass(frozen=True)
class Binary(Task):
    """Two labels and one logit: `p(label 1) = sigmoid(logit)`. A logit of 0 predicts label 0."""

    name = "binary"
    default_label_names = ("negative", "positive")

    def __post_init__(self):
        if len(self.label_names) != 2:
            raise UserError(
                f"task binary must have 2 labels, got {len(self.label_names)}: "
                f"{', '.join(self.label_names)}; choose another model.task"
            )

    @property
    def outputs(self) -> int:
        """The width of the head."""
        return 1

    def logits(self, outputs: Float[Array, "b o"]) -> Logits:
        """Returns the only output, `[b]`."""
        return outputs[:, 0]

    def loss(self, logits: Logits, labels: Int[Array, " b"]) -> Float[Array, " b"]:
        """Returns `-log sigmoid(logit)` for label 1 and `-log sigmoid(-logit)` for label 0."""
        target = jnp.clip(labels, 0, 1).astype(jnp.float32)
        return optax.sigmoid_binary_cross_entropy(logits, target)

    def predicted(self, logits: Any) -> Any:
        """Returns 1 where the logit is above 0, else 0."""
        return (logits > 0).astype("int32")

    def probability(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns `sigmoid(logits)`."""
        return jax.nn.sigmoid(logits)

    def toward_predicted(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns 1 for a logit above 0, else -1."""
        return jnp.where(logits > 0, 1.0, -1.0)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Returns `[1 - sigmoid(logit), sigmoid(logit)]`, float64 `[n 2]`."""
        probability = sigmoid(logits)
        return np.stack([1 - probability, probability], axis=-1)

    def measure(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Returns accuracy, loss (nats), F1 of label 1, ROC-AUC and calibration error."""
        return measure_binary(logits, labels)


TASKS: dict[str, type[Task]] = {"binary": Binary}


def make_task(name: str, label_names: tuple[str, ...] = ()) -> Task:
    """Returns the task called `name`, by default with its default label names.

    Raises:
      UserError: the name is unknown, or the task does not support these labels.
    """
    kind = look_up("task", TASKS, name)
    return kind(label_names or kind.default_label_names)

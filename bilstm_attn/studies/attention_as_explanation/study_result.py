"""The results of the study for one model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bilstm_attn.nn.tasks import Task
from bilstm_attn.studies.attention_as_explanation.measurements import (
    AttentionMeasures,
    AttributionMeasures,
)

UNIFORM = "uniform attention"  # name of the auxiliary model with equal weights
OTHER_SEED = "other seed"  # prefix of the names of the recipe's other seeds


class ModelComparison(NamedTuple):
    """An auxiliary model compared with the base model, on the studied examples."""

    name: str
    accuracy: float
    probability_change: float
    """Mean absolute difference of the two models' probabilities."""
    divergences: list[float] | None
    """Jensen-Shannon divergence of the two attentions per example, in nats.

    None if the auxiliary model has no attention of its own.
    """

    @property
    def divergence(self) -> float | None:
        """The mean divergence, in nats."""
        return None if self.divergences is None else float(np.mean(self.divergences))


TradeOff = Sequence[tuple[float, ModelComparison]]  # adversaries by their strength, ascending


class StudyResult(NamedTuple):
    """All measurements of one model."""

    name: str
    description: str
    task: Task
    labels: np.ndarray
    attention: AttentionMeasures
    attributions: AttributionMeasures
    loop_seconds: dict[str, float]
    """Seconds per example of the reference loops, by experiment."""
    auxiliary: list[ModelComparison]
    trade_off: TradeOff
    seconds: dict[str, float]
    """Seconds spent on each cached result."""

    @property
    def predicted(self) -> np.ndarray:
        """The label that the model predicts for each example."""
        return self.task.predicted(self.attention.logits)

    @property
    def other_seeds(self) -> list[ModelComparison]:
        """The comparisons with the recipe's other seeds."""
        return [model for model in self.auxiliary if model.name.startswith(OTHER_SEED)]

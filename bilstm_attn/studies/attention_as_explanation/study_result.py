"""What an examination finds out about one model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bilstm_attn.studies.attention_as_explanation.measurements import Attributions, JainWallace

EVEN = "even attention"  # of the models trained beside one


class Trained(NamedTuple):
    """A model that was trained beside another: how far it is from it on the reviews asked about."""

    name: str
    accuracy: float
    change: float  # mean difference of the probabilities
    divergences: list[float] | None  # JSD of its attention from the base's, a review, in nats

    @property
    def divergence(self) -> float | None:
        """The mean divergence."""
        return None if self.divergences is None else float(np.mean(self.divergences))


TradeOff = Sequence[tuple[float, Trained]]  # adversaries by their strength, rising


class Examined(NamedTuple):
    """Everything that was found about one model."""

    name: str
    about: str
    labels: np.ndarray
    attention: JainWallace
    attributions: Attributions
    naive: dict[str, float]  # seconds of a review's experiments, as loops over words and draws
    trained: list[Trained]
    trade_off: TradeOff
    seconds: dict[str, float]  # that each piece took

    @property
    def seeds(self) -> list[Trained]:
        """The recipe's other seeds."""
        return [one for one in self.trained if one.name.startswith("the recipe's")]

"""What training minimises. A new objective is one class and one line in `OBJECTIVES`."""

import abc

from jaxtyping import Array, Float

from bilstm_attn.nn.model import Model
from bilstm_attn.types import Batch, Keys, Params, Sums


def labelled(batch: Batch) -> Float[Array, " b"]:
    """Returns each row's weight, 0 for filler and unlabelled reviews."""
    return batch.weight * (batch.label >= 0)


class Objective(abc.ABC):
    """A sum over reviews to minimise, beside what is reported."""

    @abc.abstractmethod
    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Sums:
        """Returns sums over the batch; `loss / weight` is what is minimised.

        `keys`, one a review, are the only source of noise.
        """


class CrossEntropy(Objective):
    """Cross-entropy of the labelled reviews."""

    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Sums:
        """Returns the sums of cross-entropy, of right answers and of weights."""
        logits = model(params, batch.tokens, batch.length, keys).logits
        weight = labelled(batch)
        correct = model.task.correct(logits, batch.label)
        return Sums(
            loss=(weight * model.task.loss(logits, batch.label)).sum(),
            correct=(weight * correct).sum(),
            weight=weight.sum(),
        )


OBJECTIVES: dict[str, type[Objective]] = {"cross_entropy": CrossEntropy}

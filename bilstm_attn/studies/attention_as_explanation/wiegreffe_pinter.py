"""Training objectives of "Attention is not not explanation".

Wiegreffe and Pinter, 2019, arXiv:1908.04626, sections 3 and 4. Auxiliary models are trained on the
training examples of the model under study, the *base* model: with uniform or frozen attention, as
a perceptron guided by the base model's attention, or as an adversary of the base model.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilstm_attn.explain.attribution import TokenWeights
from bilstm_attn.nn.model import Model
from bilstm_attn.training.objectives import Objective, Term, Terms, labelled
from bilstm_attn.types import Batch, Keys, Lengths, Logits, Params, Tokens, Weights

MIN_WEIGHT = 1e-10  # lower bound of an attention weight inside a logarithm
BASE_LOGITS, BASE_WEIGHTS = "base_logits", "base_weights"  # keys of `Batch.extras`

Extras = Mapping[str, np.ndarray]  # arrays `[n]` or `[n t]` over all training examples


def kl_divergence(weights: TokenWeights, others: TokenWeights) -> Float[Array, " b"]:
    """Returns `KL(weights || others)` of attention weights `[b t]` per example, in nats.

    Padding has weight 0 and contributes nothing.
    """
    ratio = jnp.log(jnp.maximum(weights, MIN_WEIGHT)) - jnp.log(jnp.maximum(others, MIN_WEIGHT))
    return (weights * ratio).sum(axis=1)


def base_extras(logits: np.ndarray, weights: np.ndarray) -> Extras:
    """Returns the base model's logits `[n]` and attention weights `[n t]` as `Batch.extras`."""
    return {BASE_LOGITS: logits, BASE_WEIGHTS: weights}


class GuidedCrossEntropy(Objective):
    """Cross-entropy of the labels, under the base model's attention weights.

    Section 3.4. Reads `extras["base_weights"]`.
    """

    @property
    def coefficients(self) -> Mapping[str, float]:
        """Cross-entropy is minimised."""
        return {"cross_entropy": 1.0, "accuracy": 0.0}

    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Terms:
        """Returns the sums of cross-entropy and of correct predictions over labelled rows."""
        imposed = batch.extras[BASE_WEIGHTS].T
        logits = logits_under(model, params, batch.tokens, batch.length, imposed, keys)
        weight, correct = labelled(batch), model.task.correct(logits, batch.label)
        count = weight.sum()
        return {
            "cross_entropy": Term((weight * model.task.loss(logits, batch.label)).sum(), count),
            "accuracy": Term((weight * correct).sum(), count),
        }


def logits_under(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    weights: Weights,
    keys: Keys | None = None,
) -> Logits:
    """Returns the logits under the given attention weights `[t b]`."""
    states, last = model.encode(params, model.embed(params, tokens, keys), lengths, keys)
    return model.logits_from_states(params, states, last, weights, lengths, keys)


@dataclasses.dataclass(frozen=True)
class Adversary(Objective):
    """`|p - p_base| - strength KL(alpha || alpha_base)`: same predictions, other attention.

    Section 4, eq. 2, with the total variation distance of two binary predictions, `|p - p_base|`.
    Reads `extras["base_logits"]` and `extras["base_weights"]`. Deviation: the authors' code halves
    the distance, so a strength here corresponds to half that value in their code.
    """

    strength: float

    @property
    def coefficients(self) -> Mapping[str, float]:
        """The change of the probability is minimised, the divergence maximised."""
        return {"change": 1.0, "divergence": -self.strength, "agreement": 0.0}

    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Terms:
        """Returns the sums of change, of divergence and of predictions equal to the base's."""
        output, task = model(params, batch.tokens, batch.length, keys), model.task
        base_logits = batch.extras[BASE_LOGITS]
        change = jnp.abs(task.probability(output.logits) - task.probability(base_logits))
        divergence = kl_divergence(output.weights, batch.extras[BASE_WEIGHTS])
        same = task.predicted(output.logits) == task.predicted(base_logits)
        weight, count = batch.weight, batch.weight.sum()
        return {
            "change": Term((weight * change).sum(), count),
            "divergence": Term((weight * divergence).sum(), count),
            "agreement": Term((weight * same).sum(), count),
        }

"""Training objectives. A new objective is one class and one line in `OBJECTIVES`."""

import abc
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilstm_attn.nn.model import Model
from bilstm_attn.types import Batch, Keys, Params


class Term(NamedTuple):
    """One term of an objective: its mean is `sum / count`, divided once, where it is needed."""

    sum: Float[Array, "*s"]
    count: Float[Array, "*s"]  # pyright: ignore[reportIncompatibleMethodOverride]


Terms = dict[str, Term]


def add_terms(terms: Terms, others: Terms) -> Terms:
    """Returns the terms over both sets of examples."""
    return jax.tree.map(jnp.add, terms, others)


def labelled(batch: Batch) -> Float[Array, " b"]:
    """Returns the weight of every row, 0 for filler rows and unlabelled examples."""
    return batch.weight * (batch.label >= 0)


class Objective(abc.ABC):
    """The loss `sum_k coefficients[k] * terms[k].sum / terms[k].count`, and its reported terms.

    Counts are summed over the whole batch, whatever devices, groups and microbatches share it, and
    each term is divided by its own: a term over labelled rows and one over all rows stand side by
    side. A term whose count is 0 in a batch adds nothing to the loss of that batch.
    """

    @property
    @abc.abstractmethod
    def coefficients(self) -> Mapping[str, float]:
        """A coefficient for every term that is returned; 0 for terms that are only logged."""

    @abc.abstractmethod
    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Terms:
        """Returns the terms of a batch, by the names in `coefficients`.

        `keys`, one per example, are the only source of noise. Counts must not depend on `params`.
        """

    @property
    def minimised(self) -> list[str]:
        """The names of the terms whose coefficient is not 0, in order."""
        return [name for name, coefficient in self.coefficients.items() if coefficient != 0]

    def zero_terms(self) -> Terms:
        """Returns the terms over no example."""
        return {name: Term(*jnp.zeros((2,), jnp.float32)) for name in self.coefficients}


class CrossEntropy(Objective):
    """The mean loss of the task over labelled examples; accuracy is logged."""

    @property
    def coefficients(self) -> Mapping[str, float]:
        """Cross-entropy is minimised."""
        return {"cross_entropy": 1.0, "accuracy": 0.0}

    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Terms:
        """Returns the sums of cross-entropy and of correct predictions over labelled rows."""
        logits = model(params, batch.tokens, batch.length, keys).logits
        weight = labelled(batch)
        correct = model.task.correct(logits, batch.label)
        count = weight.sum()
        return {
            "cross_entropy": Term((weight * model.task.loss(logits, batch.label)).sum(), count),
            "accuracy": Term((weight * correct).sum(), count),
        }


OBJECTIVES: dict[str, type[Objective]] = {"cross_entropy": CrossEntropy}

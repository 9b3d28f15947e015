"""Poolings: one vector from all states. A new pooling is one class and one line in `POOLINGS`."""

import abc
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from bilstm_attn.types import Context, Mask, Query, States, Weights


class Pooling(nnx.Module):
    """Pools states into one vector. The constructor takes `states_size` and `rngs`."""

    uses_attention: ClassVar[bool] = False
    """Whether the pooling uses `weights`; otherwise the model has no attention parameters."""

    def __init__(self, states_size: int, *, rngs: nnx.Rngs):
        del states_size, rngs

    @abc.abstractmethod
    def __call__(self, states: States, last: Query, weights: Weights, mask: Mask) -> Context:
        """Returns one vector per example `[b d]`, zero for an example without tokens."""


def weighted_sum(weights: Weights, states: States) -> Context:
    """Returns `sum_t weights[t] states[t]`.

    An einsum would be slower: on CPU, XLA transposes both operands, which takes a fifth of a
    training step.
    """
    return (weights[..., None] * states).sum(axis=0)


class AttentionPooling(Pooling):
    """`context = sum_t weights[t] states[t]`. Bahdanau et al., 2015, arXiv:1409.0473, eq. 5."""

    uses_attention = True

    def __call__(self, states: States, last: Query, weights: Weights, mask: Mask) -> Context:
        """Returns the weighted sum of the states `[b d]`."""
        del last, mask
        return weighted_sum(weights, states)


class LastPooling(Pooling):
    """The last hidden states of both directions."""

    def __call__(self, states: States, last: Query, weights: Weights, mask: Mask) -> Context:
        """Returns `last` `[b d]`."""
        del states, weights, mask
        return last


class MeanPooling(Pooling):
    """The mean of the states over the tokens, without padding."""

    def __call__(self, states: States, last: Query, weights: Weights, mask: Mask) -> Context:
        """Returns the mean over time `[b d]`."""
        del last, weights
        return weighted_sum(mask / jnp.maximum(mask.sum(axis=0, keepdims=True), 1), states)


class MaxPooling(Pooling):
    """The maximum of each unit over the tokens, without padding. Collobert et al., 2011, eq. 6."""

    def __call__(self, states: States, last: Query, weights: Weights, mask: Mask) -> Context:
        """Returns the maximum over time `[b d]`."""
        del last, weights
        top = jnp.where(mask[..., None], states, jnp.finfo(states.dtype).min).max(axis=0)
        return jnp.where(mask.any(axis=0)[:, None], top, 0)


POOLINGS: dict[str, type[Pooling]] = {
    "attention": AttentionPooling,
    "last": LastPooling,
    "mean": MeanPooling,
    "max": MaxPooling,
}

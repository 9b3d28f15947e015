"""Attention over the states: a score per state, then a softmax.

A new attention is one class and one line in `ATTENTIONS`.
"""

import abc

import jax.numpy as jnp
from flax import nnx
from jax import lax

from bilstm_attn.nn.cells import glorot_uniform
from bilstm_attn.types import Mask, Query, Scores, States, Weights


def masked_softmax(scores: Scores, mask: Mask) -> Weights:
    """Returns `exp(scores) / sum(exp(scores))` over time where `mask`, and 0 elsewhere.

    An example without tokens has weights of 0, not NaN. Computed in float32.
    """
    scores = jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    top = lax.stop_gradient(scores.max(axis=0, keepdims=True))
    powers = jnp.where(mask, jnp.exp(scores - top), 0)
    total = powers.sum(axis=0, keepdims=True)  # at least 1 with tokens, 0 without
    # maximum(total, 1) would halve the derivative where the total is exactly 1.
    return powers / jnp.where(total > 0, total, 1.0)


class Attention(nnx.Module):
    """Scores every state. The constructor takes `states_size`, `attention_size` and `rngs`."""

    @abc.abstractmethod
    def scores(self, states: States, query: Query) -> Scores:
        """Returns a score for every state `[t b]`; padding is masked afterwards."""

    def __call__(self, states: States, query: Query, mask: Mask) -> Weights:
        """Returns the attention weights `[t b]`, which sum to 1 over the tokens of an example."""
        return masked_softmax(self.scores(states, query), mask)


class Additive(Attention):
    """`score[t] = v . tanh(states[t] W_1 + query W_2 + b)`.

    Bahdanau et al., 2015, arXiv:1409.0473, appendix A.1.2.
    Deviation: a bias b, as in the tutorial's dense layers. A bias added to the score would cancel
    in the softmax.
    """

    def __init__(self, states_size: int, attention_size: int, *, rngs: nnx.Rngs):
        shape = (states_size, attention_size)
        self.states_kernel = nnx.Param(glorot_uniform(rngs.params(), shape))
        self.query_kernel = nnx.Param(glorot_uniform(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(attention_size))
        self.vector = nnx.Param(glorot_uniform(rngs.params(), (attention_size, 1)))

    def scores(self, states: States, query: Query) -> Scores:
        """Returns a score for every state `[t b]`."""
        from_query = query @ self.query_kernel[...] + self.bias[...][None, :]
        units = jnp.tanh(states @ self.states_kernel[...] + from_query[None])
        return (units @ self.vector[...])[..., 0]


class AdditiveKeys(Attention):
    """`score[t] = v . tanh(states[t] W + b)`: depends on the states only, not on a query.

    Yang et al., 2016, "Hierarchical attention networks", eq. 5-6.
    """

    def __init__(self, states_size: int, attention_size: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), (states_size, attention_size)))
        self.bias = nnx.Param(jnp.zeros(attention_size))
        self.vector = nnx.Param(glorot_uniform(rngs.params(), (attention_size, 1)))

    def scores(self, states: States, query: Query) -> Scores:
        """Returns a score for every state `[t b]`."""
        del query
        units = jnp.tanh(states @ self.kernel[...] + self.bias[...][None, None, :])
        return (units @ self.vector[...])[..., 0]


class Dot(Attention):
    """`score[t] = states[t] . query`.

    Luong et al., 2015, arXiv:1508.04025, eq. 8, "dot".
    """

    def __init__(self, states_size: int, attention_size: int, *, rngs: nnx.Rngs):
        del states_size, attention_size, rngs

    def scores(self, states: States, query: Query) -> Scores:
        """Returns a score for every state `[t b]`."""
        return (states * query[None]).sum(axis=-1)


class Uniform(Attention):
    """`score[t] = 0`: every token has the same weight. The baseline for every other attention."""

    def __init__(self, states_size: int, attention_size: int, *, rngs: nnx.Rngs):
        del states_size, attention_size, rngs

    def scores(self, states: States, query: Query) -> Scores:
        """Returns a score for every state `[t b]`."""
        del query
        return jnp.zeros(states.shape[:2])


ATTENTIONS: dict[str, type[Attention]] = {
    "additive": Additive,
    "additive_keys": AdditiveKeys,
    "dot": Dot,
    "uniform": Uniform,
}

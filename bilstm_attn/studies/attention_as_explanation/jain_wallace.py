"""Would other attention weights have given the same answer? Jain and Wallace, 2019.

"Attention is not explanation", arXiv:1902.10186, sections 4.2.1 and 4.2.2. The states stay as they
are; only the weights over them change. Constants are those of the authors' code.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from bilstm_attn.nn.attention import masked_softmax
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.recurrence import length_mask
from bilstm_attn.runtime.prng import draw_per_token
from bilstm_attn.training.optim import scale_by_amsgrad
from bilstm_attn.types import Keys, Lengths, Logits, Params, Tokens

DRAWS, AT_ONCE = 100, 10  # permutations, and how many of them the model answers in one pass
ADVERSARIES = 5
STEPS = 500
LEARNING_RATE = 0.01
PENALTY = 500.0  # on a change of the answer beyond SLACK
SLACK = 0.01
REPORTED_SLACK = 0.05  # adversaries that change the answer by more are left out of the maximum
SPREAD = 3.0  # of the adversaries' first scores


def jensen_shannon(p: Array, q: Array, axis: int = 0) -> Array:
    """Returns `KL(p || m) / 2 + KL(q || m) / 2` with `m = (p + q) / 2`, in nats, at most ln 2.

    Lin, 1991, eq. 4.1.
    """
    middle = (p + q) / 2

    def to_middle(p: Array) -> Array:
        counts = (p > 0) & (middle > 0)  # the middle of tiny weights may be 0
        both = jnp.where(counts, p, 1), jnp.where(counts, middle, 1)
        return (p * (jnp.log(both[0]) - jnp.log(both[1]))).sum(axis=axis)

    return (to_middle(p) + to_middle(q)) / 2


def permutation_change(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys, draws: int = DRAWS
) -> Float[Array, " b"]:
    """Returns the median change of a review's probability as its weights change places."""
    states, last = model.encode(params, model.embed(params, tokens), lengths)
    weights = model.attend(params, states, last, lengths)
    answer = model.make_logits_given_weights(params, states, last, lengths)
    given = jax.nn.sigmoid(answer(weights))

    def change(at: Int[Array, ""]) -> Logits:
        order = draw_orders(keys, lengths, len(weights), at)
        moved = jnp.take_along_axis(weights, order, axis=0)
        return jnp.abs(jax.nn.sigmoid(answer(moved)) - given)

    return jnp.median(lax.map(change, jnp.arange(draws), batch_size=AT_ONCE), axis=0)


def draw_orders(
    keys: Keys, lengths: Lengths, steps: int, at: Int[Array, ""] | int
) -> Int[Array, "t b"]:
    """Returns an order of each review's own tokens, all as likely; padding keeps its place.

    `at` is the number of the draw.
    """
    lots = draw_per_token(keys, steps, jax.random.uniform, at).T
    return jnp.argsort(jnp.where(length_mask(lengths, steps), lots, 2.0), axis=0, stable=True)


def mean_divergence(weights: Float[Array, "k t b"]) -> Float[Array, " b"]:
    """Returns the mean Jensen-Shannon divergence over all pairs of `k`, each with itself too.

    By `H(m) - (H(p) + H(q)) / 2`, the same number with a fourth of the logarithms.
    """
    count, total = len(weights), 0.0
    own = [_entropy(one) for one in weights]
    for one, other in itertools.combinations(range(count), 2):
        middle = (weights[one] + weights[other]) / 2
        total += _entropy(middle) - (own[one] + own[other]) / 2
    return jnp.asarray(2 * total / count**2)


def _entropy(weights: Float[Array, "t b"]) -> Float[Array, " b"]:
    return -(weights * jnp.log(jnp.where(weights > 0, weights, 1))).sum(axis=0)


class Adversaries(NamedTuple):
    """Attention weights as far from the model's own as the answer allows."""

    weights: Float[Array, "k b t"]
    change: Float[Array, "k b"]
    """Of the probability."""
    divergence: Float[Array, "k b"]
    """Jensen-Shannon divergence from the model's own weights, in nats."""

    def greatest(self, slack: float = REPORTED_SLACK) -> Float[Array, " b"]:
        """Returns the epsilon-max JSD: the greatest divergence at a change of `slack` at most.

        The model's own weights, at a divergence of 0, are among them.
        """
        return jnp.where(self.change <= slack, self.divergence, 0).max(axis=0)


def adversaries(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    keys: Keys,
    count: int = ADVERSARIES,
    steps: int = STEPS,
) -> Adversaries:
    """Returns `count` attentions a review, found together by gradient descent, eq. 1 to 4.

    They minimise `sum_k [penalty max(0, |p_k - p| - slack) - JSD(a_k, a)] - JSD(a_k, a_l)`, the
    last term's mean over pairs.
    """
    states, last = model.encode(params, model.embed(params, tokens), lengths)
    own = model.attend(params, states, last, lengths)
    answer = model.make_logits_given_weights(params, states, last, lengths)
    given = jax.nn.sigmoid(answer(own))
    mask = length_mask(lengths, len(own))

    def judge(scores: Float[Array, "k t b"]) -> tuple[Array, Array, Array]:
        weights = jax.vmap(lambda one: masked_softmax(one, mask))(scores)
        logits = jax.vmap(answer)(weights)
        change = jnp.abs(jax.nn.sigmoid(logits) - given[None])
        return weights, change, jensen_shannon(weights, own[None], axis=1)

    def loss(scores: Float[Array, "k t b"]) -> Float[Array, ""]:
        weights, change, apart = judge(scores)
        among = mean_divergence(weights)
        beyond = PENALTY * jnp.maximum(change - SLACK, 0)
        return ((beyond - apart).sum(axis=0) - among).sum()

    descent = optax.chain(scale_by_amsgrad(), optax.scale_by_learning_rate(LEARNING_RATE))
    scores = SPREAD * jnp.stack(
        [draw_per_token(keys, len(own), jax.random.normal, at).T for at in range(count)]
    )

    def step(state: tuple[Array, optax.OptState], _: None) -> tuple[tuple, None]:
        scores, moments = state
        updates, moments = descent.update(jax.grad(loss)(scores), moments)
        return (optax.apply_updates(scores, updates), moments), None

    (scores, _), _ = lax.scan(step, (scores, descent.init(scores)), length=steps)
    weights, change, apart = judge(scores)
    return Adversaries(weights.transpose(0, 2, 1), change, apart)

"""Would other attention weights have led to the same prediction? Jain and Wallace, 2019.

"Attention is not explanation", arXiv:1902.10186, sections 4.2.1 and 4.2.2. The states are held
constant; only the attention weights change. Constants are those of the authors' code.
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

PERMUTATIONS = 100
PERMUTATIONS_PER_PASS = 10  # evaluated together, to bound memory
ADVERSARIES = 5
STEPS = 500
LEARNING_RATE = 0.01
PENALTY = 500.0  # on a change of the probability beyond SLACK
SLACK = 0.01
REPORTED_SLACK = 0.05  # adversaries with a larger change of the probability are not reported
INITIAL_SCALE = 3.0  # standard deviation of the adversaries' initial scores


def jensen_shannon(p: Array, q: Array, axis: int = 0) -> Array:
    """Returns the Jensen-Shannon divergence along `axis`, in nats, at most ln 2.

        JSD(p, q) = KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2

    Lin, 1991, eq. 4.1.
    """
    middle = (p + q) / 2

    def kl_to_middle(p: Array) -> Array:
        nonzero = (p > 0) & (middle > 0)  # the mean of tiny weights may underflow to 0
        numerator, denominator = jnp.where(nonzero, p, 1), jnp.where(nonzero, middle, 1)
        return (p * (jnp.log(numerator) - jnp.log(denominator))).sum(axis=axis)

    return (kl_to_middle(p) + kl_to_middle(q)) / 2


def permutation_change(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    keys: Keys,
    draws: int = PERMUTATIONS,
) -> Float[Array, " b"]:
    """Returns the median change of the probability over random permutations of the attention.

    Section 4.2.1.
    """
    states, last = model.encode(params, model.embed(params, tokens), lengths)
    weights = model.attend(params, states, last, lengths)
    logits_given = model.make_logits_given_weights(params, states, last, lengths)
    probability = model.task.probability(logits_given(weights))

    def change(number: Int[Array, ""]) -> Logits:
        order = draw_orders(keys, lengths, len(weights), number)
        permuted = jnp.take_along_axis(weights, order, axis=0)
        return jnp.abs(model.task.probability(logits_given(permuted)) - probability)

    changes = lax.map(change, jnp.arange(draws), batch_size=PERMUTATIONS_PER_PASS)
    return jnp.median(changes, axis=0)


def draw_orders(
    keys: Keys, lengths: Lengths, steps: int, number: Int[Array, ""] | int
) -> Int[Array, "t b"]:
    """Returns a uniformly random permutation of each example's own tokens; padding stays put.

    `number` indexes repeated draws.
    """
    uniform = draw_per_token(keys, steps, jax.random.uniform, number).T
    return jnp.argsort(jnp.where(length_mask(lengths, steps), uniform, 2.0), axis=0, stable=True)


def mean_divergence(weights: Float[Array, "k t b"]) -> Float[Array, " b"]:
    """Returns the mean Jensen-Shannon divergence over all k² ordered pairs of attentions.

    Computed as `H((p + q) / 2) - (H(p) + H(q)) / 2`, with a quarter of the logarithms of the
    definition.
    """
    count, total = len(weights), 0.0
    entropies = [_entropy(attention) for attention in weights]
    for first, second in itertools.combinations(range(count), 2):
        middle = (weights[first] + weights[second]) / 2
        total += _entropy(middle) - (entropies[first] + entropies[second]) / 2
    return jnp.asarray(2 * total / count**2)


def _entropy(weights: Float[Array, "t b"]) -> Float[Array, " b"]:
    return -(weights * jnp.log(jnp.where(weights > 0, weights, 1))).sum(axis=0)


class Adversaries(NamedTuple):
    """Attention weights far from the model's own that nearly preserve its predictions."""

    weights: Float[Array, "k b t"]
    change: Float[Array, "k b"]
    """Absolute change of the probability."""
    divergence: Float[Array, "k b"]
    """Jensen-Shannon divergence from the model's own weights, in nats."""

    def max_divergence(self, slack: float = REPORTED_SLACK) -> Float[Array, " b"]:
        """Returns the epsilon-max JSD: the largest divergence with a change of at most `slack`.

        0 if no adversary qualifies, which is the divergence of the model's own weights.
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
    """Returns `count` adversarial attentions per example, optimised jointly by gradient descent.

        minimise sum_k [penalty max(0, |p_k - p| - slack) - JSD(a_k, a)] - mean_kl JSD(a_k, a_l)

    over the attention scores, section 4.2.2, eq. 1 to 4.
    """
    states, last = model.encode(params, model.embed(params, tokens), lengths)
    attention = model.attend(params, states, last, lengths)
    logits_given = model.make_logits_given_weights(params, states, last, lengths)
    probability = model.task.probability(logits_given(attention))
    mask = length_mask(lengths, len(attention))

    def evaluate(scores: Float[Array, "k t b"]) -> tuple[Array, Array, Array]:
        weights = jax.vmap(lambda one: masked_softmax(one, mask))(scores)
        logits = jax.vmap(logits_given)(weights)
        change = jnp.abs(model.task.probability(logits) - probability[None])
        return weights, change, jensen_shannon(weights, attention[None], axis=1)

    def loss(scores: Float[Array, "k t b"]) -> Float[Array, ""]:
        weights, change, divergence = evaluate(scores)
        between_adversaries = mean_divergence(weights)
        penalty = PENALTY * jnp.maximum(change - SLACK, 0)
        return ((penalty - divergence).sum(axis=0) - between_adversaries).sum()

    optimizer = optax.chain(scale_by_amsgrad(), optax.scale_by_learning_rate(LEARNING_RATE))
    scores = INITIAL_SCALE * jnp.stack(
        [draw_per_token(keys, len(attention), jax.random.normal, k).T for k in range(count)]
    )

    def step(state: tuple[Array, optax.OptState], _: None) -> tuple[tuple, None]:
        scores, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(scores), moments)
        return (optax.apply_updates(scores, updates), moments), None

    (scores, _), _ = lax.scan(step, (scores, optimizer.init(scores)), length=steps)
    weights, change, divergence = evaluate(scores)
    return Adversaries(weights.transpose(0, 2, 1), change, divergence)

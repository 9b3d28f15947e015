"""Faithfulness: do the tokens with a high attribution matter to the model's prediction?

All functions take a batch `[b t]` and scores `[b t]`, highest for the most important tokens.
Tokens are deleted from the text. Probabilities are those of the label that the model predicts.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from bilstm_attn.explain.attribution import TokenWeights
from bilstm_attn.explain.deletion import logits_without, token_mask
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.prng import draw_per_token, stream
from bilstm_attn.types import Keys, Lengths, Logits, Params, Tokens

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)  # of the tokens, as in ERASER's code
GRID = 50  # number of deleted fractions that `fraction_to_flip` tries
SAMPLES = 32  # random sets of zeroed words for `infidelity`

Ranks = Int[Array, "b t"]


def toward_prediction(
    weights: TokenWeights, direction: Float[Array, " b"], *, signed: bool
) -> TokenWeights:
    """Returns an attribution as scores: the support of each token for the predicted label.

    `direction` is ±1, as `Task.toward_predicted` returns it.
    """
    return weights * direction[:, None] if signed else weights


def rank(scores: TokenWeights, lengths: Lengths) -> Ranks:
    """Returns each token's rank: 0 for the highest score, ties in order, padding last.

    >>> rank(jnp.array([[0.1, 0.7, 0.2, 9.0]]), jnp.array([3])).tolist()
    [[2, 0, 1, 3]]
    """
    scores = jnp.where(token_mask(lengths, scores.shape[1]), scores, -jnp.inf)
    return jnp.argsort(jnp.argsort(-scores, axis=1, stable=True), axis=1)


class Faithfulness(NamedTuple):
    """Drops of the predicted label's probability, per example."""

    comprehensiveness: Float[Array, " b"]
    """Mean drop when the top tokens are deleted; higher is better."""
    sufficiency: Float[Array, " b"]
    """Mean drop when only the top tokens are kept; lower is better."""


def aopc(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    scores: TokenWeights,
    fractions: Sequence[float] = FRACTIONS,
) -> Faithfulness:
    """Returns the area over the perturbation curve, deleting or keeping the top `k` tokens.

        comprehensiveness = mean_k p(x) - p(x without top k)
        sufficiency       = mean_k p(x) - p(top k alone)

    k is a fraction of the tokens, rounded up. DeYoung et al., 2020, arXiv:1911.03429, section 4,
    with the fractions of the authors' code. Deviation from the paper, as in that code: the mean
    leaves out k = 0, where the drop is zero.
    """
    counts = jnp.ceil(jnp.array(fractions)[:, None] * lengths[None])[..., None]  # [k b 1]
    top = rank(scores, lengths)[None] < counts
    probability = _make_predicted_probability(model, params, tokens, lengths)
    whole = probability(model(params, tokens, lengths).logits)
    comprehensiveness, sufficiency = (
        whole - probability(logits_without(model, params, tokens, lengths, keeps)).mean(axis=0)
        for keeps in (~top, top)
    )
    return Faithfulness(comprehensiveness, sufficiency)


def _make_predicted_probability(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths
) -> Callable[[Array], Array]:
    """Returns the function from logits to the probability of the label predicted for `tokens`."""
    sign = model.task.toward_predicted(model(params, tokens, lengths).logits)
    return lambda logits: model.task.probability(logits * jnp.broadcast_to(sign, logits.shape))


def fraction_to_flip(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    scores: TokenWeights,
    grid: int = GRID,
) -> Float[Array, " b"]:
    """Returns the smallest fraction of top-ranked tokens whose deletion flips the prediction.

    Searched over `grid` fractions, each rounded up to whole tokens; 1 if none flips it. Serrano
    and Smith, 2019, arXiv:1906.03731, section 3.3. Deviation: tokens are deleted, where the authors
    set attention weights to zero.
    """
    ranks, counts = rank(scores, lengths), jnp.maximum(lengths, 1)
    predicted = model.task.predicted(model(params, tokens, lengths).logits)

    def try_next(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, fraction, flipped = state
        deleted = -(-(number + 1) * lengths // grid)
        keep = ranks >= deleted[:, None]
        logits = logits_without(model, params, tokens, lengths, keep[None])[0]
        flips = model.task.predicted(logits) != predicted
        fraction = jnp.where(flips & ~flipped, deleted / counts, fraction)
        return number + 1, fraction, flipped | flips

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        number, _, flipped = state
        return (number < grid) & ~flipped.all()

    start = jnp.int32(0), jnp.ones(len(tokens)), lengths == 0
    return lax.while_loop(unfinished, try_next, start)[1]


def overlap_at(
    scores: TokenWeights, others: TokenWeights, lengths: Lengths, k: int
) -> Float[Array, " b"]:
    """Returns the fraction of the top `k` tokens that two attributions share, per example.

    Among all tokens if there are fewer than `k`; 1 for an empty text.
    """
    counts = jnp.minimum(k, lengths)
    top = [rank(each, lengths) < counts[:, None] for each in (scores, others)]
    return jnp.where(counts > 0, (top[0] & top[1]).sum(axis=1) / jnp.maximum(counts, 1), 1.0)


def infidelity(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    weights: TokenWeights,
    keys: Keys,
    samples: int = SAMPLES,
) -> Float[Array, " b"]:
    """Returns `mean over S of (s sum_(t in S) weights[t] - (logit(x) - logit(x with S zeroed)))^2`.

    S contains each token with probability 1/2; its tokens' word vectors are set to zero. Yeh et
    al., 2019, arXiv:1901.09392, definition 2.1, with a zero baseline for a random part of the
    input. Deviation: each example's attribution is first rescaled by the s ≥ 0 that minimises the
    error, which makes the measure scale-invariant.
    """
    keys = jax.vmap(lambda key: stream(key, "infidelity"))(keys)  # independent of attribution's
    inputs = model.embed(params, tokens)
    mask = token_mask(lengths, tokens.shape[1])

    def measure(number: Array) -> tuple[Logits, Logits]:
        zeroed = draw_per_token(keys, len(inputs), jax.random.bernoulli, number) & mask
        perturbed = jnp.where(zeroed.T[..., None], 0, inputs)
        drop = logits - model.classify(params, perturbed, lengths).logits
        return (weights * zeroed).sum(axis=1), drop

    logits = model.classify(params, inputs, lengths).logits
    predicted_drop, drop = lax.map(measure, jnp.arange(samples))
    square = (predicted_drop * predicted_drop).sum(axis=0)
    product = (predicted_drop * drop).sum(axis=0)
    scale = jnp.maximum(product / jnp.where(square > 0, square, 1), 0)
    return ((scale[None] * predicted_drop - drop) ** 2).mean(axis=0)

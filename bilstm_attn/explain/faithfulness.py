"""Whether the tokens that an attribution calls important matter to the model.

All functions take reviews `[b t]`, and scores `[b t]` whose largest are the most important tokens.
Tokens are deleted, as by hand. Probabilities are those of the answer that the model gave.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from bilstm_attn.explain.attribution import Attributed
from bilstm_attn.explain.deletion import logits_without, own_tokens
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.prng import draw_per_token, stream
from bilstm_attn.types import Keys, Lengths, Logits, Params, Tokens

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)  # of a review's tokens, as in ERASER's code
GRID = 50  # shares of a review's tokens that are deleted in turn to flip the answer
SAMPLES = 32  # draws of words that become zero, for infidelity

Ranks = Int[Array, "b t"]


def toward_answer(weights: Attributed, logits: Logits, *, signed: bool) -> Attributed:
    """Returns the scores of an attribution: how far a token speaks for the model's own answer."""
    return weights * jnp.where(logits > 0, 1.0, -1.0)[:, None] if signed else weights


def rank(scores: Attributed, lengths: Lengths) -> Ranks:
    """Returns each token's place, 0 for the largest score; padding comes last, of ties the first.

    >>> rank(jnp.array([[0.1, 0.7, 0.2, 9.0]]), jnp.array([3])).tolist()
    [[2, 0, 1, 3]]
    """
    scores = jnp.where(own_tokens(lengths, scores.shape[1]), scores, -jnp.inf)
    return jnp.argsort(jnp.argsort(-scores, axis=1, stable=True), axis=1)


class Faithfulness(NamedTuple):
    """What deleting tokens by an attribution's order does, for each review."""

    comprehensiveness: Float[Array, " b"]
    """Mean fall of the answer's probability without the top tokens; higher is better."""
    sufficiency: Float[Array, " b"]
    """Mean fall with the top tokens alone; lower is better."""


def aopc(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    scores: Attributed,
    fractions: Sequence[float] = FRACTIONS,
) -> Faithfulness:
    """Returns the area over the perturbation curve, deleting or keeping the top `k` tokens.

        comprehensiveness = mean_k p(x) - p(x without top k)
        sufficiency       = mean_k p(x) - p(top k alone)

    k is a fraction of the tokens, rounded up. DeYoung et al., 2020, arXiv:1911.03429, section 4,
    with the fractions of its code, and as there the mean over them alone: the paper counts k = 0
    too, where nothing falls.
    """
    counts = jnp.ceil(jnp.array(fractions)[:, None] * lengths[None])[..., None]  # [k b 1]
    top = rank(scores, lengths)[None] < counts
    probability = _answer_of(model, params, tokens, lengths)
    given = probability(model(params, tokens, lengths).logits)
    without, alone = (
        given - probability(logits_without(model, params, tokens, lengths, keeps)).mean(axis=0)
        for keeps in (~top, top)
    )
    return Faithfulness(without, alone)


def _answer_of(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths
) -> Callable[[Array], Array]:
    """Returns the function from logits to the probability of the answer that the model gave."""
    sign = jnp.where(model(params, tokens, lengths).logits > 0, 1.0, -1.0)
    return lambda logits: jax.nn.sigmoid(logits * jnp.broadcast_to(sign, logits.shape))


def fraction_to_flip(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    scores: Attributed,
    grid: int = GRID,
) -> Float[Array, " b"]:
    """Returns the least share of the tokens, top first, without which the answer is the other one.

    Tried are `grid` shares, each rounded up to whole tokens; 1 if none does. Serrano and Smith,
    2019, arXiv:1906.03731, section 3.3. Deviation: tokens are deleted, where they set attention
    weights to zero.
    """
    positions, own = rank(scores, lengths), jnp.maximum(lengths, 1)
    answer = model(params, tokens, lengths).logits > 0

    def try_next(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, share, flipped = state
        deleted = -(-(number + 1) * lengths // grid)
        keep = positions >= deleted[:, None]
        flips = (logits_without(model, params, tokens, lengths, keep[None])[0] > 0) != answer
        return number + 1, jnp.where(flips & ~flipped, deleted / own, share), flipped | flips

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        number, _, flipped = state
        return (number < grid) & ~flipped.all()

    start = jnp.int32(0), jnp.ones(len(tokens)), lengths == 0
    return lax.while_loop(goes_on, try_next, start)[1]


def overlap_at(scores: Attributed, others: Attributed, lengths: Lengths, k: int) -> Logits:
    """Returns the share of the top `k` tokens that two attributions have in common.

    Of all tokens where a review has fewer than `k`; 1 for a review of none.
    """
    counts = jnp.minimum(k, lengths)
    top = [rank(each, lengths) < counts[:, None] for each in (scores, others)]
    return jnp.where(counts > 0, (top[0] & top[1]).sum(axis=1) / jnp.maximum(counts, 1), 1.0)


def infidelity(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    weights: Attributed,
    keys: Keys,
    samples: int = SAMPLES,
) -> Float[Array, " b"]:
    """Returns `mean over S of (s sum_(t in S) weights[t] - (logit(x) - logit(x with S zeroed)))^2`.

    S is drawn with every token at even chances; its words' vectors become zero. Yeh et al., 2019,
    arXiv:1901.09392, definition 2.1, with a baseline of zero for a random part of the input.
    Deviation: the factor s of at least 0, one a review, that makes it least, so that attributions
    of any scale compare.
    """
    keys = jax.vmap(lambda key: stream(key, "infidelity"))(keys)  # not those of the attribution
    inputs = model.embed(params, tokens)
    own = own_tokens(lengths, tokens.shape[1])

    def measure(number: Array) -> tuple[Logits, Logits]:
        zeroed = draw_per_token(keys, len(inputs), jax.random.bernoulli, number) & own
        kept = jnp.where(zeroed.T[..., None], 0, inputs)
        fall = given - model.classify(params, kept, lengths).logits
        return (weights * zeroed).sum(axis=1), fall

    given = model.classify(params, inputs, lengths).logits
    said, fell = lax.map(measure, jnp.arange(samples))
    square = (said * said).sum(axis=0)
    scale = jnp.maximum((said * fell).sum(axis=0) / jnp.where(square > 0, square, 1), 0)
    return ((scale[None] * said - fell) ** 2).mean(axis=0)

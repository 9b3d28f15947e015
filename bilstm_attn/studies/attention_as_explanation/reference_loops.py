"""The experiments as one writes them first: a review, a word and a draw at a time.

What the vectorised forms are checked against, and timed beside.
"""

import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from bilstm_attn.explain.attribution import IntegratedGradients, Lime, SmoothGrad, gradient_of_logit
from bilstm_attn.explain.faithfulness import FRACTIONS, GRID, SAMPLES
from bilstm_attn.nn.attention import masked_softmax
from bilstm_attn.nn.metrics import sigmoid
from bilstm_attn.nn.model import Model
from bilstm_attn.studies.attention_as_explanation.jain_wallace import (
    ADVERSARIES,
    DRAWS,
    LEARNING_RATE,
    PENALTY,
    SLACK,
    SPREAD,
    STEPS,
    jensen_shannon,
)
from bilstm_attn.training.optim import scale_by_amsgrad
from bilstm_attn.types import Params

Ids = Int[np.ndarray, "_"]  # of a review, as the model reads them


class Naive:
    """Experiments on one review at a time, each a loop over calls of the model."""

    def __init__(self, model: Model, params: Params, max_tokens: int):
        """Reviews are padded to `max_tokens`, so that each call is compiled once."""
        self.max_tokens, self.params = max_tokens, jax.device_put(params)
        self._logits = jax.jit(lambda params, *review: model(params, *review).logits)
        self._embed = jax.jit(model.embed)
        self._read = jax.jit(lambda params, *given: model.classify(params, *given).logits)
        self._slope = jax.jit(partial(gradient_of_logit, model))
        self._encode = jax.jit(partial(_attend, model))
        self._decide = jax.jit(model.logits_from_states)

        def judge(
            scores: Float[Array, " t"],
            params: Params,
            attended: tuple[Array, ...],
            given: Array,
            mask: Array,
        ) -> tuple[Array, Array, Array]:
            states, last, own, lengths = attended
            weights = masked_softmax(scores[:, None], mask)
            logits = model.logits_from_states(params, states, last, weights, lengths)
            change = jnp.abs(jax.nn.sigmoid(logits[0]) - given)
            return weights[:, 0], change, jensen_shannon(weights[:, 0], own[:, 0])

        def loss(scores: Float[Array, "k t"], *more: Any) -> Float[Array, ""]:
            judged = [judge(one, *more) for one in scores]
            alone = [PENALTY * jnp.maximum(change - SLACK, 0) - far for _, change, far in judged]
            among = [jensen_shannon(one[0], other[0]) for one in judged for other in judged]
            return sum(alone, jnp.zeros(())) - sum(among, jnp.zeros(())) / len(among)

        self._descent = optax.chain(scale_by_amsgrad(), optax.scale_by_learning_rate(LEARNING_RATE))
        self._update = jax.jit(self._descent.update)
        self._judge, self._gradient = jax.jit(judge), jax.jit(jax.grad(loss))

    def logit(self, ids: Ids) -> float:
        """Returns the logit of a review."""
        return float(self._logits(self.params, *self._padded(ids))[0])

    def vectors(self, ids: Ids) -> np.ndarray:
        """Returns the words' vectors `[n e]`."""
        return np.asarray(self._embed(self.params, self._padded(ids)[0]))[: len(ids), 0]

    def leave_one_out(self, ids: Ids) -> np.ndarray:
        """Returns the fall of the logit without each token `[n]`."""
        given = self.logit(ids)
        return np.array([given - self.logit(np.delete(ids, at)) for at in range(len(ids))])

    def gradients(
        self, ids: Ids, scale: float = 1.0, noise: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """Returns the logit's gradients by the words' vectors `[n e]`, these scaled, with noise."""
        vectors = scale * self.vectors(ids) + noise
        return np.asarray(self._slope(self.params, *self._spread(vectors)))[: len(ids), 0]

    def integrated_gradients(self, ids: Ids) -> np.ndarray:
        """Returns the weights `[n]` by `IntegratedGradients`."""
        places, parts = np.polynomial.legendre.leggauss(IntegratedGradients().points)
        mean: Any = 0.0
        for place, part in zip(places, parts, strict=True):
            mean = mean + part / 2 * self.gradients(ids, (place + 1) / 2)
        return (mean * self.vectors(ids)).sum(axis=1)

    def smooth_gradient(self, ids: Ids, noises: np.ndarray) -> np.ndarray:
        """Returns the weights `[n]` by `SmoothGrad`, of standard normal noises `[k n e]`."""
        vectors = self.vectors(ids)
        size = SmoothGrad().noise * (vectors.max() - vectors.min())
        gradients = [self.gradients(ids, noise=size * noise) for noise in noises]
        return np.linalg.norm(np.mean(gradients, axis=0), axis=1)

    def lime(self, ids: Ids, copies: np.ndarray) -> np.ndarray:
        """Returns the weights `[n]` by `Lime`, of copies that keep words where `bool[k n]` is."""
        logits = np.array([self.logit(ids[copy]) for copy in copies])
        kept = copies.astype(np.float64)
        near = np.exp(-(((1 - np.sqrt(kept.mean(axis=1))) / Lime().width) ** 2))
        kept -= np.average(kept, axis=0, weights=near)
        logits -= np.average(logits, weights=near)
        return np.linalg.solve(
            kept.T * near @ kept + Lime().ridge * np.eye(len(ids)), kept.T * near @ logits
        )

    def faithfulness(self, ids: Ids, scores: np.ndarray) -> tuple[float, float, float]:
        """Returns comprehensiveness, sufficiency and the least share that flips the answer.

        `scores` `[n]` are high for the words that speak for the model's answer.
        """
        order, given = np.argsort(-scores, kind="stable"), self.logit(ids)

        def logit_of(kept: np.ndarray) -> float:
            return self.logit(ids[np.sort(kept)]) * (1 if given > 0 else -1)

        def falls(choices: Iterable[np.ndarray]) -> float:
            before, *after = sigmoid(np.array([abs(given), *map(logit_of, choices)]))
            return float(before - np.mean(after))

        tops = [math.ceil(fraction * len(ids)) for fraction in FRACTIONS]
        without, alone = falls(order[top:] for top in tops), falls(order[:top] for top in tops)
        for number in range(1, GRID + 1):
            deleted = math.ceil(number * len(ids) / GRID)
            left = self.logit(ids[np.sort(order[deleted:])])
            if (left > 0) != (given > 0):
                return without, alone, deleted / len(ids)
        return without, alone, 1.0

    def infidelity(self, ids: Ids, weights: np.ndarray, draws: np.ndarray) -> float:
        """Returns the infidelity of weights `[n]`; words become zero where `bool[k n]` is true."""
        vectors, given, said, fell = self.vectors(ids), self.logit(ids), [], []
        for zeroed in draws:
            left = self._read(self.params, *self._spread(np.where(zeroed[:, None], 0, vectors)))
            said.append(weights[zeroed].sum())
            fell.append(given - float(left[0]))
        square = np.dot(said, said)
        scale = max(np.dot(said, fell) / square, 0.0) if square else 0.0
        return float(np.mean((scale * np.array(said) - fell) ** 2))

    def permutation_change(self, ids: Ids, orders: Sequence[np.ndarray]) -> float:
        """Returns the median change of the probability over orders of the attention."""
        states, last, own, lengths = self._encode(self.params, *self._padded(ids))

        def probability(weights: np.ndarray) -> float:
            logits = self._decide(self.params, states, last, weights[:, None], lengths)
            return float(jax.nn.sigmoid(logits[0]))

        weights = np.asarray(own)[:, 0]
        given = probability(weights)
        changes = []
        for order in orders:
            moved = weights.copy()
            moved[: len(ids)] = weights[order]
            changes.append(abs(probability(moved) - given))
        return float(np.median(changes))

    def adversaries(
        self, ids: Ids, scores: np.ndarray, steps: int = STEPS
    ) -> list[tuple[float, float]]:
        """Returns changes of the probability and divergences of weights begun at `scores[k t]`."""
        attended = self._encode(self.params, *self._padded(ids))
        given = jax.nn.sigmoid(self._decide(self.params, *attended)[0])
        mask = jnp.arange(self.max_tokens)[:, None] < len(ids)
        found = jnp.asarray(scores)
        moments = self._descent.init(found)
        for _ in range(steps):
            moves, moments = self._update(
                self._gradient(found, self.params, attended, given, mask), moments
            )
            found = found + moves
        judged = [self._judge(one, self.params, attended, given, mask) for one in found]
        return [(float(change), float(far)) for _, change, far in judged]

    def _spread(self, vectors: np.ndarray) -> tuple[Array, Array]:
        inputs = np.zeros((self.max_tokens, 1, vectors.shape[1]), np.float32)
        inputs[: len(vectors), 0] = vectors
        return jnp.asarray(inputs), jnp.array([len(vectors)], jnp.int32)

    def _padded(self, ids: Ids) -> tuple[Array, Array]:
        tokens = np.zeros((1, self.max_tokens), np.int32)
        tokens[0, : len(ids)] = ids
        return jnp.asarray(tokens), jnp.array([len(ids)], jnp.int32)


def _attend(model: Model, params: Params, tokens: Array, lengths: Array) -> tuple[Array, ...]:
    states, last = model.encode(params, model.embed(params, tokens), lengths)
    return states, last, model.attend(params, states, last, lengths), lengths


def time_naive(
    model: Model, params: Params, max_tokens: int, reviews: Sequence[Ids]
) -> dict[str, float]:
    """Returns the mean seconds that each experiment takes a review, without compilation."""
    naive, numbers = Naive(model, params, max_tokens), np.random.default_rng(0)

    def examine_attributions(ids: Ids) -> None:
        gradients, words = naive.gradients(ids), len(ids)
        noises = numbers.normal(size=(SmoothGrad().samples, words, gradients.shape[1]))
        copies = numbers.random((Lime().samples, words)) < numbers.random((Lime().samples, 1))
        signed = (
            (naive.vectors(ids) * gradients).sum(axis=1),
            naive.integrated_gradients(ids),
            naive.leave_one_out(ids),
            naive.lime(ids, copies),
        )
        unsigned = (
            np.linalg.norm(gradients, axis=1),
            naive.smooth_gradient(ids, noises),
            *numbers.random((2, words)),  # one in place of attention
        )
        side = np.sign(naive.logit(ids))
        for scores in (*unsigned, *(side * weights for weights in signed)):
            naive.faithfulness(ids, scores)
            naive.infidelity(ids, scores, numbers.random((SAMPLES, words)) < 0.5)

    def time_each(ids: Ids) -> list[float]:
        orders = [numbers.permutation(len(ids)) for _ in range(DRAWS)]
        scores = SPREAD * numbers.normal(size=(ADVERSARIES, max_tokens)).astype(np.float32)
        times = [time.perf_counter()]
        for experiment in (
            lambda: naive.leave_one_out(ids),
            lambda: naive.permutation_change(ids, orders),
            lambda: naive.adversaries(ids, scores),
            lambda: examine_attributions(ids),
        ):
            experiment()
            times.append(time.perf_counter())
        return np.diff(times).tolist()

    time_each(reviews[0])  # compiles
    means = np.mean([time_each(ids) for ids in reviews], axis=0).tolist()
    names = "leave one out", "permutation", "adversaries", "attributions"
    return dict(zip(names, means, strict=True))

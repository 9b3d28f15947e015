"""The experiments as one writes them first: a review, a word and a draw at a time.

What the vectorised forms are checked against, and timed beside.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from bilstm_attn.attention import masked_softmax
from bilstm_attn.explain.jain_wallace import (
    ADVERSARIES,
    DRAWS,
    LEARNING_RATE,
    PENALTY,
    SLACK,
    SPREAD,
    STEPS,
    jensen_shannon,
)
from bilstm_attn.model import Model
from bilstm_attn.optim import scale_by_amsgrad
from bilstm_attn.types import Params

Ids = Int[np.ndarray, "_"]  # of a review, as the model reads them


class Naive:
    """Experiments on one review at a time, each a loop over calls of the model."""

    def __init__(self, model: Model, params: Params, max_tokens: int):
        """Reviews are padded to `max_tokens`, so that each call is compiled once."""
        self.max_tokens, self.params = max_tokens, jax.device_put(params)
        self._logits = jax.jit(lambda params, *review: model(params, *review).logits)
        self._encode = jax.jit(partial(_attend, model))
        self._decide = jax.jit(model.decide)

        def judge(
            scores: Float[Array, " t"],
            params: Params,
            attended: tuple[Array, ...],
            given: Array,
            mask: Array,
        ) -> tuple[Array, Array, Array]:
            states, last, own, lengths = attended
            weights = masked_softmax(scores[:, None], mask)
            logits = model.decide(params, states, last, weights, lengths)
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

    def leave_one_out(self, ids: Ids) -> np.ndarray:
        """Returns the fall of the logit without each token `[n]`."""
        given = self.logit(ids)
        return np.array([given - self.logit(np.delete(ids, at)) for at in range(len(ids))])

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

    def time_each(ids: Ids) -> list[float]:
        orders = [numbers.permutation(len(ids)) for _ in range(DRAWS)]
        scores = SPREAD * numbers.normal(size=(ADVERSARIES, max_tokens)).astype(np.float32)
        times = [time.perf_counter()]
        for experiment in (
            lambda: naive.leave_one_out(ids),
            lambda: naive.permutation_change(ids, orders),
            lambda: naive.adversaries(ids, scores),
        ):
            experiment()
            times.append(time.perf_counter())
        return np.diff(times).tolist()

    time_each(reviews[0])  # compiles
    means = np.mean([time_each(ids) for ids in reviews], axis=0).tolist()
    return dict(zip(("leave one out", "permutation", "adversaries"), means, strict=True))

"""Reference implementations with plain Python loops, for tests and for the timing table."""

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
from bilstm_attn.nn.model import Model
from bilstm_attn.studies.attention_as_explanation.jain_wallace import (
    ADVERSARIES,
    INITIAL_SCALE,
    LEARNING_RATE,
    PENALTY,
    PERMUTATIONS,
    SLACK,
    STEPS,
    jensen_shannon,
)
from bilstm_attn.training.optim import scale_by_amsgrad
from bilstm_attn.types import Params

Ids = Int[np.ndarray, "_"]  # token ids of one example


class ReferenceLoops:
    """The experiments on one example at a time, as loops over calls of the model."""

    def __init__(self, model: Model, params: Params, max_tokens: int):
        """Examples are padded to `max_tokens`, so that each function is compiled once."""
        self.max_tokens, self.params = max_tokens, jax.device_put(params)
        self.task = task = model.task
        self._logits = jax.jit(lambda params, *example: model(params, *example).logits)
        self._embed = jax.jit(model.embed)
        self._classify = jax.jit(lambda params, *inputs: model.classify(params, *inputs).logits)
        self._logit_gradient = jax.jit(partial(gradient_of_logit, model))
        self._encode = jax.jit(partial(_attend, model))
        self._logits_given = jax.jit(model.logits_from_states)

        def evaluate(
            scores: Float[Array, " t"],
            params: Params,
            encoded: tuple[Array, ...],
            probability: Array,
            mask: Array,
        ) -> tuple[Array, Array, Array]:
            states, last, attention, lengths = encoded
            weights = masked_softmax(scores[:, None], mask)
            logits = model.logits_from_states(params, states, last, weights, lengths)
            change = jnp.abs(task.probability(logits[0]) - probability)
            return weights[:, 0], change, jensen_shannon(weights[:, 0], attention[:, 0])

        def loss(scores: Float[Array, "k t"], *constants: Any) -> Float[Array, ""]:
            evaluated = [evaluate(adversary, *constants) for adversary in scores]
            terms = [
                PENALTY * jnp.maximum(change - SLACK, 0) - divergence
                for _, change, divergence in evaluated
            ]
            pairs = [
                jensen_shannon(first[0], second[0]) for first in evaluated for second in evaluated
            ]
            return sum(terms, jnp.zeros(())) - sum(pairs, jnp.zeros(())) / len(pairs)

        self._optimizer = optax.chain(
            scale_by_amsgrad(), optax.scale_by_learning_rate(LEARNING_RATE)
        )
        self._update = jax.jit(self._optimizer.update)
        self._evaluate, self._gradient = jax.jit(evaluate), jax.jit(jax.grad(loss))

    def logit(self, ids: Ids) -> float:
        """Returns the logit of an example."""
        return float(self._logits(self.params, *self._padded_ids(ids))[0])

    def _predicted(self, logit: float) -> int:
        return int(self.task.predicted(np.array([logit]))[0])

    def vectors(self, ids: Ids) -> np.ndarray:
        """Returns the word vectors `[n e]`."""
        return np.asarray(self._embed(self.params, self._padded_ids(ids)[0]))[: len(ids), 0]

    def leave_one_out(self, ids: Ids) -> np.ndarray:
        """Returns the drop of the logit when each token is deleted `[n]`."""
        logit = self.logit(ids)
        return np.array([logit - self.logit(np.delete(ids, t)) for t in range(len(ids))])

    def gradients(
        self, ids: Ids, scale: float = 1.0, noise: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """Returns the logit's gradients `[n e]` at scaled word vectors with added noise."""
        inputs = self._padded_vectors(scale * self.vectors(ids) + noise)
        return np.asarray(self._logit_gradient(self.params, *inputs))[: len(ids), 0]

    def integrated_gradients(self, ids: Ids) -> np.ndarray:
        """Returns the weights `[n]` of `IntegratedGradients`."""
        nodes, node_weights = np.polynomial.legendre.leggauss(IntegratedGradients().points)
        mean: Any = 0.0
        for node, node_weight in zip(nodes, node_weights, strict=True):
            mean = mean + node_weight / 2 * self.gradients(ids, (node + 1) / 2)
        return (mean * self.vectors(ids)).sum(axis=1)

    def smooth_gradient(self, ids: Ids, noises: np.ndarray) -> np.ndarray:
        """Returns the weights `[n]` of `SmoothGrad`, given standard normal noise `[k n e]`."""
        vectors = self.vectors(ids)
        size = SmoothGrad().noise * (vectors.max() - vectors.min())
        gradients = [self.gradients(ids, noise=size * noise) for noise in noises]
        return np.linalg.norm(np.mean(gradients, axis=0), axis=1)

    def lime(self, ids: Ids, copies: np.ndarray) -> np.ndarray:
        """Returns the weights `[n]` of `Lime`; `copies`, bool `[k n]`, are the kept words."""
        logits = np.array([self.logit(ids[copy]) for copy in copies])
        kept = copies.astype(np.float64)
        proximity = np.exp(-(((1 - np.sqrt(kept.mean(axis=1))) / Lime().width) ** 2))
        kept -= np.average(kept, axis=0, weights=proximity)
        logits -= np.average(logits, weights=proximity)
        gram = kept.T * proximity @ kept + Lime().ridge * np.eye(len(ids))
        return np.linalg.solve(gram, kept.T * proximity @ logits)

    def faithfulness(self, ids: Ids, scores: np.ndarray) -> tuple[float, float, float]:
        """Returns comprehensiveness, sufficiency and fraction to flip.

        `scores` `[n]` are high for words that support the predicted label.
        """
        order, logit = np.argsort(-scores, kind="stable"), self.logit(ids)
        predicted = self._predicted(logit)
        sign = float(self.task.toward_predicted(jnp.float32(logit)))

        def supporting_logit(kept: np.ndarray) -> float:
            return self.logit(ids[np.sort(kept)]) * sign

        def mean_drop(subsets: Iterable[np.ndarray]) -> float:
            logits = np.array([logit * sign, *map(supporting_logit, subsets)])
            before, *after = self.task.probabilities(logits)[:, -1]
            return float(before - np.mean(after))

        counts = [math.ceil(fraction * len(ids)) for fraction in FRACTIONS]
        comprehensiveness = mean_drop(order[count:] for count in counts)
        sufficiency = mean_drop(order[:count] for count in counts)
        for number in range(1, GRID + 1):
            deleted = math.ceil(number * len(ids) / GRID)
            remaining = self.logit(ids[np.sort(order[deleted:])])
            if self._predicted(remaining) != predicted:
                return comprehensiveness, sufficiency, deleted / len(ids)
        return comprehensiveness, sufficiency, 1.0

    def infidelity(self, ids: Ids, weights: np.ndarray, draws: np.ndarray) -> float:
        """Returns the infidelity of weights `[n]`; `draws`, bool `[k n]`, are the zeroed words."""
        vectors, logit, predicted_drops, drops = self.vectors(ids), self.logit(ids), [], []
        for zeroed in draws:
            perturbed = self._padded_vectors(np.where(zeroed[:, None], 0, vectors))
            predicted_drops.append(weights[zeroed].sum())
            drops.append(logit - float(self._classify(self.params, *perturbed)[0]))
        square = np.dot(predicted_drops, predicted_drops)
        scale = max(np.dot(predicted_drops, drops) / square, 0.0) if square else 0.0
        return float(np.mean((scale * np.array(predicted_drops) - drops) ** 2))

    def permutation_change(self, ids: Ids, orders: Sequence[np.ndarray]) -> float:
        """Returns the median change of the probability over permutations of the attention."""
        states, last, attention, lengths = self._encode(self.params, *self._padded_ids(ids))

        def probability(weights: np.ndarray) -> float:
            logits = self._logits_given(self.params, states, last, weights[:, None], lengths)
            return float(self.task.probability(logits[0]))

        weights = np.asarray(attention)[:, 0]
        unpermuted = probability(weights)
        changes = []
        for order in orders:
            permuted = weights.copy()
            permuted[: len(ids)] = weights[order]
            changes.append(abs(probability(permuted) - unpermuted))
        return float(np.median(changes))

    def adversaries(
        self, ids: Ids, scores: np.ndarray, steps: int = STEPS
    ) -> list[tuple[float, float]]:
        """Returns change of the probability and divergence per adversary.

        `scores` `[k t]` are the initial attention scores.
        """
        encoded = self._encode(self.params, *self._padded_ids(ids))
        probability = self.task.probability(self._logits_given(self.params, *encoded)[0])
        mask = jnp.arange(self.max_tokens)[:, None] < len(ids)
        current = jnp.asarray(scores)
        moments = self._optimizer.init(current)
        for _ in range(steps):
            gradient = self._gradient(current, self.params, encoded, probability, mask)
            updates, moments = self._update(gradient, moments)
            current = current + updates
        evaluated = [
            self._evaluate(adversary, self.params, encoded, probability, mask)
            for adversary in current
        ]
        return [(float(change), float(divergence)) for _, change, divergence in evaluated]

    def _padded_vectors(self, vectors: np.ndarray) -> tuple[Array, Array]:
        inputs = np.zeros((self.max_tokens, 1, vectors.shape[1]), np.float32)
        inputs[: len(vectors), 0] = vectors
        return jnp.asarray(inputs), jnp.array([len(vectors)], jnp.int32)

    def _padded_ids(self, ids: Ids) -> tuple[Array, Array]:
        tokens = np.zeros((1, self.max_tokens), np.int32)
        tokens[0, : len(ids)] = ids
        return jnp.asarray(tokens), jnp.array([len(ids)], jnp.int32)


def _attend(model: Model, params: Params, tokens: Array, lengths: Array) -> tuple[Array, ...]:
    states, last = model.encode(params, model.embed(params, tokens), lengths)
    return states, last, model.attend(params, states, last, lengths), lengths


def time_reference_loops(
    model: Model, params: Params, max_tokens: int, texts: Sequence[Ids]
) -> dict[str, float]:
    """Returns the mean seconds per example of each experiment, without compilation."""
    loops, generator = ReferenceLoops(model, params, max_tokens), np.random.default_rng(0)

    def measure_attributions(ids: Ids) -> None:
        gradients, words = loops.gradients(ids), len(ids)
        noise = generator.normal(size=(SmoothGrad().samples, words, gradients.shape[1]))
        copies = generator.random((Lime().samples, words)) < generator.random((Lime().samples, 1))
        signed = (
            (loops.vectors(ids) * gradients).sum(axis=1),
            loops.integrated_gradients(ids),
            loops.leave_one_out(ids),
            loops.lime(ids, copies),
        )
        unsigned = (
            np.linalg.norm(gradients, axis=1),
            loops.smooth_gradient(ids, noise),
            *generator.random((2, words)),  # one of them stands for the attention weights
        )
        sign = float(model.task.toward_predicted(jnp.float32(loops.logit(ids))))
        for scores in (*unsigned, *(sign * weights for weights in signed)):
            loops.faithfulness(ids, scores)
            loops.infidelity(ids, scores, generator.random((SAMPLES, words)) < 0.5)

    def time_each(ids: Ids) -> list[float]:
        orders = [generator.permutation(len(ids)) for _ in range(PERMUTATIONS)]
        shape = ADVERSARIES, max_tokens
        scores = INITIAL_SCALE * generator.normal(size=shape).astype(np.float32)
        times = [time.perf_counter()]
        for experiment in (
            lambda: loops.leave_one_out(ids),
            lambda: loops.permutation_change(ids, orders),
            lambda: loops.adversaries(ids, scores),
            lambda: measure_attributions(ids),
        ):
            experiment()
            times.append(time.perf_counter())
        return np.diff(times).tolist()

    time_each(texts[0])  # compiles
    means = np.mean([time_each(ids) for ids in texts], axis=0).tolist()
    names = "leave one out", "permutation", "adversaries", "attributions"
    return dict(zip(names, means, strict=True))

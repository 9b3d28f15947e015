"""Attributions: one weight per token, its contribution to the prediction.

A new attribution is one class and one line in `ATTRIBUTIONS`.
"""

import abc
import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve
from jaxtyping import Array, Bool, Float, Int

from bilstm_attn.explain.deletion import logits_without, token_mask
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.pooling import POOLINGS
from bilstm_attn.runtime.prng import draw_per_token
from bilstm_attn.types import Inputs, Keys, Lengths, Logits, Params, Tokens

TokenWeights = Float[Array, "b t"]


class Attribution(abc.ABC):
    """A pure function from model, parameters and a batch of texts to one weight per token.

    Entries are frozen dataclasses; their fields are their options.
    """

    signed: ClassVar[bool]
    """Whether weights have a sign: the sign of the token's contribution to the logit."""

    @abc.abstractmethod
    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> TokenWeights:
        """Returns one weight per token `[b t]`, 0 at padding.

        `keys`, one per example, are the only source of randomness, so an example's weights do not
        depend on the rest of the batch.
        """


@dataclasses.dataclass(frozen=True)
class AttentionWeights(Attribution):
    """`alpha[t]`, the model's attention weights; all 0 if its pooling uses no attention."""

    signed = False

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> TokenWeights:
        """Returns the attention weights `[b t]`."""
        del keys
        weights = model(params, tokens, lengths).weights
        return weights if POOLINGS[model.config.pooling].uses_attention else 0 * weights


def gradient_of_logit(
    model: Model, params: Params, inputs: Inputs, lengths: Lengths, through_attention: bool = True
) -> Inputs:
    """Returns `d logit / d inputs` `[t b e]`, for each example the gradient of its own logit.

    Without `through_attention` the attention weights are held constant.
    """

    def total(inputs: Inputs) -> Float[Array, ""]:
        states, last = model.encode(params, inputs, lengths)
        weights = model.attend(params, states, last, lengths)
        if not through_attention:
            weights = lax.stop_gradient(weights)
        return model.logits_from_states(params, states, last, weights, lengths).sum()

    return jax.grad(total)(inputs)


@dataclasses.dataclass(frozen=True)
class Gradient(Attribution):
    """`|d logit / d x[t]|`, the Euclidean norm. Simonyan et al., 2014, arXiv:1312.6034."""

    signed = False

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> TokenWeights:
        """Returns the norms of the gradients `[b t]`."""
        del keys
        gradient = gradient_of_logit(model, params, model.embed(params, tokens), lengths)
        return jnp.linalg.norm(gradient, axis=-1).T


@dataclasses.dataclass(frozen=True)
class GradientTimesInput(Attribution):
    """`x[t] . d logit / d x[t]`. Denil et al., 2014, arXiv:1412.6815."""

    through_attention: bool = True
    """Whether to differentiate through the attention weights; Jain and Wallace, 2019, do not."""

    signed = True

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> TokenWeights:
        """Returns the dot products `[b t]`."""
        del keys
        inputs = model.embed(params, tokens)
        gradient = gradient_of_logit(model, params, inputs, lengths, self.through_attention)
        return (inputs * gradient).sum(axis=-1).T


@dataclasses.dataclass(frozen=True)
class IntegratedGradients(Attribution):
    """`x[t] . integral_0^1 (d logit / d x[t])(a x) da`, with a baseline of zero vectors.

    Sundararajan et al., 2017, arXiv:1703.01365, eq. 1, by Gauss-Legendre quadrature. The weights
    sum to `logit(x) - logit(0)`, up to `completeness_error`.
    """

    points: int = 32
    """Number of quadrature nodes."""

    signed = True

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> TokenWeights:
        """Returns the integrals `[b t]`."""
        del keys
        inputs = model.embed(params, tokens)
        nodes, node_weights = np.polynomial.legendre.leggauss(self.points)  # on [-1, 1]

        def add(total: Inputs, node_and_weight: tuple[Array, Array]) -> tuple[Inputs, None]:
            node, node_weight = node_and_weight
            gradient = gradient_of_logit(model, params, node * inputs, lengths)
            return total + node_weight * gradient, None

        quadrature = jnp.float32((nodes + 1) / 2), jnp.float32(node_weights / 2)
        mean, _ = lax.scan(add, jnp.zeros_like(inputs), quadrature)
        return (inputs * mean).sum(axis=-1).T


def completeness_error(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths, weights: TokenWeights
) -> Logits:
    """Returns `|sum_t weights[t] - (logit(x) - logit(0))|`, per example."""
    inputs = model.embed(params, tokens)
    logits, baseline = (model.classify(params, x, lengths).logits for x in (inputs, 0 * inputs))
    return jnp.abs(weights.sum(axis=1) - (logits - baseline))


@dataclasses.dataclass(frozen=True)
class SmoothGrad(Attribution):
    """`|mean over n of (d logit / d x[t])(x + n)|`, with normal noise n.

    Smilkov et al., 2017, arXiv:1706.03825.
    """

    samples: int = 20
    """Number of noise samples."""
    noise: float = 0.15
    """Standard deviation of the noise, as a fraction of the range of the example's inputs."""

    signed = False

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> TokenWeights:
        """Returns the norms of the mean gradients `[b t]`."""
        inputs = model.embed(params, tokens)
        mask = token_mask(lengths, tokens.shape[1]).T[..., None]
        highest = jnp.where(mask, inputs, -jnp.inf).max(axis=(0, 2))
        lowest = jnp.where(mask, inputs, jnp.inf).min(axis=(0, 2))
        scale = jnp.where(lengths > 0, self.noise * (highest - lowest), 0)[None, :, None]

        def add(total: Inputs, number: Int[Array, ""]) -> tuple[Inputs, None]:
            noise = scale * draw_per_token(keys, len(inputs), draw, number).transpose(1, 0, 2)
            return total + gradient_of_logit(model, params, inputs + noise, lengths), None

        draw = partial(jax.random.normal, shape=inputs.shape[2:])
        total, _ = lax.scan(add, jnp.zeros_like(inputs), jnp.arange(self.samples))
        return jnp.linalg.norm(total / self.samples, axis=-1).T


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Attribution):
    """`logit(x) - logit(x without token t)`.

    Li et al., 2016, arXiv:1612.08220, eq. 1. Deviation: the token is deleted from the text, as in
    Jain and Wallace, 2019, where they replace its vector by zero.
    """

    at_once: int = 4
    """Number of deletions per example that are evaluated in one pass of the model."""

    signed = True

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> TokenWeights:
        """Returns the differences `[b t]`."""
        del keys
        rows, steps = tokens.shape
        copies = jnp.tile(jnp.arange(rows), self.at_once)
        reencode = model.make_reencoder(params, tokens[copies])
        logits = model(params, tokens, lengths).logits
        time = jnp.broadcast_to(jnp.arange(steps)[:, None], (steps, len(copies)))
        copy_number = jnp.repeat(jnp.arange(self.at_once), rows)

        def leave_out(turn: Array, without: Float[Array, "t b"]) -> Float[Array, "t b"]:
            # Later tokens move one position down. Examples without a token at t get length 0.
            deleted = turn * self.at_once + copy_number
            positions = jnp.minimum(time + (time >= deleted[None]), steps - 1)
            new_lengths = jnp.where(deleted < lengths[copies], lengths[copies] - 1, 0)
            new_logits = reencode(positions, new_lengths).logits.reshape(self.at_once, rows)
            return lax.dynamic_update_slice(without, new_logits, (turn * self.at_once, 0))

        # Stops at the longest example, since each turn is a whole pass of the model.
        turns = -(-lengths.max(initial=0) // self.at_once)
        padded_steps = -(-steps // self.at_once) * self.at_once
        zeros = jnp.zeros((padded_steps, rows), logits.dtype)
        without = lax.fori_loop(0, turns, leave_out, zeros)
        return jnp.where(token_mask(lengths, steps), logits[:, None] - without[:steps].T, 0)


@dataclasses.dataclass(frozen=True)
class Lime(Attribution):
    """Coefficients of a linear model of the logit, fitted to copies with words randomly deleted.

    Ribeiro et al., 2016, arXiv:1602.04938, section 3.4: ridge regression, with samples weighted by
    `exp(-distance^2 / width^2)`; distance is one minus the cosine similarity between the indicators
    of the kept words and of all words. As in the authors' code, the number of deleted words is
    drawn uniformly, then the words. Deviation: every token position is its own feature, and there
    is no feature selection. The authors' code takes the square root of this kernel, so its default
    corresponds to a `width` of 0.25 √2.
    """

    samples: int = 256
    """Number of perturbed copies per example."""
    width: float = 0.25
    """Width of the proximity kernel."""
    ridge: float = 1.0
    """Penalty on the squared coefficients; the intercept is not penalised."""

    signed = True

    def copies(self, tokens: Tokens, lengths: Lengths, keys: Keys) -> Bool[Array, "k b t"]:
        """Returns the kept tokens of each copy; the first copy is the unchanged example."""
        mask, upper = token_mask(lengths, tokens.shape[1]), jnp.maximum(lengths, 1) + 1
        deleted = jax.vmap(lambda key, upper: jax.random.randint(key, (self.samples,), 1, upper))
        draw = partial(jax.random.uniform, shape=(self.samples,))
        uniform = draw_per_token(keys, len(mask[0]), draw)
        uniform = jnp.where(mask[..., None], uniform, 2.0)
        rank = jnp.argsort(jnp.argsort(uniform, axis=1), axis=1)
        keeps = (rank >= deleted(keys, upper)[:, None]) & mask[..., None]
        return keeps.transpose(2, 0, 1).at[0].set(mask)

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> TokenWeights:
        """Returns the coefficients `[b t]`."""
        keeps = self.copies(tokens, lengths, keys)
        logits = logits_without(model, params, tokens, lengths, keeps)

        def fit(
            example: tuple[Float[Array, "k t"], Float[Array, " k"], Int[Array, ""]],
        ) -> Float[Array, " t"]:
            keep, logits, length = example
            # Cosine similarity of a vector of zeros and ones with a vector of ones.
            distance = 1 - jnp.sqrt(keep.sum(axis=1) / jnp.maximum(length, 1))
            proximity = jnp.exp(-((distance / self.width) ** 2))
            normalised = proximity / proximity.sum()
            features = (keep - (normalised @ keep)[None]) * jnp.sqrt(proximity)[:, None]
            target = (logits - normalised @ logits) * jnp.sqrt(proximity)
            # The dual form, since a long text has more words than there are copies.
            gram = features @ features.T + self.ridge * jnp.eye(self.samples)
            return features.T @ solve(gram, target, assume_a="pos")

        # Not vmap: batched solves on two host devices deadlock in XLA (jaxlib 0.10).
        features = keeps.transpose(1, 0, 2).astype(jnp.float32)
        coefficients = lax.map(fit, (features, logits.T, lengths))
        return jnp.where(token_mask(lengths, tokens.shape[1]), coefficients, 0)


@dataclasses.dataclass(frozen=True)
class Random(Attribution):
    """Uniform between 0 and 1: the baseline that every faithfulness measure should beat."""

    signed = False

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> TokenWeights:
        """Returns random weights `[b t]` that depend on key and position, not on the padding."""
        del model, params
        draws = draw_per_token(keys, tokens.shape[1], jax.random.uniform)
        return jnp.where(token_mask(lengths, tokens.shape[1]), draws, 0)


ATTRIBUTIONS: dict[str, type[Attribution]] = {
    "attention": AttentionWeights,
    "gradient": Gradient,
    "gradient_x_input": GradientTimesInput,
    "integrated_gradients": IntegratedGradients,
    "smoothgrad": SmoothGrad,
    "leave_one_out": LeaveOneOut,
    "lime": Lime,
    "random": Random,
}

"""A weight for every token: how much it had to do with the answer.

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

from bilstm_attn.explain.deletion import logits_without, own_tokens
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.pooling import POOLINGS
from bilstm_attn.runtime.prng import draw_per_token
from bilstm_attn.types import Inputs, Keys, Lengths, Logits, Params, Tokens

Attributed = Float[Array, "b t"]


class Attribution(abc.ABC):
    """A pure function from model, parameters and reviews to a weight a token.

    Entries are frozen dataclasses; their fields are their options.
    """

    signed: ClassVar[bool]
    """Whether a weight's sign says which answer the token speaks for: above 0 for positive."""

    @abc.abstractmethod
    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Attributed:
        """Returns a weight for every token `[b t]`, 0 at padding.

        `keys`, one a review, are all the chance there is, so that a review's weights depend on no
        other review.
        """


@dataclasses.dataclass(frozen=True)
class AttentionWeights(Attribution):
    """`alpha[t]`, what the model attended to.

    A model whose pooling uses no attention has weights of 0.
    """

    signed = False

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Attributed:
        """Returns the attention weights `[b t]`."""
        del keys
        weights = model(params, tokens, lengths).weights
        return weights if POOLINGS[model.config.pooling].uses_attention else 0 * weights


def gradient_of_logit(
    model: Model, params: Params, inputs: Inputs, lengths: Lengths, through_attention: bool = True
) -> Inputs:
    """Returns `d logit / d inputs` `[t b e]`, each review's of its own logit."""

    def total(inputs: Inputs) -> Float[Array, ""]:
        states, last = model.encode(params, inputs, lengths)
        weights = model.attend(params, states, last, lengths)
        if not through_attention:
            weights = lax.stop_gradient(weights)
        return model.logits_from_states(params, states, last, weights, lengths).sum()

    return jax.grad(total)(inputs)


@dataclasses.dataclass(frozen=True)
class Gradient(Attribution):
    """`|d logit / d x[t]|`, the length of the vector. Simonyan et al., 2014, arXiv:1312.6034."""

    signed = False

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Attributed:
        """Returns the gradients' lengths `[b t]`."""
        del keys
        gradient = gradient_of_logit(model, params, model.embed(params, tokens), lengths)
        return jnp.linalg.norm(gradient, axis=-1).T


@dataclasses.dataclass(frozen=True)
class GradientTimesInput(Attribution):
    """`x[t] . d logit / d x[t]`. Denil et al., 2014, arXiv:1412.6815."""

    through_attention: bool = True
    """Whether the attention weights move with the inputs; they stay in Jain and Wallace, 2019."""

    signed = True

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Attributed:
        """Returns the products `[b t]`."""
        del keys
        inputs = model.embed(params, tokens)
        gradient = gradient_of_logit(model, params, inputs, lengths, self.through_attention)
        return (inputs * gradient).sum(axis=-1).T


@dataclasses.dataclass(frozen=True)
class IntegratedGradients(Attribution):
    """`x[t] . integral_0^1 (d logit / d x[t])(a x) da`, from vectors of zero to the review's.

    Sundararajan et al., 2017, arXiv:1703.01365, eq. 1, by Gauss and Legendre's rule. They add up to
    `logit(x) - logit(0)`, which `completeness_error` checks.
    """

    points: int = 32
    """Positions at which the gradient is taken."""

    signed = True

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Attributed:
        """Returns the integrals `[b t]`."""
        del keys
        inputs = model.embed(params, tokens)
        places, parts = np.polynomial.legendre.leggauss(self.points)

        def add(total: Inputs, at: tuple[Array, Array]) -> tuple[Inputs, None]:
            place, part = at
            return total + part * gradient_of_logit(model, params, place * inputs, lengths), None

        along = jnp.float32((places + 1) / 2), jnp.float32(parts / 2)
        mean, _ = lax.scan(add, jnp.zeros_like(inputs), along)
        return (inputs * mean).sum(axis=-1).T


def completeness_error(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths, weights: Attributed
) -> Logits:
    """Returns how far the weights' sum is from `logit(x) - logit(0)`, a review, not negative."""
    inputs = model.embed(params, tokens)
    given, none = (model.classify(params, x, lengths).logits for x in (inputs, 0 * inputs))
    return jnp.abs(weights.sum(axis=1) - (given - none))


@dataclasses.dataclass(frozen=True)
class SmoothGrad(Attribution):
    """`|mean over n of (d logit / d x[t])(x + n)|`, n normal noise.

    Smilkov et al., 2017, arXiv:1706.03825.
    """

    samples: int = 20
    """Draws of noise."""
    noise: float = 0.15
    """Its standard deviation, as a share of the span of the review's numbers."""

    signed = False

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Attributed:
        """Returns the lengths of the mean gradients `[b t]`."""
        inputs = model.embed(params, tokens)
        own = own_tokens(lengths, tokens.shape[1]).T[..., None]
        top = jnp.where(own, inputs, -jnp.inf).max(axis=(0, 2))
        least = jnp.where(own, inputs, jnp.inf).min(axis=(0, 2))
        size = jnp.where(lengths > 0, self.noise * (top - least), 0)[None, :, None]

        def add(total: Inputs, number: Int[Array, ""]) -> tuple[Inputs, None]:
            noise = size * draw_per_token(keys, len(inputs), draw, number).transpose(1, 0, 2)
            return total + gradient_of_logit(model, params, inputs + noise, lengths), None

        draw = partial(jax.random.normal, shape=inputs.shape[2:])
        total, _ = lax.scan(add, jnp.zeros_like(inputs), jnp.arange(self.samples))
        return jnp.linalg.norm(total / self.samples, axis=-1).T


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Attribution):
    """`logit(x) - logit(x without token t)`: the word is deleted, as by hand, of those read.

    Li et al., 2016, arXiv:1612.08220, eq. 1, who replace a word's vector by zero. Deviation:
    the word goes, as in Jain and Wallace, 2019.
    """

    at_once: int = 4
    """Words of every review, each left out of a copy, that one pass of the model answers."""

    signed = True

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Attributed:
        """Returns the differences `[b t]`."""
        del keys
        reviews, steps = tokens.shape
        copies = jnp.tile(jnp.arange(reviews), self.at_once)
        answer = model.make_reencoder(params, tokens[copies])
        given = model(params, tokens, lengths).logits
        everywhere = jnp.broadcast_to(jnp.arange(steps)[:, None], (steps, len(copies)))
        number = jnp.repeat(jnp.arange(self.at_once), reviews)  # of each copy

        def leave_out(turn: Array, logits: Float[Array, "t b"]) -> Float[Array, "t b"]:
            # Those after it move one place down. A review that is shorter already has no such word.
            at = turn * self.at_once + number
            places = jnp.minimum(everywhere + (everywhere >= at[None]), steps - 1)
            left = jnp.where(at < lengths[copies], lengths[copies] - 1, 0)
            found = answer(places, left).logits.reshape(self.at_once, reviews)
            return lax.dynamic_update_slice(logits, found, (turn * self.at_once, 0))

        # Not beyond the longest review: each turn is a whole pass of the model.
        turns = -(-lengths.max(initial=0) // self.at_once)
        whole = -(-steps // self.at_once) * self.at_once
        without = lax.fori_loop(0, turns, leave_out, jnp.zeros((whole, reviews), given.dtype))
        own = own_tokens(lengths, steps)
        return jnp.where(own, given[:, None] - without[:steps].T, 0)


@dataclasses.dataclass(frozen=True)
class Lime(Attribution):
    """Coefficients of a linear model, fitted to the logits of copies with words deleted at random.

    Ribeiro et al., 2016, arXiv:1602.04938, section 3.4: least squares weighted by
    `exp(-distance^2 / width^2)`, with a ridge; distance is one less the cosine between the words
    kept and all of them. As in the authors' code, so many words as a draw says are deleted, any of
    them. Deviation: each place of a word is a feature of its own; all are kept in the fit. Their
    code takes the root of this kernel: its default is a `width` of 0.25 √2 here.
    """

    samples: int = 256
    """Copies of a review."""
    width: float = 0.25
    """Of the kernel."""
    ridge: float = 1.0
    """Penalty on squared coefficients; the intercept has none."""

    signed = True

    def copies(self, tokens: Tokens, lengths: Lengths, keys: Keys) -> Bool[Array, "k b t"]:
        """Returns what is kept in each copy; the first is the review itself."""
        own, most = own_tokens(lengths, tokens.shape[1]), jnp.maximum(lengths, 1) + 1
        deleted = jax.vmap(lambda key, most: jax.random.randint(key, (self.samples,), 1, most))
        lots = draw_per_token(keys, len(own[0]), partial(jax.random.uniform, shape=(self.samples,)))
        lots = jnp.where(own[..., None], lots, 2.0)
        rank = jnp.argsort(jnp.argsort(lots, axis=1), axis=1)
        keeps = (rank >= deleted(keys, most)[:, None]) & own[..., None]
        return keeps.transpose(2, 0, 1).at[0].set(own)

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Attributed:
        """Returns the coefficients `[b t]`."""
        keeps = self.copies(tokens, lengths, keys)
        logits = logits_without(model, params, tokens, lengths, keeps)

        def fit(
            review: tuple[Float[Array, "k t"], Float[Array, " k"], Int[Array, ""]],
        ) -> Float[Array, " t"]:
            keep, logits, length = review
            # The cosine of two vectors of ones and zeros, of which one is all ones.
            distance = 1 - jnp.sqrt(keep.sum(axis=1) / jnp.maximum(length, 1))
            near = jnp.exp(-((distance / self.width) ** 2))
            share = near / near.sum()
            features = (keep - (share @ keep)[None]) * jnp.sqrt(near)[:, None]
            target = (logits - share @ logits) * jnp.sqrt(near)
            # The dual form: a long review has more words than copies.
            gram = features @ features.T + self.ridge * jnp.eye(self.samples)
            return features.T @ solve(gram, target, assume_a="pos")

        # Not vmap: batched solving on two host devices waits forever in XLA (jaxlib 0.10).
        features = keeps.transpose(1, 0, 2).astype(jnp.float32)
        fitted = lax.map(fit, (features, logits.T, lengths))
        return jnp.where(own_tokens(lengths, tokens.shape[1]), fitted, 0)


@dataclasses.dataclass(frozen=True)
class Random(Attribution):
    """Uniform between 0 and 1: the floor of any measure."""

    signed = False

    def __call__(
        self, model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Attributed:
        """Returns the draws `[b t]`; a token's depends on its place, not on the padding."""
        del model, params

        draws = draw_per_token(keys, tokens.shape[1], jax.random.uniform)
        return jnp.where(own_tokens(lengths, tokens.shape[1]), draws, 0)


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

"""The assembled classifier, and the one place that turns a config into it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from bilstm_attn.config import Backend, ModelConfig
from bilstm_attn.errors import UserError
from bilstm_attn.nn.attention import ATTENTIONS, Attention
from bilstm_attn.nn.cells import glorot_uniform
from bilstm_attn.nn.dropout import dropout_mask, word_mask
from bilstm_attn.nn.encoder import ENCODERS
from bilstm_attn.nn.pooling import POOLINGS, AttentionPooling, Pooling, weighted_sum
from bilstm_attn.nn.precision import matmul_precision_context
from bilstm_attn.nn.recurrence import length_mask
from bilstm_attn.registry import look_up, make
from bilstm_attn.types import (
    Context,
    Inputs,
    Keys,
    Lengths,
    Logits,
    Output,
    Params,
    Positions,
    Projected,
    Query,
    States,
    Tokens,
    Weights,
)


class Classifier(nnx.Module):
    """Tokens to one logit: embedding, encoder, attention, dense head.

        states, last = encoder(embedding[tokens])
        weights = attention(states, last)
        context = pooling(states, last, weights)
        logit = relu(context W_1 + b_1) w_2 + b_2

    A positive logit means a positive review. Without a dense layer the logit is
    `context w_2 + b_2`.
    """

    def __init__(
        self, config: ModelConfig, vocabulary_size: int, backend: Backend, *, rngs: nnx.Rngs
    ):
        self.head_size = config.head_size
        self.word_dropout = config.word_dropout
        self.head_dropout = config.head_dropout
        table = jax.random.uniform(
            rngs.params(), (vocabulary_size, config.embedding_size), minval=-0.05, maxval=0.05
        )
        self.embedding = nnx.Param(table)  # initial values as in Keras, here and below
        self.encoder = make(
            "encoder", ENCODERS, config.encoder, {}, config=config, backend=backend, rngs=rngs
        )
        self.pooling: Pooling = make(
            "pooling",
            POOLINGS,
            config.pooling,
            config.pooling_options,
            states_size=config.states_size,
            rngs=rngs,
        )
        look_up("attention", ATTENTIONS, config.attention)
        uses_attention = self.pooling.uses_attention
        if config.attention_options and not uses_attention:
            raise UserError(
                f"pooling {config.pooling!r} uses no attention; leave out model.attention_options"
            )
        self.attention: Attention = make(
            "attention",
            ATTENTIONS,
            config.attention if uses_attention else "uniform",
            config.attention_options,
            states_size=config.states_size,
            attention_size=config.attention_size,
            rngs=rngs,
        )
        self.has_dense = config.dense_size > 0
        if self.has_dense:
            self.dense = nnx.Linear(
                config.states_size, config.dense_size, kernel_init=glorot_uniform, rngs=rngs
            )
        self.logit = nnx.Linear(self.head_size, 1, kernel_init=glorot_uniform, rngs=rngs)

    def embed(self, tokens: Tokens, keys: Keys | None = None) -> Inputs:
        """Returns the words' vectors, time-major `[t b e]`; `keys`, one a review, drop words."""
        vectors = self.embedding[...][tokens.T]
        if keys is not None and self.word_dropout > 0:
            vectors *= word_mask(keys, "words", self.word_dropout, tokens).T[..., None]
        return vectors

    def encode(
        self, inputs: Inputs, lengths: Lengths, keys: Keys | None = None
    ) -> tuple[States, Query]:
        """Returns every state `[t b d]`, zero at padding, and the last ones `[b d]`."""
        mask = length_mask(lengths, inputs.shape[0])
        inputs = jnp.where(mask[..., None], inputs, 0)  # keeps padding out of every gradient
        return self.encoder(inputs, lengths, keys)

    def attend(self, states: States, last: Query, lengths: Lengths) -> Weights:
        """Returns the attention weights `[t b]`."""
        with matmul_precision_context("float32"):
            return self.attention(states, last, length_mask(lengths, states.shape[0]))

    def logits_from_states(
        self,
        states: States,
        last: Query,
        weights: Weights,
        lengths: Lengths,
        keys: Keys | None = None,
    ) -> tuple[Context, Logits]:
        """Returns context and logits under any weights `[t b]`, the model's own or others."""
        with matmul_precision_context("float32"):
            mask = length_mask(lengths, states.shape[0])
            context = self.pooling(states, last, weights, mask)
            units = jax.nn.relu(self.dense(context)) if self.has_dense else context
            if keys is not None and self.head_dropout > 0:
                units = units * dropout_mask(keys, "head", self.head_dropout, self.head_size)
            return context, self.logit(units)[:, 0]

    def project(self, states: States) -> Projected:
        """Returns the head's first layer, without its bias, of each state `[t b u]`."""
        with matmul_precision_context("float32"):
            return states @ self._first_layer().kernel[...]

    def logits_from_projected(self, projected: Projected, weights: Weights) -> Logits:
        """Returns the logits under any attention weights, of the projected states.

        A linear layer of a weighted sum is the weighted sum of the layer: less work than `decide`
        where many weights are tried over the same states.
        """
        with matmul_precision_context("float32"):
            bias = self._first_layer().bias
            assert bias is not None
            units = weighted_sum(weights, projected) + bias[...][None]
            return (self.logit(jax.nn.relu(units)) if self.has_dense else units)[:, 0]

    def _first_layer(self) -> nnx.Linear:
        return self.dense if self.has_dense else self.logit

    def classify(self, inputs: Inputs, lengths: Lengths, keys: Keys | None = None) -> Output:
        """Returns everything computed from the words' vectors `[t b e]`.

        `keys`, one a review, turn dropout on; without them the result is deterministic.
        """
        return self._conclude(*self.encode(inputs, lengths, keys), lengths, keys)

    def make_reencoder(self, inputs: Inputs) -> Callable[[Positions, Lengths], Output]:
        """Returns `classify`, without dropout, of the same words in other positions."""
        read = self.encoder.make_reencoder(inputs)
        return lambda positions, lengths: self._conclude(*read(positions, lengths), lengths, None)

    def _conclude(self, states: States, last: Query, lengths: Lengths, keys: Keys | None) -> Output:
        weights = self.attend(states, last, lengths)
        context, logits = self.logits_from_states(states, last, weights, lengths, keys)
        return Output(
            logits=logits,
            weights=weights.T,
            states=states.transpose(1, 0, 2),
            last=last,
            context=context,
        )


@dataclasses.dataclass(frozen=True)
class Model:
    """The classifier as pure functions of its parameters, for plain `jax.jit` and `jax.grad`."""

    config: ModelConfig
    vocabulary_size: int
    backend: Backend = "scan"
    """How the recurrence runs: see `recurrence.run_bidirectional`."""

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns initial parameters: a tree of float32 arrays."""
        return nnx.to_pure_dict(nnx.split(self._build(key))[1])

    def embed(self, params: Params, tokens: Tokens, keys: Keys | None = None) -> Inputs:
        """Returns the words' vectors, time-major `[t b e]`; `keys` add dropout."""
        return self._merge(params).embed(tokens, keys)

    def encode(
        self, params: Params, inputs: Inputs, lengths: Lengths, keys: Keys | None = None
    ) -> tuple[States, Query]:
        """Returns every state `[t b d]` and the last ones `[b d]`; `keys` add dropout."""
        return self._merge(params).encode(inputs, lengths, keys)

    def attend(self, params: Params, states: States, last: Query, lengths: Lengths) -> Weights:
        """Returns the attention weights `[t b]`."""
        return self._merge(params).attend(states, last, lengths)

    def logits_from_states(
        self,
        params: Params,
        states: States,
        last: Query,
        weights: Weights,
        lengths: Lengths,
        keys: Keys | None = None,
    ) -> Logits:
        """Returns the logits under any attention weights `[t b]`; `keys` add dropout."""
        return self._merge(params).logits_from_states(states, last, weights, lengths, keys)[1]

    def make_logits_given_weights(
        self, params: Params, states: States, last: Query, lengths: Lengths
    ) -> Callable[[Weights], Logits]:
        """Returns the function from attention weights `[t b]` to logits: `decide`, for many."""
        classifier = self._merge(params)
        if not isinstance(classifier.pooling, AttentionPooling):
            return lambda weights: classifier.logits_from_states(states, last, weights, lengths)[1]
        projected = classifier.project(states)
        return lambda weights: classifier.logits_from_projected(projected, weights)

    def classify(
        self, params: Params, inputs: Inputs, lengths: Lengths, keys: Keys | None = None
    ) -> Output:
        """Returns everything computed from the words' vectors `[t b e]`; `keys` add dropout."""
        return self._merge(params).classify(inputs, lengths, keys)

    def __call__(
        self, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys | None = None
    ) -> Output:
        """Returns everything computed from the tokens `[b t]`; `keys` add dropout."""
        return self.classify(params, self.embed(params, tokens, keys), lengths, keys)

    def make_reencoder(
        self, params: Params, tokens: Tokens
    ) -> Callable[[Positions, Lengths], Output]:
        """Returns the function that answers reviews again, their tokens in other positions.

        `positions[t, b]` is the index of the original token placed at t; per-token work is
        computed once.
        """
        classifier = self._merge(params)
        return classifier.make_reencoder(classifier.embed(tokens))

    def _build(self, key: Key[Array, ""]) -> Classifier:
        return Classifier(
            self.config, self.vocabulary_size, self.backend, rngs=nnx.Rngs(params=key)
        )

    def _merge(self, params: Params) -> Classifier:
        graph, _ = nnx.split(nnx.eval_shape(lambda: self._build(jax.random.key(0))))
        return nnx.merge(graph, params)

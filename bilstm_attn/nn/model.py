"""The classifier: an NNX module with the equations, and pure functions of its parameters."""

import dataclasses
from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from bilstm_attn.config import Backend, ModelConfig
from bilstm_attn.errors import UserError
from bilstm_attn.nn.attention import ATTENTIONS, Attention
from bilstm_attn.nn.backend import require_supported
from bilstm_attn.nn.cells import glorot_uniform
from bilstm_attn.nn.dropout import dropout_mask, word_mask
from bilstm_attn.nn.encoder import ENCODERS, Encoder
from bilstm_attn.nn.pooling import POOLINGS, AttentionPooling, Pooling, weighted_sum
from bilstm_attn.nn.precision import matmul_precision_context
from bilstm_attn.nn.recurrence import length_mask
from bilstm_attn.nn.tasks import Task, make_task
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
    Query,
    States,
    Tokens,
    Weights,
)

P = ParamSpec("P")
R = TypeVar("R")


class Classifier(nnx.Module):
    """Computes logits from tokens: embedding, encoder, attention, pooling, head.

        states, last = encoder(embedding[tokens])
        weights = attention(states, last)
        context = pooling(states, last, weights)
        logits  = task.logits(relu(context W_1 + b_1) W_2 + b_2)

    Without a dense layer the head is `context W_2 + b_2`. The module is stateless: no method
    changes it. `keys`, one per example, turn dropout on; without keys, results are deterministic.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        backend: Backend,
        task: Task,
        *,
        rngs: nnx.Rngs,
    ):
        self.task = task
        self.head_size = config.head_size
        self.word_dropout = config.word_dropout
        self.head_dropout = config.head_dropout
        table = jax.random.uniform(
            rngs.params(), (vocabulary_size, config.embedding_size), minval=-0.05, maxval=0.05
        )
        self.embedding = nnx.Param(table)  # all initial values are those of Keras
        self.encoder: Encoder = make(
            "encoder",
            ENCODERS,
            config.encoder,
            config.encoder_options,
            config=config,
            backend=backend,
            rngs=rngs,
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
        self.logit = nnx.Linear(self.head_size, task.outputs, kernel_init=glorot_uniform, rngs=rngs)

    def embed(self, tokens: Tokens, keys: Keys | None = None) -> Inputs:
        """Returns the word vectors, time-major `[t b e]`; `keys` turn word dropout on."""
        vectors = self.embedding[...][tokens.T]
        if keys is not None and self.word_dropout > 0:
            vectors *= word_mask(keys, "words", self.word_dropout, tokens).T[..., None]
        return vectors

    def encode(
        self, inputs: Inputs, lengths: Lengths, keys: Keys | None = None
    ) -> tuple[States, Query]:
        """Returns all states `[t b d]`, zero at padding, and the last states `[b d]`."""
        mask = length_mask(lengths, inputs.shape[0])
        inputs = jnp.where(mask[..., None], inputs, 0)  # excludes padding from all gradients
        return self.encoder(inputs, lengths, keys)

    def attend(self, states: States, last: Query, lengths: Lengths) -> Weights:
        """Returns the attention weights `[t b]`."""
        with matmul_precision_context("float32"):
            return self.attention(states, last, length_mask(lengths, states.shape[0]))

    def pool(self, states: States, last: Query, weights: Weights, lengths: Lengths) -> Context:
        """Returns the context `[b d]` for the given attention weights `[t b]`."""
        with matmul_precision_context("float32"):
            return self.pooling(states, last, weights, length_mask(lengths, states.shape[0]))

    def logits_from_context(self, context: Context, keys: Keys | None = None) -> Logits:
        """Returns the logits `[b]` from the context `[b d]`."""
        with matmul_precision_context("float32"):
            units = jax.nn.relu(self.dense(context)) if self.has_dense else context
            if keys is not None and self.head_dropout > 0:
                units = units * dropout_mask(keys, "head", self.head_dropout, self.head_size)
            return self.task.logits(self.logit(units))

    def logits_from_states(
        self,
        states: States,
        last: Query,
        weights: Weights,
        lengths: Lengths,
        keys: Keys | None = None,
    ) -> Logits:
        """Returns the logits `[b]` for the given attention weights `[t b]`."""
        return self.logits_from_context(self.pool(states, last, weights, lengths), keys)

    def make_logits_given_weights(
        self, states: States, last: Query, lengths: Lengths
    ) -> Callable[[Weights], Logits]:
        """Returns `f(weights)`, which equals `logits_from_states` for these states.

        With attention pooling, the first layer of the head is applied to every state beforehand,
        since a linear layer commutes with a weighted sum. Many calls are then cheap.
        """
        if not isinstance(self.pooling, AttentionPooling):
            return lambda weights: self.logits_from_states(states, last, weights, lengths)
        layer = self.dense if self.has_dense else self.logit
        with matmul_precision_context("float32"):
            projected = states @ layer.kernel[...]

        def logits(weights: Weights) -> Logits:
            with matmul_precision_context("float32"):
                assert layer.bias is not None
                units = weighted_sum(weights, projected) + layer.bias[...][None]
                outputs = self.logit(jax.nn.relu(units)) if self.has_dense else units
                return self.task.logits(outputs)

        return logits

    def classify(self, inputs: Inputs, lengths: Lengths, keys: Keys | None = None) -> Output:
        """Returns all results of the forward pass from the word vectors `[t b e]`."""
        return self._output(*self.encode(inputs, lengths, keys), lengths, keys)

    def make_reencoder(self, tokens: Tokens) -> Callable[[Positions, Lengths], Output]:
        """Returns `f(positions, lengths)`, the output for a selection of tokens without dropout.

        `positions[t, b]` is the index of the original token placed at t. Work that depends on
        single tokens is done only once, before the first call.
        """
        reencode = self.encoder.make_reencoder(self.embed(tokens))
        return lambda positions, lengths: self._output(*reencode(positions, lengths), lengths, None)

    def _output(self, states: States, last: Query, lengths: Lengths, keys: Keys | None) -> Output:
        weights = self.attend(states, last, lengths)
        context = self.pool(states, last, weights, lengths)
        return Output(
            logits=self.logits_from_context(context, keys),
            weights=weights.T,
            states=states.transpose(1, 0, 2),
            last=last,
            context=context,
        )


def _pure(
    method: Callable[Concatenate[Classifier, P], R],
) -> Callable[Concatenate["Model", Params, P], R]:
    """Returns a method of `Classifier` as a pure function of its parameters."""

    @wraps(method)
    def call(self: "Model", params: Params, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(self.bind(params), *args, **kwargs)

    del call.__wrapped__  # its signature differs: it takes no `params`
    return call


@dataclasses.dataclass(frozen=True)
class Model:
    """The classifier as pure functions of its parameters, for plain `jax.jit` and `jax.grad`.

    Every method takes the parameters first, then the arguments of the `Classifier` method of the
    same name.
    """

    config: ModelConfig
    vocabulary_size: int
    backend: Backend = "scan"
    """The backend of the recurrence: see `recurrence.run_bidirectional`."""

    def __post_init__(self):
        require_supported(self.backend, self.config)

    @cached_property
    def task(self) -> Task:
        """The task: the labels that the logits predict, the loss and the metrics."""
        return make_task(self.config.task)

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns initial parameters: a tree of float32 arrays."""
        return nnx.to_pure_dict(nnx.split(self._build(key))[1])

    def bind(self, params: Params) -> Classifier:
        """Returns the module with these parameters."""
        return nnx.merge(self._graph, params)

    def __call__(
        self, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys | None = None
    ) -> Output:
        """Returns all results of the forward pass from the tokens `[b t]`; `keys`: dropout."""
        classifier = self.bind(params)
        return classifier.classify(classifier.embed(tokens, keys), lengths, keys)

    embed = _pure(Classifier.embed)
    encode = _pure(Classifier.encode)
    attend = _pure(Classifier.attend)
    logits_from_states = _pure(Classifier.logits_from_states)
    make_logits_given_weights = _pure(Classifier.make_logits_given_weights)
    classify = _pure(Classifier.classify)
    make_reencoder = _pure(Classifier.make_reencoder)

    @cached_property
    def _graph(self) -> Any:
        """The structure of the module without its arrays, built once."""
        return nnx.split(nnx.eval_shape(lambda: self._build(jax.random.key(0))))[0]

    def _build(self, key: Key[Array, ""]) -> Classifier:
        rngs = nnx.Rngs(params=key)
        return Classifier(self.config, self.vocabulary_size, self.backend, self.task, rngs=rngs)

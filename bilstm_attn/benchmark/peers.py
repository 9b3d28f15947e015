"""Implementations of the tutorial's model, each on one batch. Another is one class and one line."""

import abc
import importlib
import os
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bilstm_attn.config import Backend, ModelConfig, OptimConfig
from bilstm_attn.encoder import prepare_native
from bilstm_attn.evaluate import make_logits_step
from bilstm_attn.model import Model
from bilstm_attn.objectives import CrossEntropy
from bilstm_attn.optim import make_optimizer
from bilstm_attn.sharding import make_mesh, place_rows, place_whole
from bilstm_attn.train import TrainState, make_train_step, zero_sums
from bilstm_attn.types import Batch, Params

VOCABULARY = 10_000
CONFIG = ModelConfig()


class Peer(abc.ABC):
    """The model with given parameters on one batch. Public methods return when their work is done.

    The constructor may raise `ImportError`, where its library is not installed.
    """

    @abc.abstractmethod
    def __init__(self, params: Params, batch: Batch):
        """Takes parameters in the shape of `Model.init`'s."""

    @abc.abstractmethod
    def logits(self) -> np.ndarray:
        """Returns the logit of each review `[b]`, without dropout."""

    @abc.abstractmethod
    def train(self) -> None:
        """Takes a step of Adam with dropout."""


class Ours(Peer):
    """This package, over as many CPU devices as share the batch in training."""

    backend: ClassVar[Backend]

    def __init__(self, params: Params, batch: Batch):
        mesh = make_mesh(len(batch.length))
        if self.backend == "native":
            prepare_native()
        model = Model(CONFIG, VOCABULARY, self.backend)
        optimizer = make_optimizer(OptimConfig(), steps=100)
        self._step = make_train_step(model, CrossEntropy(), optimizer, mesh)
        self._logits = make_logits_step(model, mesh)
        state = TrainState(jnp.int32(0), params, optimizer.init(params), zero_sums())
        self._state = place_whole(jax.tree.map(jnp.array, state), mesh)
        self._params, self._batch = place_whole(params, mesh), place_rows(batch, mesh)

    def logits(self) -> np.ndarray:
        """Returns the logits."""
        return np.asarray(self._logits(self._params, self._batch))

    def train(self) -> None:
        """Takes a step."""
        self._state, _ = self._step(self._state, (self._batch,), jax.random.key(0))
        jax.block_until_ready(self._state)


class Native(Ours):
    """The compiled kernel."""

    backend = "native"


class Scan(Ours):
    """The scan with a derivative of its own."""

    backend = "scan"


class Plain(Ours):
    """The scan with JAX's derivative."""

    backend = "plain"


class _FlaxModel(nnx.Module):
    """As a user of Flax writes it: `nnx.RNN` twice a layer, the library's cells and layers."""

    def __init__(self, rngs: nnx.Rngs):
        def rnn(inputs: int, *, reverse: bool) -> nnx.RNN:
            cell = nnx.OptimizedLSTMCell(inputs, CONFIG.hidden_size, rngs=rngs)
            return nnx.RNN(cell, return_carry=True, reverse=reverse, keep_order=True)

        sizes = (CONFIG.embedding_size, CONFIG.states_size)
        self.embedding = nnx.Embed(VOCABULARY, CONFIG.embedding_size, rngs=rngs)
        self.layers = nnx.List(
            [nnx.List([rnn(size, reverse=way) for way in (False, True)]) for size in sizes]
        )
        self.noise = nnx.Dropout(CONFIG.input_dropout, broadcast_dims=(1,), rngs=rngs)
        self.of_states = nnx.Linear(CONFIG.states_size, CONFIG.attention_size, rngs=rngs)
        self.of_query = nnx.Linear(
            CONFIG.states_size, CONFIG.attention_size, use_bias=False, rngs=rngs
        )
        self.vector = nnx.Linear(CONFIG.attention_size, 1, use_bias=False, rngs=rngs)
        self.dense = nnx.Linear(CONFIG.states_size, CONFIG.dense_size, rngs=rngs)
        self.head_noise = nnx.Dropout(CONFIG.head_dropout, rngs=rngs)
        self.logit = nnx.Linear(CONFIG.dense_size, 1, rngs=rngs)

    def __call__(self, tokens: Any, lengths: Any) -> Any:
        x, last = self.embedding(tokens), jnp.zeros(0)
        for layer in self.layers:
            walks: list[Any] = [rnn(self.noise(x), seq_lengths=lengths) for rnn in layer]
            last = jnp.concatenate([carry[1] for carry, _ in walks], axis=-1)
            x = jnp.concatenate([states for _, states in walks], axis=-1)
        units = jnp.tanh(self.of_states(x) + self.of_query(last)[:, None])
        mask = jnp.arange(x.shape[1])[None] < lengths[:, None]
        scores = jnp.where(mask, self.vector(units)[..., 0], -1e9)
        context = jnp.einsum("bt,btd->bd", jax.nn.softmax(scores), x)
        return self.logit(self.head_noise(jax.nn.relu(self.dense(context))))[:, 0]


class Flax(Peer):
    """`flax.nnx.RNN`, with `nnx.jit` and `nnx.Optimizer`."""

    def __init__(self, params: Params, batch: Batch):
        self._model = _FlaxModel(nnx.Rngs(0))
        self._fill(params)
        self._optimizer = nnx.Optimizer(self._model, optax.adam(1e-3), wrt=nnx.Param)
        self._batch = jax.tree.map(jnp.asarray, batch)

        @nnx.jit
        def step(model: Any, optimizer: Any, batch: Any) -> None:
            def loss(model: Any) -> Any:
                logits = model(batch.tokens, batch.length)
                return optax.sigmoid_binary_cross_entropy(logits, batch.label).mean()

            optimizer.update(model, nnx.grad(loss)(model))

        self._step = step
        self._logits = nnx.jit(lambda model, batch: model(batch.tokens, batch.length))

    def _fill(self, params: Params) -> None:
        model: Any = self._model
        attention = params["attention"]
        model.embedding.embedding[...] = params["embedding"]
        for layer, ours in zip(model.layers, params["encoder"]["layers"].values(), strict=True):
            for rnn, way in zip(layer, ("forward", "backward"), strict=True):
                rnn.cell.dense_i.kernel[...] = ours[way]["input_kernel"]
                rnn.cell.dense_h.kernel[...] = ours[way]["recurrent_kernel"]
                rnn.cell.dense_h.bias[...] = ours[way]["bias"]
        model.of_states.kernel[...], model.of_states.bias[...] = (
            attention["states_kernel"],
            attention["bias"],
        )
        model.of_query.kernel[...] = attention["query_kernel"]
        model.vector.kernel[...] = attention["vector"]
        for name in ("dense", "logit"):
            getattr(model, name).kernel[...] = params[name]["kernel"]
            getattr(model, name).bias[...] = params[name]["bias"]

    def logits(self) -> np.ndarray:
        """Returns the logits."""
        self._model.eval()
        return np.asarray(self._logits(self._model, self._batch))

    def train(self) -> None:
        """Takes a step."""
        self._model.train()
        self._step(self._model, self._optimizer, self._batch)
        jax.block_until_ready(nnx.state(self._model))


class KerasOnJax(Peer):
    """The tutorial's Keras model as it stands: padded in front, padding read and attended to."""

    backend: ClassVar[str] = "jax"

    def __init__(self, params: Params, batch: Batch):
        os.environ["KERAS_BACKEND"] = self.backend
        keras: Any = importlib.import_module("keras")
        layers, ops = keras.layers, keras.ops

        class Attention(layers.Layer):
            def __init__(self) -> None:
                super().__init__()
                self.of_states = layers.Dense(CONFIG.attention_size)
                self.of_query = layers.Dense(CONFIG.attention_size)
                self.vector = layers.Dense(1)

            def call(self, states: Any, query: Any) -> Any:
                units = ops.tanh(self.of_states(states) + self.of_query(ops.expand_dims(query, 1)))
                return ops.sum(ops.softmax(self.vector(units), axis=1) * states, axis=1)

        def both_ways(**more: Any) -> Any:
            lstm = layers.LSTM(
                CONFIG.hidden_size, dropout=CONFIG.input_dropout, return_sequences=True, **more
            )
            return layers.Bidirectional(lstm)

        read = layers.Input((batch.tokens.shape[1],), dtype="int32")
        states = both_ways()(layers.Embedding(VOCABULARY, CONFIG.embedding_size)(read))
        states, forward, _, backward, _ = both_ways(return_state=True)(states)
        context = Attention()(states, layers.Concatenate()([forward, backward]))
        units = layers.Dense(CONFIG.dense_size, activation="relu")(context)
        answer = layers.Dense(1)(layers.Dropout(CONFIG.head_dropout)(units))
        self._model = keras.Model(read, answer)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        self._model.compile("adam", loss)
        tokens, lengths = np.asarray(batch.tokens), np.asarray(batch.length)
        self._tokens = np.zeros_like(tokens)
        for row, length in enumerate(lengths):
            self._tokens[row, tokens.shape[1] - length :] = tokens[row, :length]
        self._labels = np.asarray(batch.label, np.float32)[:, None]
        self._fill(params)

    def _fill(self, params: Params) -> None:
        ways = [
            part
            for layer in params["encoder"]["layers"].values()
            for way in ("forward", "backward")
            for part in (
                layer[way]["input_kernel"],
                layer[way]["recurrent_kernel"],
                layer[way]["bias"],
            )
        ]
        ours = params["attention"]
        no_bias = np.zeros(CONFIG.attention_size)
        attention = (ours["states_kernel"], ours["bias"], ours["query_kernel"], no_bias)
        head = [params[name][part] for name in ("dense", "logit") for part in ("kernel", "bias")]
        values = [params["embedding"], *ways, *attention, ours["vector"], np.zeros(1), *head]
        self._model.set_weights([np.asarray(value) for value in values])

    def logits(self) -> np.ndarray:
        """Returns the logits."""
        return np.asarray(self._model.predict_on_batch(self._tokens))[:, 0]

    def train(self) -> None:
        """Takes a step."""
        float(self._model.train_on_batch(self._tokens, self._labels))


class KerasOnTensorFlow(KerasOnJax):
    """The same on TensorFlow."""

    backend = "tensorflow"


PEERS: dict[str, type[Peer]] = {
    "ours, native": Native,
    "ours, scan": Scan,
    "ours, plain": Plain,
    "flax nnx.RNN": Flax,
    "keras on jax": KerasOnJax,
    "keras on tensorflow": KerasOnTensorFlow,
}

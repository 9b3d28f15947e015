"""The tutorial's model as a user of Flax would write it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bilstm_attn.benchmark.peer import VOCABULARY, Peer, Setting
from bilstm_attn.config import ModelConfig
from bilstm_attn.types import Batch, Params


class _FlaxModel(nnx.Module):
    """`nnx.RNN` twice per layer, with Flax's own cells, layers and dropout."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        def rnn(inputs: int, *, reverse: bool) -> nnx.RNN:
            cell = nnx.OptimizedLSTMCell(inputs, config.hidden_size, rngs=rngs)
            return nnx.RNN(cell, return_carry=True, reverse=reverse, keep_order=True)

        sizes = (config.embedding_size, config.states_size)
        self.embedding = nnx.Embed(VOCABULARY, config.embedding_size, rngs=rngs)
        self.layers = nnx.List(
            [nnx.List([rnn(size, reverse=reverse) for reverse in (False, True)]) for size in sizes]
        )
        self.input_dropout = nnx.Dropout(config.input_dropout, broadcast_dims=(1,), rngs=rngs)
        self.states_layer = nnx.Linear(config.states_size, config.attention_size, rngs=rngs)
        self.query_layer = nnx.Linear(
            config.states_size, config.attention_size, use_bias=False, rngs=rngs
        )
        self.vector = nnx.Linear(config.attention_size, 1, use_bias=False, rngs=rngs)
        self.dense = nnx.Linear(config.states_size, config.dense_size, rngs=rngs)
        self.head_dropout = nnx.Dropout(config.head_dropout, rngs=rngs)
        self.logit = nnx.Linear(config.dense_size, 1, rngs=rngs)

    def __call__(self, tokens: Any, lengths: Any) -> Any:
        x, last = self.embedding(tokens), jnp.zeros(0)
        for layer in self.layers:
            directions: list[Any] = [
                rnn(self.input_dropout(x), seq_lengths=lengths) for rnn in layer
            ]
            last = jnp.concatenate([carry[1] for carry, _ in directions], axis=-1)
            x = jnp.concatenate([states for _, states in directions], axis=-1)
        units = jnp.tanh(self.states_layer(x) + self.query_layer(last)[:, None])
        mask = jnp.arange(x.shape[1])[None] < lengths[:, None]
        scores = jnp.where(mask, self.vector(units)[..., 0], -1e9)
        context = jnp.einsum("bt,btd->bd", jax.nn.softmax(scores), x)
        return self.logit(self.head_dropout(jax.nn.relu(self.dense(context))))[:, 0]


class Flax(Peer):
    """`flax.nnx.RNN`, with `nnx.jit` and `nnx.Optimizer`."""

    def __init__(self, params: Params, setting: Setting):
        self._model = _FlaxModel(setting.config, nnx.Rngs(0))
        self.set_params(params)
        self._optimizer = nnx.Optimizer(self._model, optax.adam(1e-3), wrt=nnx.Param)

        @nnx.jit
        def step(model: Any, optimizer: Any, batch: Any) -> None:
            def loss(model: Any) -> Any:
                logits = model(batch.tokens, batch.length)
                return optax.sigmoid_binary_cross_entropy(logits, batch.label).mean()

            optimizer.update(model, nnx.grad(loss)(model))

        self._step = step
        self._logits = nnx.jit(lambda model, batch: model(batch.tokens, batch.length))

    def set_params(self, params: Params) -> None:
        """Copies the parameters into the module."""
        model: Any = self._model
        attention, layers = params["attention"], params["encoder"]["layers"].values()
        model.embedding.embedding[...] = params["embedding"]
        for layer, layer_params in zip(model.layers, layers, strict=True):
            for rnn, direction in zip(layer, ("forward", "backward"), strict=True):
                rnn.cell.dense_i.kernel[...] = layer_params[direction]["input_kernel"]
                rnn.cell.dense_h.kernel[...] = layer_params[direction]["recurrent_kernel"]
                rnn.cell.dense_h.bias[...] = layer_params[direction]["bias"]
        model.states_layer.kernel[...] = attention["states_kernel"]
        model.states_layer.bias[...] = attention["bias"]
        model.query_layer.kernel[...] = attention["query_kernel"]
        model.vector.kernel[...] = attention["vector"]
        for name in ("dense", "logit"):
            getattr(model, name).kernel[...] = params[name]["kernel"]
            getattr(model, name).bias[...] = params[name]["bias"]

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits `[b]`."""
        self._model.eval()
        return np.asarray(self._logits(self._model, batch))

    def train_step(self, batch: Batch) -> None:
        """Takes one step."""
        self._model.train()
        self._step(self._model, self._optimizer, batch)
        jax.block_until_ready(nnx.state(self._model))

"""The tutorial's model with cuDNN's layers, as JAX has them, and the rest ours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import rnn

from bilstm_attn.benchmark.peer import VOCABULARY, Peer, Setting, Unmeasured
from bilstm_attn.nn.dropout import dropout_mask
from bilstm_attn.nn.model import Model
from bilstm_attn.types import Batch, Inputs, Keys, Lengths, Params, Query, States


class _Encoder:
    """`jax.experimental.rnn.lstm` in the place of our encoder; one mask a layer, as in PyTorch."""

    def __init__(self, params: Params, rate: float):
        self._layers, self._rate = params["layers"], rate

    def __call__(self, x: Inputs, lengths: Lengths, keys: Keys | None) -> tuple[States, Query]:
        last = jnp.zeros(0)
        for name, layer in self._layers.items():
            ways = (layer["forward"], layer["backward"])
            inputs_size, hidden = ways[0]["input_kernel"].shape[0], ways[0]["bias"].shape[0] // 4
            if keys is not None:
                x = x * dropout_mask(keys, f"layer{name}", self._rate, inputs_size)[None]
            matrices = [
                way[kind].T.ravel() for way in ways for kind in ("input_kernel", "recurrent_kernel")
            ]
            biases = [part for way in ways for part in (way["bias"], jnp.zeros(4 * hidden))]
            start = jnp.zeros((2, len(lengths), hidden))
            lstm: Any = rnn.lstm
            states, ends, _ = lstm(
                x.swapaxes(0, 1),  # rows first
                start,
                start,
                jnp.concatenate([*matrices, *biases]),
                lengths,
                inputs_size,
                hidden,
                1,  # layers
                0.0,  # dropout between them
                True,  # both ways
            )
            x, last = states.swapaxes(0, 1), jnp.concatenate([ends[0], ends[1]], axis=-1)
        return x, last


class CudnnInJax(Peer):
    """`jax.experimental.rnn`, with `jax.jit` and optax."""

    def __init__(self, params: Params, setting: Setting):
        config = setting.config
        if not setting.on_gpu:
            raise Unmeasured("it is for gpu")
        if config.matmul_precision == "bfloat16":
            raise Unmeasured("it has no products in bfloat16")
        bind = Model(config, VOCABULARY).bind

        def logits(params: Params, batch: Batch, keys: Keys | None = None) -> Any:
            model = bind(params)
            encoder: Any = _Encoder(params["encoder"], config.input_dropout)
            model.encoder = encoder
            return model.classify(model.embed(batch.tokens, keys), batch.length, keys).logits

        optimizer = optax.adam(1e-3)

        def step(params: Params, optimizer_state: Any, batch: Batch, key: Any) -> Any:
            keys = jax.random.split(key, len(batch.length))

            def loss(params: Params) -> Any:
                found = logits(params, batch, keys)
                return optax.sigmoid_binary_cross_entropy(found, batch.label).mean()

            updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state)
            return optax.apply_updates(params, updates), optimizer_state

        self._logits, self._step = jax.jit(logits), jax.jit(step)
        self.fill(params)
        self._optimizer_state = optimizer.init(self._params)

    def fill(self, params: Params) -> None:
        """Positions them on the device."""
        self._params = jax.device_put(params)

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits."""
        return np.asarray(self._logits(self._params, batch))

    def train(self, batch: Batch) -> None:
        """Takes a step."""
        given = (self._params, self._optimizer_state, batch, jax.random.key(0))
        self._params, self._optimizer_state = jax.block_until_ready(self._step(*given))

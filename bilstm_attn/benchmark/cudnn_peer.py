"""This package's model with its encoder replaced by cuDNN's LSTM, through JAX."""

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
    """`jax.experimental.rnn.lstm`, with one dropout mask per layer, as in PyTorch."""

    def __init__(self, params: Params, rate: float):
        self._layers, self._rate = params["layers"], rate

    def __call__(self, x: Inputs, lengths: Lengths, keys: Keys | None) -> tuple[States, Query]:
        last = jnp.zeros(0)
        for name, layer in self._layers.items():
            directions = (layer["forward"], layer["backward"])
            hidden = directions[0]["recurrent_kernel"].shape[0]
            inputs_size = directions[0]["input_kernel"].shape[0]
            if keys is not None:
                x = x * dropout_mask(keys, f"layer{name}", self._rate, inputs_size)[None]
            kernels = [
                cell[kind].T.ravel()
                for cell in directions
                for kind in ("input_kernel", "recurrent_kernel")
            ]
            # cuDNN has two biases per gate.
            biases = [bias for c in directions for bias in (c["bias"], jnp.zeros(4 * hidden))]
            zeros = jnp.zeros((2, len(lengths), hidden))
            lstm: Any = rnn.lstm
            states, ends, _ = lstm(
                x.swapaxes(0, 1),  # batch-major
                zeros,  # initial hidden state
                zeros,  # initial cell state
                jnp.concatenate([*kernels, *biases]),
                lengths,
                inputs_size,
                hidden,
                1,  # layers
                0.0,  # dropout between layers
                True,  # bidirectional
            )
            x, last = states.swapaxes(0, 1), jnp.concatenate([ends[0], ends[1]], axis=-1)
        return x, last


class CudnnInJax(Peer):
    """cuDNN's LSTM through `jax.experimental.rnn`, with `jax.jit` and optax."""

    def __init__(self, params: Params, setting: Setting):
        config = setting.config
        if not setting.on_gpu:
            raise Unmeasured("it runs on gpu only")
        if config.matmul_precision == "bfloat16":
            raise Unmeasured("it has no matmuls in bfloat16")
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
                losses = optax.sigmoid_binary_cross_entropy(
                    logits(params, batch, keys), batch.label
                )
                return losses.mean()

            updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state)
            return optax.apply_updates(params, updates), optimizer_state

        self._logits, self._step = jax.jit(logits), jax.jit(step)
        self.set_params(params)
        self._optimizer_state = optimizer.init(self._params)

    def set_params(self, params: Params) -> None:
        """Copies the parameters to the device."""
        self._params = jax.device_put(params)

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits `[b]`."""
        return np.asarray(self._logits(self._params, batch))

    def train_step(self, batch: Batch) -> None:
        """Takes one step."""
        updated = self._step(self._params, self._optimizer_state, batch, jax.random.key(0))
        self._params, self._optimizer_state = jax.block_until_ready(updated)

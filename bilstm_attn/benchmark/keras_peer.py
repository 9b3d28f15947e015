"""The tutorial's Keras model, unchanged."""

import importlib
import os
from typing import Any, ClassVar

import numpy as np

from bilstm_attn.benchmark.peer import VOCABULARY, Peer, Setting
from bilstm_attn.types import Batch, Params


class KerasOnJax(Peer):
    """The tutorial's Keras model, unchanged: padded in front, with no mask in the attention."""

    backend: ClassVar[str] = "jax"

    def __init__(self, params: Params, setting: Setting):
        config = setting.config
        os.environ["KERAS_BACKEND"] = self.backend
        keras: Any = importlib.import_module("keras")
        layers, ops = keras.layers, keras.ops
        if self.backend == "tensorflow":
            tf: Any = importlib.import_module("tensorflow")
            tf.config.experimental.enable_tensor_float_32_execution(
                config.matmul_precision != "float32"
            )

        class Attention(layers.Layer):
            def __init__(self) -> None:
                super().__init__()
                self.states_layer = layers.Dense(config.attention_size)
                self.query_layer = layers.Dense(config.attention_size)
                self.vector = layers.Dense(1)

            def call(self, states: Any, query: Any) -> Any:
                query = self.query_layer(ops.expand_dims(query, 1))
                units = ops.tanh(self.states_layer(states) + query)
                return ops.sum(ops.softmax(self.vector(units), axis=1) * states, axis=1)

        def bidirectional_lstm(**options: Any) -> Any:
            lstm = layers.LSTM(
                config.hidden_size, dropout=config.input_dropout, return_sequences=True, **options
            )
            return layers.Bidirectional(lstm)

        tokens = layers.Input((None,), dtype="int32")
        embedding = layers.Embedding(VOCABULARY, config.embedding_size, mask_zero=True)
        states = bidirectional_lstm()(embedding(tokens))
        states, forward, _, backward, _ = bidirectional_lstm(return_state=True)(states)
        context = Attention()(states, layers.Concatenate()([forward, backward]))
        units = layers.Dense(config.dense_size, activation="relu")(context)
        logit = layers.Dense(1)(layers.Dropout(config.head_dropout)(units))
        self._model = keras.Model(tokens, logit)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        self._model.compile("adam", loss)
        self.set_params(params)

    def set_params(self, params: Params) -> None:
        """Copies the parameters in the order in which Keras lists its own."""
        encoder = [
            layer[direction][name]
            for layer in params["encoder"]["layers"].values()
            for direction in ("forward", "backward")
            for name in ("input_kernel", "recurrent_kernel", "bias")
        ]
        ours = params["attention"]
        states_layer = [ours["states_kernel"], ours["bias"]]
        query_layer = [ours["query_kernel"], np.zeros_like(ours["bias"])]  # Keras has two biases
        attention = [*states_layer, *query_layer, ours["vector"], np.zeros(1)]
        head = [params[name][part] for name in ("dense", "logit") for part in ("kernel", "bias")]
        values = [params["embedding"], *encoder, *attention, *head]
        self._model.set_weights([np.asarray(value) for value in values])

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits `[b]`."""
        return np.asarray(self._model.predict_on_batch(pad_in_front(batch)))[:, 0]

    def train_step(self, batch: Batch) -> None:
        """Takes one step."""
        labels = np.asarray(batch.label, np.float32)[:, None]
        float(self._model.train_on_batch(pad_in_front(batch), labels))


def pad_in_front(batch: Batch) -> np.ndarray:
    """Returns the tokens `[b t]` with the padding before each text, as Keras pads by default."""
    tokens, steps = np.asarray(batch.tokens), batch.tokens.shape[1]
    positions = np.arange(steps)[None] - (steps - np.asarray(batch.length))[:, None]
    shifted = np.take_along_axis(tokens, np.maximum(positions, 0), axis=1)
    return np.where(positions >= 0, shifted, 0)


class KerasOnTensorFlow(KerasOnJax):
    """The tutorial's Keras model on TensorFlow."""

    backend = "tensorflow"

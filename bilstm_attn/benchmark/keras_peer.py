"""The tutorial's Keras model as it stands."""

import importlib
import os
from typing import Any, ClassVar

import numpy as np

from bilstm_attn.benchmark.peer import VOCABULARY, Peer, Setting
from bilstm_attn.types import Batch, Params


class KerasOnJax(Peer):
    """The tutorial's Keras model as it stands: padded in front; masked, but for the attention."""

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
                self.of_states = layers.Dense(config.attention_size)
                self.of_query = layers.Dense(config.attention_size)
                self.vector = layers.Dense(1)

            def call(self, states: Any, query: Any) -> Any:
                units = ops.tanh(self.of_states(states) + self.of_query(ops.expand_dims(query, 1)))
                return ops.sum(ops.softmax(self.vector(units), axis=1) * states, axis=1)

        def both_ways(**more: Any) -> Any:
            lstm = layers.LSTM(
                config.hidden_size, dropout=config.input_dropout, return_sequences=True, **more
            )
            return layers.Bidirectional(lstm)

        read = layers.Input((None,), dtype="int32")
        embedding = layers.Embedding(VOCABULARY, config.embedding_size, mask_zero=True)
        states = both_ways()(embedding(read))
        states, forward, _, backward, _ = both_ways(return_state=True)(states)
        context = Attention()(states, layers.Concatenate()([forward, backward]))
        units = layers.Dense(config.dense_size, activation="relu")(context)
        answer = layers.Dense(1)(layers.Dropout(config.head_dropout)(units))
        self._model = keras.Model(read, answer)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        self._model.compile("adam", loss)
        self.fill(params)

    def fill(self, params: Params) -> None:
        """Copies them in the order in which Keras lists them."""
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
        no_bias = np.zeros_like(ours["bias"])
        attention = (ours["states_kernel"], ours["bias"], ours["query_kernel"], no_bias)
        head = [params[name][part] for name in ("dense", "logit") for part in ("kernel", "bias")]
        values = [params["embedding"], *ways, *attention, ours["vector"], np.zeros(1), *head]
        self._model.set_weights([np.asarray(value) for value in values])

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits."""
        return np.asarray(self._model.predict_on_batch(pad_in_front(batch)))[:, 0]

    def train(self, batch: Batch) -> None:
        """Takes a step."""
        labels = np.asarray(batch.label, np.float32)[:, None]
        float(self._model.train_on_batch(pad_in_front(batch), labels))


def pad_in_front(batch: Batch) -> np.ndarray:
    """Returns the tokens as Keras pads them: each review at the end of its row."""
    tokens, steps = np.asarray(batch.tokens), batch.tokens.shape[1]
    places = np.arange(steps)[None] - (steps - np.asarray(batch.length))[:, None]
    own = np.take_along_axis(tokens, np.maximum(places, 0), axis=1)
    return np.where(places >= 0, own, 0)


class KerasOnTensorFlow(KerasOnJax):
    """The same on TensorFlow."""

    backend = "tensorflow"

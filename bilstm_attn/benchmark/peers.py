"""Implementations of the tutorial's model. Another is one class and one line in `PEERS`."""

import abc
import importlib
import os
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from bilstm_attn.config import Backend, ModelConfig, OptimConfig
from bilstm_attn.encoder import MADE_FOR, Encoder, prepare_native, refusal
from bilstm_attn.evaluate import make_logits_step
from bilstm_attn.model import Model
from bilstm_attn.objectives import CrossEntropy
from bilstm_attn.optim import make_optimizer
from bilstm_attn.sharding import AXIS, ROWS, WHOLE, make_mesh, place_rows, place_whole
from bilstm_attn.train import TrainState, make_train_step, zero_sums
from bilstm_attn.types import Batch, Params

VOCABULARY = 10_000


class Unmeasured(Exception):
    """An implementation cannot run in this setting; says why."""


class Setting(NamedTuple):
    """What else an implementation is made for."""

    config: ModelConfig
    rows: int  # divides the rows of every batch
    devices: int | None = None  # devices or threads; None is all
    on_gpu: bool = False


class Peer(abc.ABC):
    """The model with given parameters. Public methods return when their work is done.

    The constructor may raise `Unmeasured`, or `ImportError` where its library is not installed.
    """

    @abc.abstractmethod
    def __init__(self, params: Params, setting: Setting):
        """Takes parameters in the shape of `Model.init`'s."""

    @abc.abstractmethod
    def fill(self, params: Params) -> None:
        """Sets the parameters of `logits`."""

    @abc.abstractmethod
    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logit of each review `[b]`, without dropout."""

    @abc.abstractmethod
    def train(self, batch: Batch) -> None:
        """Takes a step of Adam with dropout."""

    def epoch(self, batches: Sequence[tuple[Batch, ...]]) -> None:
        """Takes a step on each batch of an epoch, as its users would; here padded as a whole."""
        for groups in batches:
            self.train(join(groups))

    def layers(self, batch: Batch) -> None:
        """Runs the recurrent layers alone, with dropout, forward and backward."""
        raise Unmeasured("its layers are not timed by themselves")


def join(groups: Sequence[Batch]) -> Batch:
    """Returns one batch of the groups' rows, padded to the longest."""
    steps = max(group.tokens.shape[1] for group in groups)
    parts: Any = [
        group._replace(tokens=np.pad(group.tokens, ((0, 0), (0, steps - group.tokens.shape[1]))))
        for group in groups
    ]
    on_host: Any = [np.concatenate(field) for field in zip(*parts, strict=True)]
    return Batch(*on_host)


class Ours(Peer):
    """This package, over as many CPU devices as share the batch in training."""

    backend: ClassVar[Backend]

    def __init__(self, params: Params, setting: Setting):
        self._mesh = make_mesh(setting.rows, setting.devices)
        self._alone = make_mesh(1, 1)
        made_for = MADE_FOR.get(self.backend)
        if made_for not in (None, jax.default_backend()):
            raise Unmeasured(f"it is for {made_for}")
        if reason := refusal(self.backend, setting.config):
            raise Unmeasured(reason)
        if self.backend == "native":
            prepare_native()
        model = Model(setting.config, VOCABULARY, self.backend)
        optimizer = make_optimizer(OptimConfig(), steps=100)
        self._step = make_train_step(model, CrossEntropy(), optimizer, self._mesh)
        self._logits = {mesh: make_logits_step(model, mesh) for mesh in (self._mesh, self._alone)}
        state = TrainState(jnp.int32(0), params, optimizer.init(params), zero_sums())
        self._state = place_whole(jax.tree.map(jnp.array, state), self._mesh)
        self._layers = self._make_layers(setting.config)
        self.fill(params)

    def fill(self, params: Params) -> None:
        """Places them on the devices."""
        self._params = {mesh: place_whole(params, mesh) for mesh in (self._mesh, self._alone)}

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits."""
        mesh = self._alone if len(batch.length) == 1 else self._mesh
        return np.asarray(self._logits[mesh](self._params[mesh], place_rows(batch, mesh)))

    def train(self, batch: Batch) -> None:
        """Takes a step."""
        self._begin_step((batch,))
        jax.block_until_ready(self._state)

    def epoch(self, batches: Sequence[tuple[Batch, ...]]) -> None:
        """Takes a step on each batch, in its groups, and waits once, as `scripts/train.py` does."""
        for groups in batches:
            self._begin_step(groups)
        jax.block_until_ready(self._state)

    def _begin_step(self, groups: tuple[Batch, ...]) -> None:
        placed = place_rows(groups, self._mesh)
        self._state, _ = self._step(self._state, placed, jax.random.key(0))

    def layers(self, batch: Batch) -> None:
        """Differentiates a sum over the states, in the layers' parameters and inputs."""
        keys = jax.random.split(jax.random.key(0), len(batch.length))
        given = place_rows((batch, keys), self._mesh)
        jax.block_until_ready(self._layers(self._params[self._mesh], *given))

    def _make_layers(self, config: ModelConfig) -> Any:
        graph, _ = nnx.split(Encoder(config, self.backend, rngs=nnx.Rngs(0)))

        def of_rows(params: Params, batch: Batch, keys: Any) -> Any:
            def total(encoder: Params, inputs: Any) -> Any:
                states, last = nnx.merge(graph, encoder)(inputs, batch.length, keys)
                return states.sum() + last.sum()

            inputs = params["embedding"][batch.tokens.T]
            of_params, of_inputs = jax.grad(total, (0, 1))(params["encoder"], inputs)
            return lax.psum(of_params, AXIS), of_inputs

        return jax.jit(
            jax.shard_map(
                of_rows,
                mesh=self._mesh,
                in_specs=(WHOLE, ROWS, ROWS),
                out_specs=(WHOLE, PartitionSpec(None, AXIS)),
                check_vma=False,
            )
        )


class Native(Ours):
    """The compiled kernel."""

    backend = "native"


class Scan(Ours):
    """The scan with a derivative of its own."""

    backend = "scan"


class Pallas(Ours):
    """The kernel for GPUs."""

    backend = "pallas"


class Plain(Ours):
    """The scan with JAX's derivative."""

    backend = "plain"


class _FlaxModel(nnx.Module):
    """As a user of Flax writes it: `nnx.RNN` twice a layer, the library's cells and layers."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        def rnn(inputs: int, *, reverse: bool) -> nnx.RNN:
            cell = nnx.OptimizedLSTMCell(inputs, config.hidden_size, rngs=rngs)
            return nnx.RNN(cell, return_carry=True, reverse=reverse, keep_order=True)

        sizes = (config.embedding_size, config.states_size)
        self.embedding = nnx.Embed(VOCABULARY, config.embedding_size, rngs=rngs)
        self.layers = nnx.List(
            [nnx.List([rnn(size, reverse=way) for way in (False, True)]) for size in sizes]
        )
        self.noise = nnx.Dropout(config.input_dropout, broadcast_dims=(1,), rngs=rngs)
        self.of_states = nnx.Linear(config.states_size, config.attention_size, rngs=rngs)
        self.of_query = nnx.Linear(
            config.states_size, config.attention_size, use_bias=False, rngs=rngs
        )
        self.vector = nnx.Linear(config.attention_size, 1, use_bias=False, rngs=rngs)
        self.dense = nnx.Linear(config.states_size, config.dense_size, rngs=rngs)
        self.head_noise = nnx.Dropout(config.head_dropout, rngs=rngs)
        self.logit = nnx.Linear(config.dense_size, 1, rngs=rngs)

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

    def __init__(self, params: Params, setting: Setting):
        self._model = _FlaxModel(setting.config, nnx.Rngs(0))
        self.fill(params)
        self._optimizer = nnx.Optimizer(self._model, optax.adam(1e-3), wrt=nnx.Param)

        @nnx.jit
        def step(model: Any, optimizer: Any, batch: Any) -> None:
            def loss(model: Any) -> Any:
                logits = model(batch.tokens, batch.length)
                return optax.sigmoid_binary_cross_entropy(logits, batch.label).mean()

            optimizer.update(model, nnx.grad(loss)(model))

        self._step = step
        self._logits = nnx.jit(lambda model, batch: model(batch.tokens, batch.length))

    def fill(self, params: Params) -> None:
        """Copies them into the module's."""
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

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits."""
        self._model.eval()
        return np.asarray(self._logits(self._model, batch))

    def train(self, batch: Batch) -> None:
        """Takes a step."""
        self._model.train()
        self._step(self._model, self._optimizer, batch)
        jax.block_until_ready(nnx.state(self._model))


class KerasOnJax(Peer):
    """The tutorial's Keras model as it stands: padded in front; masked, but for the attention."""

    backend: ClassVar[str] = "jax"

    def __init__(self, params: Params, setting: Setting):
        config = setting.config
        os.environ["KERAS_BACKEND"] = self.backend
        keras: Any = importlib.import_module("keras")
        layers, ops = keras.layers, keras.ops

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


class TorchPadded(Peer):
    """`torch.nn.LSTM` on the padded batch: it knows no mask, and reads back from the padding.

    One dropout mask a layer, for both directions; the attention has a mask.
    """

    def __init__(self, params: Params, setting: Setting):
        config = setting.config
        self._torch = torch = importlib.import_module("torch")
        if setting.devices is not None:
            torch.set_num_threads(setting.devices)
        if setting.on_gpu and not torch.cuda.is_available():
            raise Unmeasured("this torch sees no GPU")
        self._device = torch.device("cuda" if setting.on_gpu else "cpu")
        self._rounded = config.products == "bfloat16"
        nn, run_layer = torch.nn, self.run_layer

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(VOCABULARY, config.embedding_size)
                sizes = (config.embedding_size, config.states_size)
                self.layers = nn.ModuleList(
                    nn.LSTM(size, config.hidden_size, batch_first=True, bidirectional=True)
                    for size in sizes
                )
                self.of_states = nn.Linear(config.states_size, config.attention_size)
                self.of_query = nn.Linear(config.states_size, config.attention_size, bias=False)
                self.vector = nn.Linear(config.attention_size, 1, bias=False)
                self.dense = nn.Linear(config.states_size, config.dense_size)
                self.noise = nn.Dropout(config.input_dropout)
                self.head_noise = nn.Dropout(config.head_dropout)
                self.logit = nn.Linear(config.dense_size, 1)

            def forward(self, tokens: Any, lengths: Any) -> Any:
                x, query = self.embedding(tokens), None
                for lstm in self.layers:
                    x, query = run_layer(lstm, x * self.noise(torch.ones_like(x[:, :1])), lengths)
                units = torch.tanh(self.of_states(x) + self.of_query(query)[:, None])
                mask = torch.arange(x.shape[1], device=x.device)[None] < lengths[:, None]
                scores = self.vector(units)[..., 0].float().masked_fill(~mask, -1e9)
                context = (torch.softmax(scores, dim=1)[..., None] * x).sum(dim=1)
                return self.logit(self.head_noise(torch.relu(self.dense(context))))[:, 0].float()

        self._model: Any = Module().to(self._device)
        self.fill(params)
        self._optimizer = torch.optim.Adam(self._model.parameters())

    def run_layer(self, lstm: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Returns a layer's states `[b t d]` and the last ones `[b d]`."""
        del lengths
        states, (last, _) = lstm(x)
        return states, self._torch.cat([last[0], last[1]], dim=-1)

    def fill(self, params: Params) -> None:
        """Copies them into the module's, whose matrices are transposed."""
        attention = params["attention"]
        values = {
            "embedding.weight": params["embedding"],
            "of_states.weight": attention["states_kernel"].T,
            "of_states.bias": attention["bias"],
            "of_query.weight": attention["query_kernel"].T,
            "vector.weight": attention["vector"].T,
        }
        for name in ("dense", "logit"):
            values[f"{name}.weight"] = params[name]["kernel"].T
            values[f"{name}.bias"] = params[name]["bias"]
        for depth, layer in enumerate(params["encoder"]["layers"].values()):
            for way, ending in (("forward", "l0"), ("backward", "l0_reverse")):
                of, lstm = layer[way], f"layers.{depth}"
                values[f"{lstm}.weight_ih_{ending}"] = of["input_kernel"].T
                values[f"{lstm}.weight_hh_{ending}"] = of["recurrent_kernel"].T
                values[f"{lstm}.bias_ih_{ending}"] = of["bias"]
                values[f"{lstm}.bias_hh_{ending}"] = np.zeros_like(of["bias"])
        tensors = {name: self._torch.tensor(np.array(value)) for name, value in values.items()}
        self._model.load_state_dict(tensors)

    def _compute(self, batch: Batch) -> Any:
        tokens, lengths = (
            self._torch.from_numpy(np.array(part, np.int64)).to(self._device)
            for part in (batch.tokens, batch.length)
        )
        kind, bfloat16 = self._device.type, self._torch.bfloat16
        with self._torch.autocast(kind, dtype=bfloat16, enabled=self._rounded):
            return self._model(tokens, lengths)

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits."""
        self._model.eval()
        with self._torch.inference_mode():
            return self._compute(batch).cpu().numpy()

    def train(self, batch: Batch) -> None:
        """Takes a step."""
        self._model.train()
        self._optimizer.zero_grad()
        labels = self._torch.tensor(np.asarray(batch.label, np.float32), device=self._device)
        loss = self._torch.nn.functional.binary_cross_entropy_with_logits
        loss(self._compute(batch), labels).backward()
        self._optimizer.step()
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()


class TorchPacked(TorchPadded):
    """The same on packed sequences, as its documentation says to: it knows the lengths."""

    def run_layer(self, lstm: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Returns a layer's states `[b t d]` and the last ones `[b d]`."""
        packing = self._torch.nn.utils.rnn
        packed = packing.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, query = super().run_layer(lstm, packed, lengths)
        states, _ = packing.pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
        return states, query


class TorchFlipped(TorchPadded):
    """The same, each direction by itself, the backward one on rows turned within their length.

    It knows the lengths without packing, so that cuDNN may take its fastest way.
    """

    def run_layer(self, lstm: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
        """Returns a layer's states `[b t d]` and the last ones `[b d]`."""
        torch = self._torch
        steps = torch.arange(x.shape[1], device=x.device)[None]
        own = steps < lengths[:, None]
        turn = torch.where(own, lengths[:, None] - 1 - steps, steps)[..., None]
        ends = (lengths - 1).clamp(min=0)[:, None, None]
        zero = x.new_zeros(1, x.shape[0], lstm.hidden_size)
        walks, last = [], []
        for ending in ("l0", "l0_reverse"):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = [getattr(lstm, f"{name}_{ending}") for name in names]
            read = x if ending == "l0" else x.gather(1, turn.expand_as(x))
            # Has biases, 1 layer, no dropout, trains or not, not both ways, batch first.
            options = (True, 1, 0.0, self._model.training, False, True)
            states, *_ = torch.lstm(read, (zero, zero), weights, *options)
            last.append(states.gather(1, ends.expand(-1, 1, states.shape[2]))[:, 0])
            back = states if ending == "l0" else states.gather(1, turn.expand_as(states))
            walks.append(back * own[..., None])
        return torch.cat(walks, dim=-1), torch.cat(last, dim=-1)


PEERS: dict[str, type[Peer]] = {
    "ours, native": Native,
    "ours, pallas": Pallas,
    "ours, scan": Scan,
    "ours, plain": Plain,
    "flax nnx.RNN": Flax,
    "keras on jax": KerasOnJax,
    "keras on tensorflow": KerasOnTensorFlow,
    "torch padded": TorchPadded,
    "torch flipped": TorchFlipped,
    "torch packed": TorchPacked,
}

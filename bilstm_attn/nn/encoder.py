"""Encoders: word vectors to states. A new encoder is one class and one line in `ENCODERS`."""

import abc

import jax.numpy as jnp
from flax import nnx

from bilstm_attn.config import Backend, ModelConfig
from bilstm_attn.nn.cells import CELLS, Cell, glorot_uniform
from bilstm_attn.nn.dropout import dropout_mask, stream_keys
from bilstm_attn.nn.recurrence import (
    LoopOptions,
    Noise,
    Reencoder,
    gather,
    length_mask,
    make_bidirectional_reencoder,
    run_bidirectional,
)
from bilstm_attn.registry import make
from bilstm_attn.types import Inputs, Keys, Lengths, Positions, Query, States


class Bidirectional(nnx.Module):
    """One layer: `states[t] = [forward[t], backward[t]]`, and the last states of both scans.

    Schuster and Paliwal, 1997. Each direction has its own parameters and dropout mask.
    """

    def __init__(
        self,
        inputs_size: int,
        config: ModelConfig,
        backend: Backend,
        *,
        name: str,
        rngs: nnx.Rngs,
    ):
        self.backend: Backend = backend
        self.name = name  # prefix of the names of the layer's random streams
        self.inputs_size = inputs_size
        self.input_dropout = config.input_dropout
        self.options = LoopOptions(config.matmul_precision, config.remat)

        def cell() -> Cell:
            return make(
                "cell",
                CELLS,
                config.cell,
                config.cell_options,
                inputs_size=inputs_size,
                hidden_size=config.hidden_size,
                rngs=rngs,
            )

        self.forward = cell()
        self.backward = cell()

    def __call__(self, inputs: Inputs, lengths: Lengths, keys: Keys | None) -> tuple[States, Query]:
        """Returns all states `[t b d]`, zero at padding, and the last states `[b d]`."""
        return run_bidirectional(
            self.forward,
            self.backward,
            inputs,
            lengths,
            noises=(
                self._noise("forward", self.forward, keys, len(inputs)),
                self._noise("backward", self.backward, keys, len(inputs)),
            ),
            backend=self.backend,
            options=self.options,
        )

    def _noise(self, direction: str, cell: Cell, keys: Keys | None, steps: int) -> Noise:
        """Returns the noise of one direction, or no noise without keys."""
        if keys is None:
            return Noise()
        name, mask = f"{self.name}.{direction}", None
        if self.input_dropout > 0:
            mask = dropout_mask(keys, name, self.input_dropout, self.inputs_size)
        return Noise(mask, cell.noise(stream_keys(keys, f"{name}.cell"), steps))

    def make_reencoder(self, inputs: Inputs) -> Reencoder:
        """Returns `f(positions, lengths)`, which encodes the selected tokens without dropout."""
        return make_bidirectional_reencoder(
            self.forward,
            self.backward,
            inputs,
            backend=self.backend,
            options=self.options,
        )


class Encoder(nnx.Module):
    """Encodes word vectors as states. The constructor takes `config`, `backend` and `rngs`."""

    @abc.abstractmethod
    def __call__(self, inputs: Inputs, lengths: Lengths, keys: Keys | None) -> tuple[States, Query]:
        """Returns all states `[t b d]`, zero at padding, and the attention's query `[b d]`.

        Args:
          inputs: word vectors, `[t b e]`.
          lengths: `[b]`, in tokens.
          keys: one per example, for dropout; None for no dropout.
        """

    def make_reencoder(self, inputs: Inputs) -> Reencoder:
        """Returns `f(positions, lengths)`, which encodes the selected tokens without dropout.

        Subclasses may precompute per-token work here, outside `f`.
        """
        return lambda positions, lengths: self(gather(inputs, positions), lengths, None)


class Recurrent(Encoder):
    """A stack of bidirectional layers; the inputs of each layer are the states of the one below."""

    def __init__(self, config: ModelConfig, backend: Backend, *, rngs: nnx.Rngs):
        sizes = [config.embedding_size] + [config.states_size] * (config.layers - 1)
        self.layers = nnx.List(
            [
                Bidirectional(size, config, backend, name=f"layer{depth}", rngs=rngs)
                for depth, size in enumerate(sizes)
            ]
        )

    def __call__(self, inputs: Inputs, lengths: Lengths, keys: Keys | None) -> tuple[States, Query]:
        """Returns all states `[t b d]` and the last states `[b d]` of the top layer."""
        for layer in self.layers[:-1]:
            inputs, _ = layer(inputs, lengths, keys)
        return self.layers[-1](inputs, lengths, keys)

    def make_reencoder(self, inputs: Inputs) -> Reencoder:
        """Returns `f(positions, lengths)`; the lowest layer may precompute per token."""
        lowest, *others = self.layers
        reencode_lowest = lowest.make_reencoder(inputs)

        def reencode(positions: Positions, lengths: Lengths) -> tuple[States, Query]:
            states, last = reencode_lowest(positions, lengths)
            for layer in others:
                states, last = layer(states, lengths, None)
            return states, last

        return reencode


class TokenWise(Encoder):
    """`states[t] = tanh(inputs[t] W + b)`: each token separately, no recurrence, no dropout.

    Wiegreffe and Pinter, 2019, arXiv:1908.04626, section 3.4: a perceptron guided by the attention
    of another model. The query is the mean state.
    """

    def __init__(self, config: ModelConfig, backend: Backend, *, rngs: nnx.Rngs):
        del backend
        shape = (config.embedding_size, config.states_size)
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(config.states_size))

    def __call__(self, inputs: Inputs, lengths: Lengths, keys: Keys | None) -> tuple[States, Query]:
        """Returns the states `[t b d]`, zero at padding, and their mean `[b d]`."""
        del keys
        states = jnp.tanh(inputs @ self.kernel[...] + self.bias[...][None, None])
        states = jnp.where(length_mask(lengths, len(inputs))[..., None], states, 0)
        return states, states.sum(axis=0) / jnp.maximum(lengths, 1)[:, None]


ENCODERS: dict[str, type[Encoder]] = {"recurrent": Recurrent, "token_wise": TokenWise}

"""Both directions, stacked."""

import jax.numpy as jnp
from flax import nnx

from bilstm_attn.cells import CELLS, Cell
from bilstm_attn.config import ModelConfig
from bilstm_attn.dropout import dropout_mask
from bilstm_attn.recurrence import Backend, recur
from bilstm_attn.registry import make
from bilstm_attn.types import Inputs, Keys, Lengths, Query, States


class Bidirectional(nnx.Module):
    """One layer: `states[t] = [forward[t], backward[t]]`, `last` the ends of both walks.

    Schuster and Paliwal, 1997. Each direction has parameters and a dropout mask of its own.
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
        self.name = name  # of its streams of random numbers
        self.inputs_size = inputs_size
        self.input_dropout = config.input_dropout

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
        """Returns every state `[t b d]`, zero at padding, and the last ones `[b d]`."""
        noise = {"forward": None, "backward": None}
        if keys is not None and self.input_dropout > 0:
            noise = {
                way: dropout_mask(keys, f"{self.name}.{way}", self.input_dropout, self.inputs_size)
                for way in noise
            }
        forward, first = recur(
            self.forward, inputs, lengths, noise=noise["forward"], backend=self.backend
        )
        backward, second = recur(
            self.backward,
            inputs,
            lengths,
            reverse=True,
            noise=noise["backward"],
            backend=self.backend,
        )
        return (
            jnp.concatenate([forward, backward], axis=-1),
            jnp.concatenate([first, second], axis=-1),
        )


class Encoder(nnx.Module):
    """A stack of bidirectional layers; each reads the states of the one below."""

    def __init__(self, config: ModelConfig, backend: Backend, *, rngs: nnx.Rngs):
        sizes = [config.embedding_size] + [config.states_size] * (config.layers - 1)
        self.layers = nnx.List(
            [
                Bidirectional(size, config, backend, name=f"layer{depth}", rngs=rngs)
                for depth, size in enumerate(sizes)
            ]
        )

    def __call__(self, inputs: Inputs, lengths: Lengths, keys: Keys | None) -> tuple[States, Query]:
        """Returns the top layer's states `[t b d]` and its last ones `[b d]`."""
        for layer in self.layers[:-1]:
            inputs, _ = layer(inputs, lengths, keys)
        return self.layers[-1](inputs, lengths, keys)

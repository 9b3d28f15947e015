"""Words' vectors to states: both directions, stacked; or each word alone.

A new encoder is one class and one line in `ENCODERS`.
"""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bilstm_attn.config import Backend, ModelConfig
from bilstm_attn.errors import UserError
from bilstm_attn.nn import cells, recurrence
from bilstm_attn.nn.cells import CELLS, LSTM, Cell
from bilstm_attn.nn.dropout import dropout_mask
from bilstm_attn.nn.kernels import native
from bilstm_attn.nn.recurrence import (
    Precision,
    Reencoder,
    gather,
    length_mask,
    make_bidirectional_reencoder,
    run_bidirectional,
)
from bilstm_attn.registry import look_up, make
from bilstm_attn.types import Inputs, Keys, Lengths, Params, Positions, Query, States

KERNELS = (LSTM,)  # what `native` and `pallas` run: these classes, not what derives from them

MADE_FOR = {"native": ("cpu",), "pallas": ("gpu", "tpu")}  # the others run on every device


def refusal(backend: Backend, config: ModelConfig) -> str | None:
    """Returns why `backend` cannot run this model, or None."""
    if backend in ("scan", "plain"):
        return None
    if look_up("cell", CELLS, config.cell) not in KERNELS:
        return f"it runs no cell {config.cell!r}"
    if config.remat:
        return "it keeps its gates"
    if backend == "native":
        return (
            None
            if config.matmul_precision == "float32"
            else f"it has no products in {config.matmul_precision}"
        )
    from bilstm_attn.nn.kernels import pallas  # here: it is slow to import, and rarely used

    most = pallas.most_hidden(pallas.here(config.matmul_precision))
    if most == 0:
        return f"it has no products in {config.matmul_precision}"
    if config.hidden_size > most:
        return f"it holds at most {most} hidden units with products in {config.matmul_precision}"
    return None


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
        self.precision = Precision(config.matmul_precision, config.remat)
        if reason := refusal(backend, config):
            raise UserError(f"backend {backend} cannot run this model: {reason}; use backend scan")

    def __call__(self, inputs: Inputs, lengths: Lengths, keys: Keys | None) -> tuple[States, Query]:
        """Returns every state `[t b d]`, zero at padding, and the last ones `[b d]`."""
        noises = None
        if keys is not None and self.input_dropout > 0:
            forward, backward = (
                dropout_mask(keys, f"{self.name}.{way}", self.input_dropout, self.inputs_size)
                for way in ("forward", "backward")
            )
            noises = forward, backward
        return run_bidirectional(
            self.forward,
            self.backward,
            inputs,
            lengths,
            noises=noises,
            backend=self.backend,
            precision=self.precision,
        )

    def make_reencoder(self, inputs: Inputs) -> Reencoder:
        """Returns the layer, without dropout, of the same tokens in other positions."""
        return make_bidirectional_reencoder(
            self.forward,
            self.backward,
            inputs,
            backend=self.backend,
            precision=self.precision,
        )


class Encoder(nnx.Module):
    """Words' vectors to states. The constructor takes `config`, `backend` and `rngs`."""

    @abc.abstractmethod
    def __call__(self, inputs: Inputs, lengths: Lengths, keys: Keys | None) -> tuple[States, Query]:
        """Returns every state `[t b d]`, zero at padding, and what attention asks with `[b d]`.

        `keys`, one a review, turn dropout on.
        """

    def make_reencoder(self, inputs: Inputs) -> Reencoder:
        """Returns the function that does this, without dropout, with the tokens in other positions.

        What depends on a token alone may be computed once, for many such.
        """
        return lambda positions, lengths: self(gather(inputs, positions), lengths, None)


class Recurrent(Encoder):
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

    def make_reencoder(self, inputs: Inputs) -> Reencoder:
        """Returns the function that reads the same tokens in other positions."""
        lowest, *others = self.layers
        read = lowest.make_reencoder(inputs)

        def through(positions: Positions, lengths: Lengths) -> tuple[States, Query]:
            states, last = read(positions, lengths)
            for layer in others:
                states, last = layer(states, lengths, None)
            return states, last

        return through


class TokenWise(Encoder):
    """`states[t] = tanh(inputs[t] W + b)`: every token alone, without recurrence or dropout.

    Wiegreffe and Pinter, 2019, arXiv:1908.04626, section 3.4: the perceptron that is guided by
    another model's attention.
    """

    def __init__(self, config: ModelConfig, backend: Backend, *, rngs: nnx.Rngs):
        del backend
        shape = (config.embedding_size, config.states_size)
        self.kernel = nnx.Param(cells.glorot_uniform(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(config.states_size))

    def __call__(self, inputs: Inputs, lengths: Lengths, keys: Keys | None) -> tuple[States, Query]:
        """Returns the states `[t b d]`, zero at padding, and each review's mean one `[b d]`."""
        del keys
        states = jnp.tanh(inputs @ self.kernel[...] + self.bias[...][None, None])
        states = jnp.where(length_mask(lengths, len(inputs))[..., None], states, 0)
        return states, states.sum(axis=0) / jnp.maximum(lengths, 1)[:, None]


ENCODERS: dict[str, type[Encoder]] = {"recurrent": Recurrent, "token_wise": TokenWise}


def prepare_native(notify: Callable[[str], None] = lambda line: None) -> None:
    """Makes the backend `native` ready: builds it if need be, and tests it once against the scan.

    `say` is told of the building.

    Raises:
      UnavailableError: it cannot be built, or is wrong; says why.
    """
    files = [Path(module.__file__ or "") for module in (cells, recurrence)]
    native.prepare(_native_agrees, [*files, Path(__file__)], notify)


def _native_agrees() -> bool:
    """Returns whether a layer of odd sizes has the same values, read or reread, and gradients.

    Of two tiles, the second of few rows, and of more tokens than are summed up at once.
    """
    steps, rows, inputs_size = 13, 35, 7
    config = ModelConfig(hidden_size=19)
    keys = jax.random.split(jax.random.key(0), rows)
    inputs = jax.random.normal(jax.random.key(1), (steps, rows, inputs_size))
    lengths = jnp.arange(rows) % (steps + 1)
    positions = (5 * jnp.arange(steps)[:, None] + jnp.arange(rows)[None]) % steps

    def run(backend: Backend) -> list[np.ndarray]:
        layer = Bidirectional(inputs_size, config, backend, name="test", rngs=nnx.Rngs(0))
        graph, params = nnx.split(layer)

        def loss(params: Params, inputs: Inputs) -> tuple[Any, Any]:
            states, last = nnx.merge(graph, params)(inputs, lengths, keys)
            return jnp.sin(states).sum() + jnp.cos(last).sum(), (states, last)

        def reencode(params: Params, inputs: Inputs) -> tuple[States, Query]:
            return nnx.merge(graph, params).make_reencoder(inputs)(positions, lengths)

        found = (
            jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, inputs),
            jax.jit(reencode)(params, inputs),
        )
        return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]

    # float32 rounding: the kernels' gradients are sums of some hundred terms of size 1.
    pairs = zip(run("native"), run("scan"), strict=True)
    return all(np.allclose(one, other, atol=2e-5, rtol=1e-4) for one, other in pairs)

"""Ours, by each backend."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from bilstm_attn.benchmark.peer import VOCABULARY, Peer, Setting, Unmeasured
from bilstm_attn.config import Backend, ModelConfig, OptimConfig
from bilstm_attn.inference.evaluate import make_logits_step
from bilstm_attn.nn.backend import DEVICES, prepare_native, refusal
from bilstm_attn.nn.encoder import Recurrent
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.devices import AXIS, REPLICATED, SHARDED, make_mesh, replicate, shard_rows
from bilstm_attn.training.objectives import CrossEntropy
from bilstm_attn.training.optim import make_optimizer
from bilstm_attn.training.step import TrainState, make_train_step
from bilstm_attn.types import Batch, Params


class Ours(Peer):
    """This package, over as many CPU devices as share the batch in training."""

    backend: ClassVar[Backend]
    rows_at_once: ClassVar[int] = 1024  # of a device; more make microbatches

    def __init__(self, params: Params, setting: Setting):
        self._mesh = make_mesh(setting.rows, setting.devices)
        self._alone = make_mesh(1, 1)
        made_for = DEVICES.get(self.backend)
        if made_for and jax.default_backend() not in made_for:
            raise Unmeasured(f"it is for {' or '.join(made_for)}")
        if reason := refusal(self.backend, setting.config):
            raise Unmeasured(reason)
        if self.backend == "native":
            prepare_native()
        model = Model(setting.config, VOCABULARY, self.backend)
        optimizer = make_optimizer(OptimConfig(), steps=100)
        self._step = functools.cache(
            functools.partial(make_train_step, model, CrossEntropy(), optimizer, self._mesh)
        )
        self._logits = {mesh: make_logits_step(model, mesh) for mesh in (self._mesh, self._alone)}
        state = TrainState(
            jnp.int32(0), params, optimizer.init(params), CrossEntropy().zero_terms()
        )
        self._state = replicate(jax.tree.map(jnp.array, state), self._mesh)
        self._layers = self._make_layers(setting.config)
        self.fill(params)

    def fill(self, params: Params) -> None:
        """Positions them on the devices."""
        self._params = {mesh: replicate(params, mesh) for mesh in (self._mesh, self._alone)}

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits."""
        mesh = self._alone if len(batch.length) == 1 else self._mesh
        return np.asarray(self._logits[mesh](self._params[mesh], shard_rows(batch, mesh)))

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
        placed = shard_rows(groups, self._mesh)
        rows_of_device = min(len(group.length) for group in groups) // self._mesh.size
        most = max(1, rows_of_device // self.rows_at_once)
        step = self._step(max(n for n in range(1, most + 1) if rows_of_device % n == 0))
        self._state, _ = step(self._state, placed, jax.random.key(0))

    def layers(self, batch: Batch) -> None:
        """Differentiates a sum over the states, in the layers' parameters and inputs."""
        keys = jax.random.split(jax.random.key(0), len(batch.length))
        given = shard_rows((batch, keys), self._mesh)
        jax.block_until_ready(self._layers(self._params[self._mesh], *given))

    def _make_layers(self, config: ModelConfig) -> Any:
        graph, _ = nnx.split(Recurrent(config, self.backend, rngs=nnx.Rngs(0)))

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
                in_specs=(REPLICATED, SHARDED, SHARDED),
                out_specs=(REPLICATED, PartitionSpec(None, AXIS)),
                check_vma=False,
            )
        )


class Native(Ours):
    """The compiled kernel, on as many rows at once as a tile of it has."""

    backend = "native"
    rows_at_once = 32


class Scan(Ours):
    """The scan with a derivative of its own."""

    backend = "scan"


class Pallas(Ours):
    """The kernel for GPUs and TPUs."""

    backend = "pallas"


class Plain(Ours):
    """The scan with JAX's derivative."""

    backend = "plain"

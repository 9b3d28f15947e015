"""This package's model and training step, one implementation per backend."""

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
    """This package on the devices that it would train on: every accelerator, or CPU devices."""

    backend: ClassVar[Backend]
    microbatch_rows: ClassVar[int] = 1024  # per device; more rows are cut into microbatches

    def __init__(self, params: Params, setting: Setting):
        self._mesh = make_mesh(setting.rows, setting.devices)
        self._single_mesh = make_mesh(1, 1)
        devices = DEVICES.get(self.backend)
        if devices and jax.default_backend() not in devices:
            raise Unmeasured(f"it runs on {' or '.join(devices)} only")
        if reason := refusal(self.backend, setting.config):
            raise Unmeasured(reason)
        if self.backend == "native":
            prepare_native()
        model = Model(setting.config, VOCABULARY, self.backend)
        optimizer = make_optimizer(OptimConfig(), steps=100)
        self._step_for = functools.cache(
            functools.partial(make_train_step, model, CrossEntropy(), optimizer, self._mesh)
        )
        meshes = (self._mesh, self._single_mesh)
        self._logits = {mesh: make_logits_step(model, mesh) for mesh in meshes}
        state = TrainState(
            jnp.int32(0), params, optimizer.init(params), CrossEntropy().zero_terms()
        )
        self._state = replicate(jax.tree.map(jnp.array, state), self._mesh)
        self._encoder_gradient = self._make_encoder_gradient(setting.config)
        self.set_params(params)

    def set_params(self, params: Params) -> None:
        """Copies the parameters to the devices."""
        self._params = {mesh: replicate(params, mesh) for mesh in (self._mesh, self._single_mesh)}

    def logits(self, batch: Batch) -> np.ndarray:
        """Returns the logits `[b]`; a single text runs on one device."""
        mesh = self._single_mesh if len(batch.length) == 1 else self._mesh
        return np.asarray(self._logits[mesh](self._params[mesh], shard_rows(batch, mesh)))

    def train_step(self, batch: Batch) -> None:
        """Takes one step."""
        self._dispatch_step((batch,))
        jax.block_until_ready(self._state)

    def train_epoch(self, batches: Sequence[tuple[Batch, ...]]) -> None:
        """Takes one step per batch, in length groups, and blocks once, as in scripts/train.py."""
        for groups in batches:
            self._dispatch_step(groups)
        jax.block_until_ready(self._state)

    def _dispatch_step(self, groups: tuple[Batch, ...]) -> None:
        rows_per_device = min(len(group.length) for group in groups) // self._mesh.size
        limit = max(1, rows_per_device // self.microbatch_rows)
        microbatches = max(n for n in range(1, limit + 1) if rows_per_device % n == 0)
        step = self._step_for(microbatches)
        self._state, _ = step(self._state, shard_rows(groups, self._mesh), jax.random.key(0))

    def encoder_gradient(self, batch: Batch) -> None:
        """Computes the gradient of the sum of all states in the layers' parameters and inputs."""
        keys = jax.random.split(jax.random.key(0), len(batch.length))
        inputs = shard_rows((batch, keys), self._mesh)
        jax.block_until_ready(self._encoder_gradient(self._params[self._mesh], *inputs))

    def _make_encoder_gradient(self, config: ModelConfig) -> Any:
        graph, _ = nnx.split(Recurrent(config, self.backend, rngs=nnx.Rngs(0)))

        def gradient(params: Params, batch: Batch, keys: Any) -> Any:
            def sum_of_states(encoder: Params, inputs: Any) -> Any:
                states, last = nnx.merge(graph, encoder)(inputs, batch.length, keys)
                return states.sum() + last.sum()

            inputs = params["embedding"][batch.tokens.T]
            d_params, d_inputs = jax.grad(sum_of_states, (0, 1))(params["encoder"], inputs)
            return lax.psum(d_params, AXIS), d_inputs

        return jax.jit(
            jax.shard_map(
                gradient,
                mesh=self._mesh,
                in_specs=(REPLICATED, SHARDED, SHARDED),
                out_specs=(REPLICATED, PartitionSpec(None, AXIS)),
                check_vma=False,
            )
        )


class Native(Ours):
    """The C++ kernel, in microbatches of as many rows as one of its tiles."""

    backend = "native"
    microbatch_rows = 32


class Scan(Ours):
    """`lax.scan` with a hand-written backward pass."""

    backend = "scan"


class Pallas(Ours):
    """The Pallas kernel for GPUs and TPUs."""

    backend = "pallas"


class Plain(Ours):
    """`lax.scan` with JAX's automatic differentiation."""

    backend = "plain"

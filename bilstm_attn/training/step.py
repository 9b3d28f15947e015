"""Train state and the pure step: of one seed, or of several in one program."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from bilstm_attn.data.word_vectors import WordVectors
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.devices import AXIS, REPLICATED, rows_spec
from bilstm_attn.runtime.prng import stream
from bilstm_attn.training.objectives import Objective
from bilstm_attn.types import Batch, Keys, Params, Sums


class TrainState(NamedTuple):
    """All that the next step depends on, beside the config. Of several seeds, `[s]` in front."""

    step: Int[Array, "*s"]
    params: Params
    optimizer: Any
    sums: Sums  # over the epoch so far


Groups = tuple[Batch, ...]  # one batch: reviews of similar length, padded alike, are a group
GroupsKeys = tuple[Key[Array, "*s b"], ...]  # one a review, group by group
TrainStep = Callable[[TrainState, Groups, Key[Array, "*s"]], tuple[TrainState, Sums]]


def zero_sums() -> Sums:
    """Returns the sums over no review."""
    return Sums(*(jnp.zeros((), jnp.float32) for _ in Sums._fields))


def initial_params(model: Model, seed: int, vectors: WordVectors | None = None) -> Params:
    """Returns the parameters before the first step; `vectors` are their words' own then."""
    params = jax.jit(model.init)(stream(jax.random.key(seed), "params"))
    if vectors is not None:
        params = params | {"embedding": params["embedding"].at[vectors.ids].set(vectors.vectors)}
    return params


def initial_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    seed: int,
    vectors: WordVectors | None = None,
) -> TrainState:
    """Returns the state before the first step."""
    params = initial_params(model, seed, vectors)
    start = jnp.zeros((), jnp.int32)
    return TrainState(start, params, jax.jit(optimizer.init)(params), zero_sums())


def stack(trees: Sequence[Any]) -> Any:
    """Returns the seeds' trees as one: the only one's as it is, or `[s]` in front of each leaf."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def unstack(tree: Any, seeds: int) -> list[Any]:
    """Returns what `stack` was given."""
    if seeds == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, seed=seed: leaf[seed], tree) for seed in range(seeds)]


def make_gradient(
    model: Model,
    objective: Objective,
    *,
    on_cpu: bool,
    microbatches: int = 1,
    seeds: int = 1,
) -> Callable[[Params, Groups, GroupsKeys], tuple[Params, Sums]]:
    """Returns what every device does with its rows: the gradient's sum over all devices, and sums.

    It runs under `jax.shard_map`, or `jax.pmap`, with the axis `sharding.AXIS`. The groups take
    turns, each in `microbatches` parts, so that memory is that of the largest part; devices meet
    once, after the last.
    """

    def loss(params: Params, group: Batch, keys: Keys) -> tuple[Array, Sums]:
        sums = objective(model, params, group, keys)
        return sums.loss, sums

    gradient = _of_each(jax.grad(loss, has_aux=True), seeds)

    def add(total: Any, params: Params, group: Batch, keys: Any) -> tuple[Params, Sums]:
        return jax.tree.map(jnp.add, total, gradient(params, group, keys))

    def of_rows(params: Params, groups: Groups, keys: GroupsKeys) -> tuple[Params, Sums]:
        zeros = jax.tree.map(lambda zero: jnp.zeros(_axes(seeds), zero.dtype), zero_sums())
        total = (jax.tree.map(jnp.zeros_like, params), zeros)
        pairs = zip(groups, keys, strict=True)
        parts = [part for pair in pairs for part in _cut(pair, microbatches, len(_axes(seeds)))]
        for group, keys_of_group in reversed(parts):
            given = (total, params, group, keys_of_group)
            if on_cpu:  # where only a condition keeps the groups' temporaries apart
                any_review = (group.weight != 0).any()
                total = lax.cond(any_review, add, lambda total, *_: total, *given)
            else:  # where a condition would make the host wait
                total, params = lax.optimization_barrier((add(*given), params))
        return lax.psum(total, AXIS)

    return of_rows


def _axes(seeds: int) -> tuple[int, ...]:
    """Returns the shape in front of every leaf: none for a single seed, whose bits stay its own."""
    return () if seeds == 1 else (seeds,)


def _of_each(call: Callable[..., Any], seeds: int) -> Callable[..., Any]:
    """Returns `call` over the leading axis of all it takes and gives, if there is one."""
    return call if seeds == 1 else jax.vmap(call)


def _cut(rows: Any, parts: int, axis: int) -> list[Any]:
    """Returns a tree's rows, which are its leaves' axis `axis`, in equal parts, in order."""
    leaves, structure = jax.tree.flatten(rows)
    pieces = [jnp.split(leaf, parts, axis) for leaf in leaves]
    return [jax.tree.unflatten(structure, part) for part in zip(*pieces, strict=True)]


def make_train_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    microbatches: int = 1,
    seeds: int = 1,
) -> TrainStep:
    """Returns the compiled step: state, a batch's groups and the run's key to state and sums.

    The gradient is divided by the weight of the whole batch. The state is donated. Of several
    seeds, each has its own of all these, `[s]` in front of each leaf.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    rows = rows_spec(seeds)
    # check_vma=False: gradients inside are of the device's own rows, and psum adds them, no more.
    over_mesh = jax.shard_map(
        make_gradient(model, objective, on_cpu=on_cpu, microbatches=microbatches, seeds=seeds),
        mesh=mesh,
        in_specs=(REPLICATED, rows, rows),
        out_specs=REPLICATED,
        check_vma=False,
    )

    def draw(key: Key[Array, ""], step: Int[Array, ""], groups: Groups) -> GroupsKeys:
        sizes = [group.length.shape[0] for group in groups]
        keys = jax.random.split(jax.random.fold_in(key, step), sum(sizes))
        return tuple(jnp.split(keys, np.cumsum(sizes)[:-1]))

    def move(state: TrainState, gradients: Params, sums: Sums) -> tuple[TrainState, Sums]:
        # A gradient that is not finite shows in the loss, so that one check on the host finds both.
        finite = jnp.isfinite(optax.tree.norm(gradients))
        sums = sums._replace(loss=jnp.where(finite, sums.loss, jnp.nan))
        mean = jax.tree.map(lambda g: g / jnp.maximum(sums.weight, 1), gradients)
        updates, optimizer_state = optimizer.update(mean, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, optimizer_state, state.sums.add(sums)), sums

    def step(state: TrainState, groups: Groups, key: Key[Array, "*s"]) -> tuple[TrainState, Sums]:
        keys = _of_each(draw, seeds)(key, state.step, groups)
        gradients, sums = over_mesh(state.params, groups, keys)
        return _of_each(move, seeds)(state, gradients, sums)

    return jax.jit(step, donate_argnums=0)

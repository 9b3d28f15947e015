"""The train state and the pure training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from bilstm_attn.errors import UserError
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.devices import AXIS, REPLICATED, SHARDED
from bilstm_attn.training.initial import InitialValues, initial_params
from bilstm_attn.training.objectives import Objective, Term, Terms, add_terms
from bilstm_attn.types import Batch, Keys, Params


class TrainState(NamedTuple):
    """Everything that the next step depends on, besides the config."""

    step: Int[Array, ""]
    params: Params
    optimizer: Any
    terms: Terms  # summed over the epoch so far


Groups = tuple[Batch, ...]  # one batch: a group is examples of similar length, padded alike
GroupsKeys = tuple[Keys, ...]  # one key per example, group by group
TrainStep = Callable[[TrainState, Groups, Key[Array, ""]], tuple[TrainState, Terms]]
Scales = dict[str, Array]  # factors of the terms' sums, by name; empty for a plain mean


def initial_state(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    values: InitialValues | None = None,
) -> TrainState:
    """Returns the state before the first step."""
    params = initial_params(model, seed, values)
    start = jnp.zeros((), jnp.int32)
    return TrainState(start, params, jax.jit(optimizer.init)(params), objective.zero_terms())


def make_gradient(
    model: Model, objective: Objective, *, on_cpu: bool, microbatches: int = 1
) -> Callable[[Params, Groups, GroupsKeys], tuple[Params, Terms]]:
    """Returns the per-device gradient function; gradient and terms are summed over all devices.

    It runs under `jax.shard_map`, or `jax.pmap`, with the axis `devices.AXIS`. It loops over groups
    and microbatches, so that peak memory is that of the largest part, then does one all-reduce. The
    gradient still has to be divided by the count of the first minimised term.
    """
    reference, *others = _require_terms(objective)

    def terms_of(params: Params, group: Batch, keys: Keys) -> Terms:
        terms = objective(model, params, group, keys)
        if set(terms) != set(objective.coefficients):
            raise UserError(
                f"objective {type(objective).__name__} must return a term for each of its "
                f"coefficients {sorted(objective.coefficients)}, but returned {sorted(terms)}"
            )
        return terms

    def loss(params: Params, group: Batch, keys: Keys, scales: Scales) -> tuple[Array, Terms]:
        terms = terms_of(params, group, keys)
        if not scales:
            return terms[reference].sum, terms
        return sum((scales[name] * terms[name].sum for name in scales), jnp.zeros(())), terms

    def scales_of(counts: dict[str, Array]) -> Scales:
        """Returns the factors that turn sums into the loss times the count of the reference."""

        def ratio(name: str) -> Array:
            return jnp.maximum(counts[reference], 1) / jnp.maximum(counts[name], 1)

        return {name: objective.coefficients[name] * ratio(name) for name in [reference, *others]}

    gradient = jax.grad(loss, has_aux=True)

    def add(total: Any, params: Params, group: Batch, keys: Keys, scales: Scales) -> Any:
        return jax.tree.map(jnp.add, total, gradient(params, group, keys, scales))

    def device_gradient(params: Params, groups: Groups, keys: GroupsKeys) -> tuple[Params, Terms]:
        pairs = zip(groups, keys, strict=True)
        parts = [part for pair in pairs for part in _split_rows(pair, microbatches)]
        scales: Scales = {}
        if others or objective.coefficients[reference] != 1:
            # The compiler drops the forward pass, since counts do not depend on it.
            terms = [terms_of(params, group, keys_of_group) for group, keys_of_group in parts]
            counts = [{name: term.count for name, term in each.items()} for each in terms]
            scales = scales_of(lax.psum(jax.tree.map(lambda *all_: sum(all_), *counts), AXIS))
        total = (jax.tree.map(jnp.zeros_like, params), objective.zero_terms())
        in_conditions = on_cpu and not _has_convolution(gradient, params, *parts[0], scales)
        for group, keys_of_group in reversed(parts):
            arguments = (total, params, group, keys_of_group, scales)
            if in_conditions:  # on a CPU nothing else keeps the groups' temporaries apart
                any_example = (group.weight != 0).any()
                total = lax.cond(any_example, add, lambda total, *_: total, *arguments)
            else:  # elsewhere a condition would make the host wait
                total, params = lax.optimization_barrier((add(*arguments), params))
        return lax.psum(total, AXIS)

    return device_gradient


def _require_terms(objective: Objective) -> list[str]:
    """Returns the names of the minimised terms; raises a `UserError` if there are none."""
    if not objective.minimised:
        raise UserError(
            f"objective {type(objective).__name__} must minimise at least one term, but all its "
            "coefficients are 0"
        )
    return objective.minimised


def _has_convolution(function: Callable[..., Any], *arguments: Any) -> bool:
    """Returns whether a function convolves, which XLA:CPU does slowly inside a condition."""
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(*arguments))


def _split_rows(rows: Any, parts: int) -> list[Any]:
    """Splits the rows of a tree, the first axis of its leaves, into equal parts, in order."""
    leaves, structure = jax.tree.flatten(rows)
    pieces = [jnp.split(leaf, parts) for leaf in leaves]
    return [jax.tree.unflatten(structure, part) for part in zip(*pieces, strict=True)]


def make_train_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    microbatches: int = 1,
    seeds: int = 1,
) -> Any:
    """Returns the jitted step `f(state, groups, key) -> (state, terms of the batch)`.

    Each term is divided by its count over the whole batch. The state is donated.

    With several seeds the step is vmapped over a leading axis of every argument and result. Groups
    then share memory on a CPU too, since a vmapped condition evaluates both branches.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu" and seeds == 1
    # check_vma=False: gradients inside are of the rows of one device; psum alone adds them up.
    over_mesh = jax.shard_map(
        make_gradient(model, objective, on_cpu=on_cpu, microbatches=microbatches),
        mesh=mesh,
        in_specs=(REPLICATED, SHARDED, SHARDED),
        out_specs=REPLICATED,
        check_vma=False,
    )
    reference = _require_terms(objective)[0]

    def step(state: TrainState, groups: Groups, key: Key[Array, ""]) -> tuple[TrainState, Terms]:
        keys = _split_key(jax.random.fold_in(key, state.step), groups)
        gradient, terms = over_mesh(state.params, groups, keys)
        total, count = terms[reference]
        # A gradient that is not finite shows in the loss, so that one check on the host finds both.
        finite = jnp.isfinite(optax.tree.norm(gradient))
        terms = terms | {reference: Term(jnp.where(finite, total, jnp.nan), count)}
        mean = jax.tree.map(lambda g: g / jnp.maximum(count, 1), gradient)
        updates, optimizer_state = optimizer.update(mean, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        summed = add_terms(state.terms, terms)
        return TrainState(state.step + 1, params, optimizer_state, summed), terms

    return jax.jit(step if seeds == 1 else jax.vmap(step), donate_argnums=0)


def _split_key(key: Key[Array, ""], groups: Groups) -> GroupsKeys:
    """Returns a key for every row, group by group."""
    sizes = [group.length.shape[0] for group in groups]
    return tuple(jnp.split(jax.random.split(key, sum(sizes)), np.cumsum(sizes)[:-1]))

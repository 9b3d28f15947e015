"""The train state and the pure training step, of one seed or vmapped over several."""

from collections.abc import Callable, Sequence
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
from bilstm_attn.runtime.devices import AXIS, REPLICATED, rows_spec
from bilstm_attn.training.initial import InitialValues, initial_params
from bilstm_attn.training.objectives import Objective, Term, Terms, add_terms
from bilstm_attn.types import Batch, Keys, Params


class TrainState(NamedTuple):
    """Everything that the next step depends on, besides the config.

    With several seeds every array has a leading axis `s`.
    """

    step: Int[Array, "*s"]
    params: Params
    optimizer: Any
    terms: Terms  # summed over the epoch so far


Groups = tuple[Batch, ...]  # one batch: a group is examples of similar length, padded alike
GroupsKeys = tuple[Key[Array, "*s b"], ...]  # one per example, group by group
TrainStep = Callable[[TrainState, Groups, Key[Array, "*s"]], tuple[TrainState, Terms]]


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


def stack(trees: Sequence[Any]) -> Any:
    """Stacks one tree per seed along a new leading axis; a single tree is returned unchanged."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def unstack(tree: Any, seeds: int) -> list[Any]:
    """Returns the list of trees that `stack` was given."""
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
        """Returns what turns sums into the loss times the count of the reference term."""

        def ratio(name: str) -> Array:
            return jnp.maximum(counts[reference], 1) / jnp.maximum(counts[name], 1)

        return {name: objective.coefficients[name] * ratio(name) for name in [reference, *others]}

    gradient = _of_each(jax.grad(loss, has_aux=True), seeds)
    every_term, every_scale = _of_each(terms_of, seeds), _of_each(scales_of, seeds)

    def add(total: Any, params: Params, group: Batch, keys: Any, scales: Scales) -> Any:
        return jax.tree.map(jnp.add, total, gradient(params, group, keys, scales))

    def device_gradient(params: Params, groups: Groups, keys: GroupsKeys) -> tuple[Params, Terms]:
        pairs = zip(groups, keys, strict=True)
        parts = [part for pair in pairs for part in _cut(pair, microbatches, len(_axes(seeds)))]
        scales: Scales = {}
        if others or objective.coefficients[reference] != 1:
            # The compiler drops the forward pass, since counts do not depend on it.
            terms = [every_term(params, group, keys_of_group) for group, keys_of_group in parts]
            counts = [{name: term.count for name, term in each.items()} for each in terms]
            scales = every_scale(lax.psum(jax.tree.map(lambda *all_: sum(all_), *counts), AXIS))
        zeros = jax.tree.map(
            lambda zero: jnp.zeros(_axes(seeds), zero.dtype), objective.zero_terms()
        )
        total = (jax.tree.map(jnp.zeros_like, params), zeros)
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


Scales = dict[str, Array]


def _has_convolution(function: Callable[..., Any], *arguments: Any) -> bool:
    """Returns whether a function convolves, which XLA:CPU does slowly inside a condition."""
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(*arguments))


def _require_terms(objective: Objective) -> list[str]:
    """Returns the names of the minimised terms; raises a `UserError` if there are none."""
    if not objective.minimised:
        raise UserError(
            f"objective {type(objective).__name__} must minimise at least one term, but all its "
            "coefficients are 0"
        )
    return objective.minimised


def _axes(seeds: int) -> tuple[int, ...]:
    """Returns the leading axes of every leaf: none for a single seed."""
    return () if seeds == 1 else (seeds,)


def _of_each(call: Callable[..., Any], seeds: int) -> Callable[..., Any]:
    """vmaps `call` over seeds if there are several."""
    return call if seeds == 1 else jax.vmap(call)


def _cut(rows: Any, parts: int, axis: int) -> list[Any]:
    """Splits the rows of a tree, axis `axis` of its leaves, into equal parts, in order."""
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
    """Returns the compiled step `f(state, groups, key) -> (state, terms of the batch)`.

    Each term is divided by its count over the whole batch. The state is donated. With several
    seeds every argument and result has a leading axis `s`.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    rows = rows_spec(seeds)
    # check_vma=False: gradients inside are of the rows of one device; psum alone adds them up.
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

    reference = _require_terms(objective)[0]

    def update(state: TrainState, gradients: Params, terms: Terms) -> tuple[TrainState, Terms]:
        total, count = terms[reference]
        # A gradient that is not finite shows in the loss, so that one check on the host finds both.
        finite = jnp.isfinite(optax.tree.norm(gradients))
        terms = terms | {reference: Term(jnp.where(finite, total, jnp.nan), count)}
        mean = jax.tree.map(lambda g: g / jnp.maximum(count, 1), gradients)
        updates, optimizer_state = optimizer.update(mean, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        summed = add_terms(state.terms, terms)
        return TrainState(state.step + 1, params, optimizer_state, summed), terms

    def step(state: TrainState, groups: Groups, key: Key[Array, "*s"]) -> tuple[TrainState, Terms]:
        keys = _of_each(draw, seeds)(key, state.step, groups)
        gradients, terms = over_mesh(state.params, groups, keys)
        return _of_each(update, seeds)(state, gradients, terms)

    return jax.jit(step, donate_argnums=0)

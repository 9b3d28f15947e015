"""Can other attention be trained to the same answers, and is a model's own any use elsewhere?

Wiegreffe and Pinter, 2019, "Attention is not not explanation", arXiv:1908.04626, sections 3 and 4.
Models are trained here from scratch, on the reviews that the model in question, the *base*, was
trained on: with even or untrained attention, as a perceptron guided by the base's attention, or as
an adversary of it.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bilstm_attn.config import Config
from bilstm_attn.data.batches import Examples, plan_epoch, read_batch
from bilstm_attn.dropout import stream
from bilstm_attn.explain.attribution import Attributed
from bilstm_attn.model import Model
from bilstm_attn.objectives import Objective, cross_entropy, labelled
from bilstm_attn.optim import make_optimizer
from bilstm_attn.sharding import place_rows, place_whole
from bilstm_attn.train_step import TrainState, initial_params, make_train_step, zero_sums
from bilstm_attn.types import Batch, Keys, Lengths, Logits, Params, Sums, Tokens, Weights
from bilstm_attn.vectors import WordVectors

LEAST = 1e-10  # a weight in a logarithm


def divergence(weights: Attributed, others: Attributed) -> Float[Array, " b"]:
    """Returns `KL(weights || others)` of attentions `[b t]`, in nats; padding adds nothing."""
    ratio = jnp.log(jnp.maximum(weights, LEAST)) - jnp.log(jnp.maximum(others, LEAST))
    return (weights * ratio).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Labels(Objective):
    """Cross-entropy of `params["own"]`; under the attention of `params["base"]` if guided."""

    guide: Model | None = None
    """The model whose attention is imposed, of the same words."""

    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Sums:
        """Returns the sums of cross-entropy, of right answers and of weights."""
        imposed = None
        if self.guide is not None:
            base = lax.stop_gradient(params["base"])
            imposed = self.guide(base, batch.tokens, batch.length).weights.T
        logits = logits_under(model, params["own"], batch.tokens, batch.length, imposed, keys)
        weight, right = labelled(batch), (logits > 0) == (batch.label == 1)
        loss = (weight * cross_entropy(logits, batch.label)).sum()
        return Sums(loss, (weight * right).sum(), weight.sum())


def logits_under(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    imposed: Weights | None,
    keys: Keys | None = None,
) -> Logits:
    """Returns the logits under imposed attention weights `[t b]`, or the model's own."""
    if imposed is None:
        return model(params, tokens, lengths, keys).logits
    states, last = model.encode(params, model.embed(params, tokens, keys), lengths, keys)
    return model.decide(params, states, last, imposed, lengths, keys)


@dataclasses.dataclass(frozen=True)
class Adversary(Objective):
    """`|p - p_base| - strength KL(alpha || alpha_base)`: the base's answers, other attention.

    Eq. 2 there, with the total variation distance of two answers, `|p - p_base|`. Deviation: their
    code takes half of it, so that a strength here is twice theirs. Their adversaries train for up
    to 80 epochs, and the one with the least training loss is taken; here the last of as many epochs
    as `fit` is told.
    """

    strength: float

    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Sums:
        """Returns the sums of this loss, of answers like the base's, and of weights."""
        own = model(params["own"], batch.tokens, batch.length, keys)
        base = model(lax.stop_gradient(params["base"]), batch.tokens, batch.length)
        change = jnp.abs(jax.nn.sigmoid(own.logits) - jax.nn.sigmoid(base.logits))
        apart = divergence(own.weights, base.weights)
        weight, same = batch.weight, (own.logits > 0) == (base.logits > 0)
        loss = (weight * (change - self.strength * apart)).sum()
        return Sums(loss, (weight * same).sum(), weight.sum())


def fit(
    objective: Objective,
    model: Model,
    base: Params,
    examples: Examples,
    config: Config,
    mesh: Mesh,
    bar: Callable[[str, int], Any],
    *,
    epochs: int,
    frozen: Collection[str] = (),
    vectors: WordVectors | None = None,
) -> Params:
    """Returns parameters of `model`, trained from scratch by the config's optimiser and order.

    Args:
      objective: of `{"own": params, "base": base}`.
      base: parameters that stay as they are, or nothing.
      frozen: names of parameters that keep their initial values, such as `attention`.
      vectors: what words start with.
    """
    key = jax.random.key(config.seed)
    steps = -(-examples.size // config.data.batch_size)
    optimizer = _of_own(make_optimizer(config.optim, steps * epochs), frozen)
    own = initial_params(model, config.seed, vectors)
    params = {"own": own, "base": jax.tree.map(jnp.copy, base)}  # the step uses its arguments up
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), zero_sums())
    state = place_whole(state, mesh)
    step = make_train_step(model, objective, optimizer, mesh)
    noise = place_whole(stream(key, "dropout"), mesh)
    for epoch in range(epochs):
        with bar(f"epoch {epoch + 1}/{epochs}", examples.size) as drawn:
            for plan in plan_epoch(examples.lengths, config.data, config.seed, epoch):
                groups = place_rows(read_batch(examples, plan, config.data), mesh)
                state, sums = step(state, groups, noise)
                # Were many steps under way, devices of a CPU would wait for each other for good.
                jax.block_until_ready(sums)
                drawn.advance(plan.size)
    return jax.device_put(jax.device_get(state.params["own"]))


def _of_own(
    inner: optax.GradientTransformation, frozen: Collection[str]
) -> optax.GradientTransformation:
    """Returns the optimiser that moves `own` alone, without what is frozen."""

    def init(params: Params) -> optax.OptState:
        return inner.init(params["own"])

    def update(
        updates: Params, state: optax.OptState, params: Params | None = None
    ) -> tuple[Params, optax.OptState]:
        assert params is not None
        moves: Params
        moves, state = inner.update(updates["own"], state, params["own"])
        moves = {
            name: jax.tree.map(jnp.zeros_like, move) if name in frozen else move
            for name, move in moves.items()
        }
        return {"own": moves, "base": jax.tree.map(jnp.zeros_like, params["base"])}, state

    return optax.GradientTransformation(init, update)

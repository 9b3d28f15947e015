"""Can other attention be trained to the same answers, and is a model's own any use elsewhere?

Wiegreffe and Pinter, 2019, "Attention is not not explanation", arXiv:1908.04626, sections 3 and 4.
Models are trained here on the reviews that the model in question, the *base*, was trained on: with
even or untrained attention, as a perceptron guided by the base's attention, or as an adversary of
it.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bilstm_attn.config import Config
from bilstm_attn.data.batches import BatchPlan, plan_epoch, read_batch
from bilstm_attn.data.splits import Examples
from bilstm_attn.data.word_vectors import WordVectors
from bilstm_attn.errors import UserError
from bilstm_attn.explain.attribution import Attributed
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import replicate, shard_rows
from bilstm_attn.runtime.prng import stream
from bilstm_attn.training.metrics_log import means_of
from bilstm_attn.training.objectives import Objective, Term, Terms, labelled
from bilstm_attn.training.optim import make_optimizer
from bilstm_attn.training.step import Groups, initial_state, make_train_step
from bilstm_attn.types import Batch, Keys, Lengths, Logits, Params, Tokens, Weights

LEAST = 1e-10  # a weight in a logarithm


def divergence(weights: Attributed, others: Attributed) -> Float[Array, " b"]:
    """Returns `KL(weights || others)` of attentions `[b t]`, in nats; padding adds nothing."""
    ratio = jnp.log(jnp.maximum(weights, LEAST)) - jnp.log(jnp.maximum(others, LEAST))
    return (weights * ratio).sum(axis=1)


class Base(NamedTuple):
    """What the base says of the reviews that others are trained on: of each, or of a batch's."""

    logits: Float[np.ndarray | Array, " b"]
    weights: Float[np.ndarray | Array, "b t"]


@dataclasses.dataclass(frozen=True)
class Labels(Objective):
    """Cross-entropy; under the attention of the base if guided."""

    guided: bool = False

    @property
    def coefficients(self) -> Mapping[str, float]:
        """The loss is minimised."""
        return {"loss": 1.0, "accuracy": 0.0}

    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Terms:
        """Returns the sums of cross-entropy, of right answers and of weights."""
        imposed = batch.extras.weights.T if self.guided else None
        logits = logits_under(model, params, batch.tokens, batch.length, imposed, keys)
        weight, right = labelled(batch), (logits > 0) == (batch.label == 1)
        loss = (weight * model.task.loss(logits, batch.label)).sum()
        correct = (weight * right).sum()
        return {"loss": Term(loss, weight.sum()), "accuracy": Term(correct, weight.sum())}


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
    return model.logits_from_states(params, states, last, imposed, lengths, keys)


@dataclasses.dataclass(frozen=True)
class Adversary(Objective):
    """`|p - p_base| - strength KL(alpha || alpha_base)`: the base's answers, other attention.

    Eq. 2 there, with the total variation distance of two answers, `|p - p_base|`. Deviation: their
    code takes half of it, so that a strength here is twice theirs.
    """

    strength: float

    @property
    def coefficients(self) -> Mapping[str, float]:
        """The loss is minimised."""
        return {"loss": 1.0, "agreement": 0.0}

    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Terms:
        """Returns the sums of this loss, of answers like the base's, and of weights."""
        own, base = model(params, batch.tokens, batch.length, keys), batch.extras
        change = jnp.abs(jax.nn.sigmoid(own.logits) - jax.nn.sigmoid(base.logits))
        apart = divergence(own.weights, base.weights)
        weight, same = batch.weight, (own.logits > 0) == (base.logits > 0)
        loss = (weight * (change - self.strength * apart)).sum()
        alike = (weight * same).sum()
        return {"loss": Term(loss, weight.sum()), "agreement": Term(alike, weight.sum())}


def fit(
    objective: Objective,
    model: Model,
    examples: Examples,
    config: Config,
    mesh: Mesh,
    console: Console,
    *,
    epochs: int,
    start: Params | None = None,
    base: Base | None = None,
    frozen: Collection[str] = (),
    vectors: WordVectors | None = None,
    select: Literal["last", "least_loss"] = "last",
) -> Params:
    """Returns parameters of `model`, trained by the config's optimiser, in an order of its seed.

    Args:
      start: parameters to begin with, by the names of the model's parts; the others are random.
      base: what the objective is told of the examples, `[n]` and `[n t]`, beside their labels.
      frozen: names of parameters that keep their initial values, such as `attention`.
      vectors: what words start with.
      select: which epoch's parameters; the least loss is of the training reviews, as in their code.

    Raises:
      UserError: the loss is not finite.
    """

    def still(params: Params) -> dict[str, bool]:
        return {name: name in frozen for name in params}

    steps = -(-examples.size // config.data.batch_size)
    optimizer = optax.chain(
        make_optimizer(config.optim, steps * epochs),
        optax.masked(optax.set_to_zero(), still),
    )
    state = initial_state(model, objective, optimizer, config.seed, vectors)
    # A copy, since the step uses its arguments up.
    state = state._replace(params=state.params | jax.tree.map(jnp.copy, start or {}))
    state = replicate(state, mesh)
    step = make_train_step(model, objective, optimizer, mesh)
    noise = replicate(stream(jax.random.key(config.seed), "dropout"), mesh)
    least, chosen = np.inf, jax.device_get(state.params)
    for epoch in range(epochs):
        with console.bar(f"epoch {epoch + 1}/{epochs}", examples.size, 0) as drawn:
            for plan in plan_epoch(examples.lengths, config.data, config.seed, epoch):
                groups = read_batch(examples, plan, config.data)
                if base is not None:
                    groups = tell(groups, plan, base)
                state, sums = step(state, shard_rows(groups, mesh), noise)
                # Were many steps under way, devices of a CPU would wait for each other for good.
                jax.block_until_ready(sums)
                drawn.advance(plan.size)
        loss = means_of(objective, jax.device_get(state.terms))["loss"]
        if not np.isfinite(loss):
            raise UserError(
                f"the loss of a model trained beside the run is not finite in epoch {epoch + 1}; "
                "give --epochs 0, or a run with a lower --optim.learning-rate"
            )
        console.print(f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}")
        if select == "last" or loss < least:
            least, chosen = loss, jax.device_get(state.params)
        state = state._replace(terms=replicate(objective.zero_terms(), mesh))
    return jax.device_put(chosen)


def tell(groups: Groups, plan: BatchPlan, base: Base) -> Groups:
    """Returns a batch's groups with what the base says of their rows."""
    slots = np.split(plan.slots, len(groups))
    return tuple(
        group._replace(extras=Base(base.logits[rows], base.weights[rows, : group.tokens.shape[1]]))
        for group, rows in zip(groups, slots, strict=True)
    )

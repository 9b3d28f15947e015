"""Training objectives of "Attention is not not explanation", and the training of such models.

Wiegreffe and Pinter, 2019, arXiv:1908.04626, sections 3 and 4. Auxiliary models are trained on the
training examples of the model under study, the *base* model: with uniform or frozen attention, as
a perceptron guided by the base model's attention, or as an adversary of the base model.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bilstm_attn.config import Config
from bilstm_attn.data.batches import BatchPlan, plan_epoch, read_batch
from bilstm_attn.data.splits import Examples
from bilstm_attn.errors import UserError
from bilstm_attn.explain.attribution import TokenWeights
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import replicate, shard_rows
from bilstm_attn.runtime.prng import stream
from bilstm_attn.training.initial import InitialValues
from bilstm_attn.training.metrics_log import means_of
from bilstm_attn.training.objectives import Objective, Term, Terms, labelled
from bilstm_attn.training.optim import make_optimizer
from bilstm_attn.training.step import Groups, initial_state, make_train_step
from bilstm_attn.types import Batch, Keys, Lengths, Logits, Params, Tokens, Weights

MIN_WEIGHT = 1e-10  # lower bound of an attention weight inside a logarithm
BASE_LOGITS, BASE_WEIGHTS = "base_logits", "base_weights"  # keys of `Batch.extras`

Extras = Mapping[str, np.ndarray]  # arrays `[n]` or `[n t]` over all training examples


def kl_divergence(weights: TokenWeights, others: TokenWeights) -> Float[Array, " b"]:
    """Returns `KL(weights || others)` of attention weights `[b t]` per example, in nats.

    Padding has weight 0 and contributes nothing.
    """
    ratio = jnp.log(jnp.maximum(weights, MIN_WEIGHT)) - jnp.log(jnp.maximum(others, MIN_WEIGHT))
    return (weights * ratio).sum(axis=1)


def base_extras(logits: np.ndarray, weights: np.ndarray) -> Extras:
    """Returns the base model's logits `[n]` and attention weights `[n t]` as `Batch.extras`."""
    return {BASE_LOGITS: logits, BASE_WEIGHTS: weights}


class GuidedCrossEntropy(Objective):
    """Cross-entropy of the labels, under the base model's attention weights.

    Section 3.4. Reads `extras["base_weights"]`.
    """

    @property
    def coefficients(self) -> Mapping[str, float]:
        """Cross-entropy is minimised."""
        return {"cross_entropy": 1.0, "accuracy": 0.0}

    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Terms:
        """Returns the sums of cross-entropy and of correct predictions over labelled rows."""
        imposed = batch.extras[BASE_WEIGHTS].T
        logits = logits_under(model, params, batch.tokens, batch.length, imposed, keys)
        weight, correct = labelled(batch), model.task.correct(logits, batch.label)
        count = weight.sum()
        return {
            "cross_entropy": Term((weight * model.task.loss(logits, batch.label)).sum(), count),
            "accuracy": Term((weight * correct).sum(), count),
        }


def logits_under(
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    weights: Weights,
    keys: Keys | None = None,
) -> Logits:
    """Returns the logits under the given attention weights `[t b]`."""
    states, last = model.encode(params, model.embed(params, tokens, keys), lengths, keys)
    return model.logits_from_states(params, states, last, weights, lengths, keys)


@dataclasses.dataclass(frozen=True)
class Adversary(Objective):
    """`|p - p_base| - strength KL(alpha || alpha_base)`: same predictions, other attention.

    Section 4, eq. 2, with the total variation distance of two binary predictions, `|p - p_base|`.
    Reads `extras["base_logits"]` and `extras["base_weights"]`. Deviation: the authors' code halves
    the distance, so a strength here corresponds to half that value in their code.
    """

    strength: float

    @property
    def coefficients(self) -> Mapping[str, float]:
        """The change of the probability is minimised, the divergence maximised."""
        return {"change": 1.0, "divergence": -self.strength, "agreement": 0.0}

    def __call__(self, model: Model, params: Params, batch: Batch, keys: Keys) -> Terms:
        """Returns the sums of change, of divergence and of predictions equal to the base's."""
        output, task = model(params, batch.tokens, batch.length, keys), model.task
        base_logits = batch.extras[BASE_LOGITS]
        change = jnp.abs(task.probability(output.logits) - task.probability(base_logits))
        divergence = kl_divergence(output.weights, batch.extras[BASE_WEIGHTS])
        same = task.predicted(output.logits) == task.predicted(base_logits)
        weight, count = batch.weight, batch.weight.sum()
        return {
            "change": Term((weight * change).sum(), count),
            "divergence": Term((weight * divergence).sum(), count),
            "agreement": Term((weight * same).sum(), count),
        }


@dataclasses.dataclass(frozen=True)
class AuxiliaryTraining:
    """What to train, and how it differs from the base model's training."""

    model: Model
    objective: Objective
    epochs: int
    start: Params = dataclasses.field(default_factory=dict)
    """Initial parameters by module name; modules left out are initialised at random."""
    extras: Extras | None = None
    """The `Batch.extras` that the objective reads, over all training examples."""
    frozen: Collection[str] = ()
    """Names of modules that keep their initial parameters, such as `attention`."""
    select: Literal["last", "least_loss"] = "last"
    """Which epoch's parameters are returned; the authors take the least training loss."""


def fit(
    training: AuxiliaryTraining,
    examples: Examples,
    config: Config,
    values: InitialValues | None,
    mesh: Mesh,
    console: Console,
) -> Params:
    """Trains an auxiliary model with the config's optimiser, seed and batches.

    Args:
      training: the model, its objective, and departures from the config.
      examples: the training examples.
      config: of the base model's run, with the auxiliary model's seed.
      values: initial values that replace random ones, if the base model had some.
      mesh: the devices that share each batch.
      console: prints the loss of each epoch.

    Raises:
      UserError: the loss is not finite.
    """

    def is_frozen(params: Params) -> dict[str, bool]:
        return {name: name in training.frozen for name in params}

    steps, epochs = -(-examples.size // config.data.batch_size), training.epochs
    optimizer = optax.chain(
        make_optimizer(config.optim, steps * epochs),
        optax.masked(optax.set_to_zero(), is_frozen),
    )
    model, objective = training.model, training.objective
    state = initial_state(model, objective, optimizer, config.seed, values)
    # A copy, since the step donates its arguments.
    state = state._replace(params=state.params | jax.tree.map(jnp.copy, training.start))
    state = replicate(state, mesh)
    step = make_train_step(model, objective, optimizer, mesh)
    key = replicate(stream(jax.random.key(config.seed), "dropout"), mesh)
    least_loss, best = np.inf, jax.device_get(state.params)
    for epoch in range(1, epochs + 1):
        with console.bar(f"epoch {epoch}/{epochs}", examples.size, 0) as bar:
            for plan in plan_epoch(examples.lengths, config.data, config.seed, epoch - 1):
                groups = read_batch(examples, plan, config.data)
                if training.extras is not None:
                    groups = add_extras(groups, plan, training.extras)
                state, terms = step(state, shard_rows(groups, mesh), key)
                # XLA:CPU deadlocks with many steps in flight on several devices.
                jax.block_until_ready(terms)
                bar.advance(plan.size)
        loss = means_of(objective, jax.device_get(state.terms))["loss"]
        if not np.isfinite(loss):
            raise UserError(
                f"the loss of an auxiliary model is not finite in epoch {epoch}; "
                "give --epochs 0, or a run with a lower --optim.learning-rate"
            )
        console.print(f"epoch {epoch}/{epochs}  loss {loss:.4f}")
        if training.select == "last" or loss < least_loss:
            least_loss, best = loss, jax.device_get(state.params)
        state = state._replace(terms=replicate(objective.zero_terms(), mesh))
    return jax.device_put(best)


def add_extras(groups: Groups, plan: BatchPlan, extras: Extras) -> Groups:
    """Returns a batch's groups with the extras of their rows, cut to the groups' lengths."""
    slots = np.split(plan.slots, len(groups))

    def rows_of(array: np.ndarray, rows: np.ndarray, steps: int) -> np.ndarray:
        return array[rows] if array.ndim == 1 else array[rows, :steps]

    return tuple(
        group._replace(
            extras={
                name: rows_of(array, rows, group.tokens.shape[1]) for name, array in extras.items()
            }
        )
        for group, rows in zip(groups, slots, strict=True)
    )

"""Training auxiliary models: adversaries, guided perceptrons, frozen attention."""

import dataclasses
import io
import re
from functools import cache, partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from rich.console import Console as RichConsole
from scipy.stats import entropy
from synthetic_task import CONFIG, QUIET, STEPS, WORDS, synthetic_task

from bilstm_attn.config import TrainConfig
from bilstm_attn.data.batches import plan_epoch, read_batch
from bilstm_attn.errors import UserError
from bilstm_attn.explain.explanation import analyse
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.studies.attention_as_explanation.auxiliary_models import auxiliary_divergence
from bilstm_attn.studies.attention_as_explanation.jain_wallace import jensen_shannon
from bilstm_attn.studies.attention_as_explanation.measurements import logits_and_attention
from bilstm_attn.studies.attention_as_explanation.wiegreffe_pinter import (
    Adversary,
    GuidedCrossEntropy,
    base_extras,
    kl_divergence,
    logits_under,
)
from bilstm_attn.training.in_memory_run import InMemoryRun
from bilstm_attn.training.loop import train
from bilstm_attn.training.objectives import CrossEntropy, Objective, Term
from bilstm_attn.training.train_program import make_program
from bilstm_attn.types import Batch


def held_out() -> Batch:
    task = synthetic_task()
    labels = jnp.asarray(task.held_out.labels, jnp.int32)
    lengths = jnp.asarray(task.held_out.lengths, jnp.int32)
    return Batch(jnp.asarray(task.tokens), lengths, labels, jnp.ones(len(labels)))


def accuracy(logits) -> float:
    return float(((np.asarray(logits) > 0) == synthetic_task().held_out.labels).mean())


def output(model, params):
    return jax.jit(model.__call__)(params, held_out().tokens, held_out().length)


@cache
def base_outputs() -> dict:
    """Returns the model's logits and attention weights on its training examples."""
    task = synthetic_task()
    data = task.training, CONFIG.data, task.mesh
    return base_extras(*analyse(partial(logits_and_attention, task.model), task.params, *data))


def fitted(
    objective,
    epochs,
    model=None,
    *,
    config=CONFIG,
    console=QUIET,
    extras=None,
    frozen=(),
    **changes,
) -> dict:
    """Returns the parameters of a model fitted to the synthetic task; of 0 epochs the initial."""
    task = synthetic_task()
    config = dataclasses.replace(config, train=TrainConfig(epochs=max(epochs, 1)))
    model, examples = model or task.model, task.training._replace(extras=extras or {})
    run = InMemoryRun(config, examples, divergence=auxiliary_divergence, **changes)
    program = make_program(
        config, model, examples.size, task.mesh, objective=objective, frozen=frozen
    )
    if epochs == 0:
        return run.begin(program, console).state.params
    train(run, program, console=console)
    return jax.device_put(run.params)


def test_kl_divergence_equals_scipys():
    generator = np.random.default_rng(0)
    p, q = (generator.dirichlet(np.ones(5), size=3).astype(np.float32) for _ in range(2))
    expected = entropy(p, q, axis=1)
    np.testing.assert_allclose(kl_divergence(jnp.asarray(p), jnp.asarray(q)), expected, atol=1e-5)
    padded = [jnp.pad(jnp.asarray(each), ((0, 0), (0, 2))) for each in (p, q)]
    np.testing.assert_allclose(kl_divergence(*padded), expected, atol=1e-5)


def test_fitted_model_learns_the_synthetic_task():
    task = synthetic_task()
    assert accuracy(output(task.model, task.params).logits) > 0.97


@cache
def adversary(strength: float) -> dict:
    config = dataclasses.replace(CONFIG, seed=1)
    objective = Adversary(strength)
    return fitted(objective, 12, config=config, extras=base_outputs(), select="least_loss")


def distances(params) -> tuple[float, float]:
    """Returns mean JSD of the attention and mean change of the probability from the base model."""
    task = synthetic_task()
    adversary, base = (output(task.model, each) for each in (params, task.params))
    change = jnp.abs(jax.nn.sigmoid(adversary.logits) - jax.nn.sigmoid(base.logits))
    divergence = jensen_shannon(adversary.weights, base.weights, axis=1)
    return float(divergence.mean()), float(change.mean())


@pytest.mark.slow
def test_adversary_matches_the_predictions_and_diverges_more_when_stronger():
    (jsd_weak, change_weak), (jsd_strong, change_strong) = (
        distances(adversary(0.0)),
        distances(adversary(0.1)),
    )
    assert change_weak < 0.05
    assert change_strong < 0.1
    assert jsd_strong > 1.5 * jsd_weak
    assert jsd_strong > 0.3


@pytest.mark.slow
def test_frozen_parameters_keep_their_initial_values():
    task = synthetic_task()
    frozen = fitted(Adversary(0.1), 1, extras=base_outputs(), frozen=("attention",))
    # The base model has the same initial values, and its attention was trained.
    first = fitted(CrossEntropy(), 0)
    jax.tree.map(np.testing.assert_array_equal, frozen["attention"], first["attention"])
    assert not np.array_equal(frozen["logit"]["kernel"], first["logit"]["kernel"])
    assert not np.array_equal(task.params["attention"]["kernel"], first["attention"]["kernel"])


def test_logits_under_imposed_weights_depend_on_them():
    task, batch = synthetic_task(), held_out()
    states, last = task.model.encode(
        task.params, task.model.embed(task.params, batch.tokens), batch.length
    )
    weights = output(task.model, task.params).weights.T
    expected = task.model.logits_from_states(task.params, states, last, weights, batch.length)
    np.testing.assert_allclose(
        logits_under(task.model, task.params, batch.tokens, batch.length, weights),
        expected,
        atol=1e-5,
        rtol=1e-5,
    )
    rolled = logits_under(
        task.model, task.params, batch.tokens, batch.length, jnp.roll(weights, 1, axis=0)
    )
    assert float(jnp.abs(rolled - expected).max()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("guided", [True, False])
def test_perceptron_learns_with_and_without_a_guide(guided):
    task = synthetic_task()
    config = dataclasses.replace(CONFIG.model, encoder="token_wise")
    perceptron = Model(config, WORDS)
    objective: Objective = GuidedCrossEntropy() if guided else CrossEntropy()
    params = fitted(objective, 6, perceptron, extras=base_outputs() if guided else None)
    # With a guide the perceptron's own attention is not used, and is not trained.
    first = fitted(objective, 0, perceptron)
    moved = not np.array_equal(params["attention"]["kernel"], first["attention"]["kernel"])
    assert moved != guided
    weights = output(task.model if guided else perceptron, task.params if guided else params)
    inputs = held_out().tokens, held_out().length
    assert accuracy(logits_under(perceptron, params, *inputs, weights.weights.T)) > 0.95


def test_extras_follow_the_rows_of_the_batch():
    examples = synthetic_task().training
    tokens = np.zeros((examples.size, STEPS), np.float32)
    for row, (start, stop) in enumerate(zip(examples.starts, examples.stops, strict=True)):
        tokens[row, : stop - start + 1] = [1, *examples.ids[start:stop]]
    examples = examples._replace(extras=base_extras(examples.labels.astype(np.float32), tokens))
    rows = 0
    for plan in plan_epoch(examples.lengths, CONFIG.data, 0, 0):
        for group in read_batch(examples, plan, CONFIG.data):
            real = group.weight > 0
            logits, weights = group.extras["base_logits"], group.extras["base_weights"]
            np.testing.assert_array_equal(logits[real], group.label[real])
            np.testing.assert_array_equal(weights[real], group.tokens[real])
            rows += real.sum()
    assert rows == examples.size


class RisingLoss(Objective):
    """A loss that increases with every step, since its gradient has the wrong sign."""

    coefficients: ClassVar = {"loss": 1.0}

    def __call__(self, model, params, batch, keys):
        del model, keys
        size, weight = params["logit"]["kernel"].sum(), batch.weight.sum()
        return {"loss": Term(weight * (2 * lax.stop_gradient(size) - size), weight)}


@pytest.mark.slow
def test_training_starts_from_the_given_parameters():
    task = synthetic_task()
    start = {name: part for name, part in task.params.items() if name != "attention"}
    random, started = fitted(CrossEntropy(), 0), fitted(CrossEntropy(), 0, start=start)
    expected = task.params | {"attention": random["attention"]}
    jax.tree.map(np.testing.assert_array_equal, started, expected)
    fitted(CrossEntropy(), 1, start=start)
    assert np.isfinite(task.params["embedding"]).all()  # was not donated


@pytest.mark.slow
def test_epoch_with_the_least_loss_can_be_selected():
    console = Console(RichConsole(file=(output := io.StringIO())))
    rising = partial(fitted, RisingLoss(), console=console)
    first, last = (rising(epochs)["logit"]["kernel"] for epochs in (1, 2))
    assert last.sum() > first.sum()
    least = rising(2, select="least_loss")["logit"]["kernel"]
    np.testing.assert_array_equal(least, first)
    losses = re.findall(r"epoch (\d)/2  loss (-?\d+\.\d{4})\n", output.getvalue())
    assert [epoch for epoch, _ in losses] == ["1", "2", "1", "2"]
    assert float(losses[0][1]) < float(losses[1][1])


@pytest.mark.slow
def test_loss_that_is_not_finite_is_one_line():
    task = synthetic_task()
    nan = base_outputs() | {"base_logits": np.full(task.training.size, np.nan, np.float32)}
    with pytest.raises(UserError, match=r"auxiliary model is not finite at step 1 \(epoch 1\)"):
        fitted(Adversary(0.0), 1, extras=nan)

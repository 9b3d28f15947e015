"""Models trained beside another one: adversaries, guided perceptrons, frozen attention."""

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
from synthetic_task import CONFIG, QUIET, STEPS, WORDS, planted

from bilstm_attn.data.batches import plan_epoch, read_batch
from bilstm_attn.errors import UserError
from bilstm_attn.explain.explained import analyse
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.studies.attention_as_explanation.jain_wallace import jensen_shannon
from bilstm_attn.studies.attention_as_explanation.measurements import logits_and_attention
from bilstm_attn.studies.attention_as_explanation.wiegreffe_pinter import (
    Adversary,
    Base,
    Labels,
    divergence,
    fit,
    logits_under,
    tell,
)
from bilstm_attn.training.objectives import Objective, Term
from bilstm_attn.types import Batch


def held_out() -> Batch:
    made = planted()
    labels = jnp.asarray(made.held_out.labels, jnp.int32)
    lengths = jnp.asarray(made.held_out.lengths, jnp.int32)
    return Batch(jnp.asarray(made.tokens), lengths, labels, jnp.ones(len(labels)))


def accuracy(logits) -> float:
    return float(((np.asarray(logits) > 0) == planted().held_out.labels).mean())


def output(model, params):
    return jax.jit(model.__call__)(params, held_out().tokens, held_out().length)


@cache
def base() -> Base:
    """Returns what the model says of the reviews it was trained on."""
    made = planted()
    given = made.training, CONFIG.data, made.mesh
    return Base(*analyse(partial(logits_and_attention, made.model), made.params, *given))


def test_divergence_is_scipys():
    numbers = np.random.default_rng(0)
    p, q = (numbers.dirichlet(np.ones(5), size=3).astype(np.float32) for _ in range(2))
    expected = entropy(p, q, axis=1)
    np.testing.assert_allclose(divergence(jnp.asarray(p), jnp.asarray(q)), expected, atol=1e-5)
    padded = [jnp.pad(jnp.asarray(each), ((0, 0), (0, 2))) for each in (p, q)]
    np.testing.assert_allclose(divergence(*padded), expected, atol=1e-5)


def test_model_that_is_fitted_learns():
    made = planted()
    assert accuracy(output(made.model, made.params).logits) > 0.97


@cache
def adversary(strength: float) -> dict:
    made = planted()
    given = made.model, made.training, dataclasses.replace(CONFIG, seed=1), made.mesh
    return fit(Adversary(strength), *given, QUIET, epochs=12, base=base(), select="least_loss")


def apart(params) -> tuple[float, float]:
    """Returns mean JSD of attention and mean change of probability from the base's."""
    made = planted()
    own, given = (output(made.model, each) for each in (params, made.params))
    change = jnp.abs(jax.nn.sigmoid(own.logits) - jax.nn.sigmoid(given.logits))
    return float(jensen_shannon(own.weights, given.weights, axis=1).mean()), float(change.mean())


@pytest.mark.slow
def test_adversary_gives_the_bases_answers_and_the_stronger_it_is_other_attention():
    (jsd_weak, change_weak), (jsd_strong, change_strong) = (
        apart(adversary(0.0)),
        apart(adversary(0.1)),
    )
    assert change_weak < 0.05
    assert change_strong < 0.1
    assert jsd_strong > 1.5 * jsd_weak
    assert jsd_strong > 0.3


@pytest.mark.slow
def test_frozen_parameters_stay_as_they_were():
    made = planted()
    given = made.model, made.training, CONFIG, made.mesh, QUIET
    fitted = fit(Adversary(0.1), *given, epochs=1, base=base(), frozen=("attention",))
    # It began as the base did, whose attention has moved since.
    first = fit(Labels(), *given, epochs=0)
    jax.tree.map(np.testing.assert_array_equal, fitted["attention"], first["attention"])
    assert not np.array_equal(fitted["logit"]["kernel"], first["logit"]["kernel"])
    assert not np.array_equal(made.params["attention"]["kernel"], first["attention"]["kernel"])


def test_imposed_weights_are_those_that_count():
    made, batch = planted(), held_out()
    states, last = made.model.encode(
        made.params, made.model.embed(made.params, batch.tokens), batch.length
    )
    weights = output(made.model, made.params).weights.T
    own = made.model.logits_from_states(made.params, states, last, weights, batch.length)
    np.testing.assert_allclose(
        logits_under(made.model, made.params, batch.tokens, batch.length, weights),
        own,
        atol=1e-5,
        rtol=1e-5,
    )
    turned = logits_under(
        made.model, made.params, batch.tokens, batch.length, jnp.roll(weights, 1, axis=0)
    )
    assert float(jnp.abs(turned - own).max()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("guided", [True, False])
def test_perceptron_learns_under_a_guide_and_alone(guided):
    made = planted()
    config = dataclasses.replace(CONFIG.model, encoder="token_wise")
    perceptron = Model(config, WORDS)
    given = perceptron, made.training, CONFIG, made.mesh, QUIET
    params = fit(Labels(guided), *given, epochs=6, base=base() if guided else None)
    # Under a guide, its own attention is not asked, and learns nothing.
    first = fit(Labels(guided), *given, epochs=0)
    moved = not np.array_equal(params["attention"]["kernel"], first["attention"]["kernel"])
    assert moved != guided
    imposed = output(made.model, made.params).weights.T if guided else None
    given = held_out().tokens, held_out().length
    assert accuracy(logits_under(perceptron, params, *given, imposed)) > 0.95


def test_what_the_base_says_is_of_the_same_reviews():
    reviews = planted().training
    tokens = np.zeros((reviews.size, STEPS), np.float32)
    for row, (start, stop) in enumerate(zip(reviews.starts, reviews.stops, strict=True)):
        tokens[row, : stop - start + 1] = [1, *reviews.ids[start:stop]]
    said = Base(reviews.labels.astype(np.float32), tokens)
    seen = 0
    for plan in plan_epoch(reviews.lengths, CONFIG.data, 0, 0):
        for group in tell(read_batch(reviews, plan, CONFIG.data), plan, said):
            own = group.weight > 0
            np.testing.assert_array_equal(group.extras.logits[own], group.label[own])
            np.testing.assert_array_equal(group.extras.weights[own], group.tokens[own])
            seen += own.sum()
    assert seen == reviews.size


class Rising(Objective):
    """A loss that each step makes larger: its gradient has the wrong sign."""

    coefficients: ClassVar = {"loss": 1.0}

    def __call__(self, model, params, batch, keys):
        del model, keys
        size, weight = params["logit"]["kernel"].sum(), batch.weight.sum()
        return {"loss": Term(weight * (2 * lax.stop_gradient(size) - size), weight)}


@pytest.mark.slow
def test_parts_begin_as_they_are_given():
    made = planted()
    given = Labels(), made.model, made.training, CONFIG, made.mesh, QUIET
    start = {name: part for name, part in made.params.items() if name != "attention"}
    random, begun = fit(*given, epochs=0), fit(*given, epochs=0, start=start)
    jax.tree.map(
        np.testing.assert_array_equal, begun, made.params | {"attention": random["attention"]}
    )
    fit(*given, epochs=1, start=start)
    assert np.isfinite(made.params["embedding"]).all()  # and is not used up


@pytest.mark.slow
def test_epoch_of_the_least_loss_is_taken_if_asked_for():
    made = planted()
    console = Console(RichConsole(file=(said := io.StringIO())))
    given = Rising(), made.model, made.training, CONFIG, made.mesh, console
    first, last = (fit(*given, epochs=epochs)["logit"]["kernel"] for epochs in (1, 2))
    assert last.sum() > first.sum()
    least = fit(*given, epochs=2, select="least_loss")["logit"]["kernel"]
    np.testing.assert_array_equal(least, first)
    losses = re.findall(r"epoch (\d)/2  loss (-?\d+\.\d{4})\n", said.getvalue())
    assert [epoch for epoch, _ in losses] == ["1", "2", "1", "2"]
    assert float(losses[0][1]) < float(losses[1][1])


@pytest.mark.slow
def test_loss_that_is_no_number_is_a_line():
    made = planted()
    said = base()._replace(logits=np.full(made.training.size, np.nan, np.float32))
    given = Adversary(0.0), made.model, made.training, CONFIG, made.mesh, QUIET
    with pytest.raises(UserError, match=r"not finite in epoch 1; give --epochs 0"):
        fit(*given, epochs=1, base=said)

"""Objectives of several terms: each is divided by its own count over the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import error_of, tiny_run, train

from bilstm_attn.config import ModelConfig
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.devices import make_mesh, replicate, shard_rows
from bilstm_attn.training.metrics_log import means_of
from bilstm_attn.training.objectives import OBJECTIVES, CrossEntropy, Objective, Term, labelled
from bilstm_attn.training.step import initial_state, make_train_step
from bilstm_attn.types import Batch

MODEL = Model(
    ModelConfig(
        embedding_size=4,
        hidden_size=3,
        attention_size=5,
        dense_size=2,
        layers=1,
        input_dropout=0.0,
        head_dropout=0.0,
    ),
    11,
)
KEY = jax.random.key(0)


class WithConfidence(Objective):
    """Cross-entropy of labelled rows, and the squared logit of all rows."""

    coefficients = {"cross_entropy": 1.0, "squared_logit": 0.25, "accuracy": 0.0}  # noqa: RUF012

    def __call__(self, model, params, batch, keys):
        logits = model(params, batch.tokens, batch.length, keys).logits
        squared = Term((batch.weight * logits**2).sum(), batch.weight.sum())
        return CrossEntropy()(model, params, batch, keys) | {"squared_logit": squared}


def batch(rows: int, seed: int, steps: int) -> Batch:
    """Returns rows of which some are unlabelled and the last one is filler."""
    numbers = np.random.default_rng(seed)
    length = numbers.integers(1, steps + 1, rows).astype(np.int32)
    label = numbers.integers(-1, 2, rows).astype(np.int32)
    weight = np.ones(rows, np.float32)
    length[-1], label[-1], weight[-1] = 0, -1, 0
    return Batch(numbers.integers(3, 11, (rows, steps)).astype(np.int32), length, label, weight)


GROUPS = (batch(8, 0, 5), batch(8, 1, 7))


def expected_update(params):
    """Returns the updated parameters by plain SGD on the loss written out over the whole batch."""
    labels, weights = (np.concatenate([group[at] for group in GROUPS]) for at in (2, 3))
    assert 0 < ((labels >= 0) * weights).sum() < weights.sum()  # so that the counts differ

    def loss(params):
        sums = {"ce": 0.0, "sq": 0.0}
        counts = {"ce": 0.0, "sq": 0.0}
        for group in jax.tree.map(jnp.asarray, GROUPS):
            logits = MODEL(params, group.tokens, group.length).logits
            weight = labelled(group)
            sums["ce"] += (weight * MODEL.task.loss(logits, group.label)).sum()
            sums["sq"] += (group.weight * logits**2).sum()
            counts["ce"] += weight.sum()
            counts["sq"] += group.weight.sum()
        return sums["ce"] / counts["ce"] + 0.25 * sums["sq"] / counts["sq"]

    params = jax.tree.map(jnp.asarray, params)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    return value, jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)


def take_step(objective, devices, microbatches=1, groups=GROUPS):
    mesh, sgd = make_mesh(8, devices), optax.sgd(0.5)
    state = initial_state(MODEL, objective, sgd, 0)
    params = jax.device_get(state.params)
    step = make_train_step(MODEL, objective, sgd, mesh, microbatches)
    state, terms = step(replicate(state, mesh), shard_rows(groups, mesh), replicate(KEY, mesh))
    return params, jax.device_get(state), jax.device_get(terms)


@pytest.mark.parametrize(
    ("devices", "microbatches"),
    [(4, 1), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 1), (2, 2)))],
)
def test_each_term_is_divided_by_its_own_count_over_the_whole_batch(devices, microbatches):
    params, state, terms = take_step(WithConfidence(), devices, microbatches)
    loss, updated = expected_update(params)
    # float32 rounding of sums over 16 rows.
    assert means_of(WithConfidence(), terms)["loss"] == pytest.approx(float(loss), abs=1e-6)
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(updated), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_term_with_count_zero_adds_nothing_and_the_others_still_train():
    unlabelled = tuple(group._replace(label=np.full(8, -1, np.int32)) for group in GROUPS)
    params, state, terms = take_step(WithConfidence(), 1, groups=unlabelled)
    assert terms["cross_entropy"].count == 0
    assert np.isfinite(means_of(WithConfidence(), terms)["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, state.params)
    assert max(jax.tree.leaves(moved)) > 0


def test_every_term_is_logged():
    _, _, terms = take_step(WithConfidence(), 1)
    means = means_of(WithConfidence(), terms)
    assert list(means) == ["loss", *sorted(WithConfidence.coefficients)]


@pytest.mark.slow
def test_counts_of_several_terms_cost_no_second_forward_pass():
    mesh, sgd = make_mesh(8, 1), optax.sgd(0.5)

    class TwoTerms(CrossEntropy):
        coefficients = {"cross_entropy": 1.0, "accuracy": 0.5}  # noqa: RUF012

    def time_loops(objective):
        state = replicate(initial_state(MODEL, objective, sgd, 0), mesh)
        step = make_train_step(MODEL, objective, sgd, mesh)
        compiled = step.lower(state, shard_rows(GROUPS, mesh), replicate(KEY, mesh)).compile()
        return compiled.as_text().count(" while(")

    assert time_loops(TwoTerms()) == time_loops(CrossEntropy()) > 0


def test_an_objective_that_minimises_nothing_is_one_line():
    class Nothing(CrossEntropy):
        coefficients = {"cross_entropy": 0.0, "accuracy": 0.0}  # noqa: RUF012

    message = error_of(take_step, Nothing(), 1)
    assert message.startswith("objective Nothing must minimise at least one term")


def test_an_objective_that_returns_other_terms_than_it_declares_is_one_line():
    class Surprise(CrossEntropy):
        coefficients = {"cross_entropy": 1.0, "accuracy": 0.0, "size": 1.0}  # noqa: RUF012

    message = error_of(take_step, Surprise(), 1)
    assert message.startswith("objective Surprise must return a term for each of its coefficients")


class OneTerm(Objective):
    """Cross-entropy alone, without a term called accuracy."""

    coefficients = {"cross_entropy": 1.0}  # noqa: RUF012

    def __call__(self, model, params, batch, keys):
        return {"cross_entropy": CrossEntropy()(model, params, batch, keys)["cross_entropy"]}


@pytest.mark.slow
def test_an_objective_without_accuracy_trains_to_the_end_and_draws_its_curves(
    untrained, monkeypatch, capsys
):
    monkeypatch.setitem(OBJECTIVES, "one_term", OneTerm)
    assert train(untrained, "--name", "tiny", train__objective="one_term") == 0
    assert tiny_run(untrained).curves.is_file()
    assert "epoch 2  train loss 0." in capsys.readouterr().out

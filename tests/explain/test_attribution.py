"""Every attribution against a slow loop over float64 numbers; padding; planted evidence."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_variants import VOCABULARY, make_model
from sklearn.linear_model import Ridge
from synthetic_task import keys_of as planted_keys
from synthetic_task import planted

from bilstm_attn.benchmark.compare import reference_logits
from bilstm_attn.explain.attribution import (
    ATTRIBUTIONS,
    GradientTimesInput,
    IntegratedGradients,
    LeaveOneOut,
    Lime,
    Random,
    SmoothGrad,
    completeness_error,
)
from bilstm_attn.explain.deletion import compact
from bilstm_attn.runtime.prng import draw_per_token
from bilstm_attn.types import Batch

STEPS = 6
LENGTHS = np.array([6, 0, 1, 4], np.int32)
SHARDED = len(LENGTHS)
OWN = np.arange(STEPS)[None] < LENGTHS[:, None]
# float32 rounding: attributions are at most of size 1, and sums of some tens of terms.
TOLERANCE = 1e-5


def random_tokens() -> np.ndarray:
    numbers = np.random.default_rng(3)
    return np.where(OWN, numbers.integers(1, VOCABULARY, OWN.shape), 0).astype(np.int32)


def keys_of(seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), SHARDED)


@partial(jax.jit, static_argnums=(0, 1))
def run(attribution, name, params, tokens, lengths, keys):
    return attribution(make_model(name)[0], params, tokens, lengths, keys)


def attribute(attribution, name="cell-lstm", tokens=None, lengths=LENGTHS, keys=None) -> np.ndarray:
    tokens = random_tokens() if tokens is None else tokens
    given = jnp.asarray(tokens), jnp.asarray(lengths), keys_of() if keys is None else keys
    return np.asarray(run(attribution, name, make_model(name)[1], *given))


def oracle(vectors: np.ndarray) -> float:
    """Returns the logit of one review of word vectors `[t e]`, by the float64 loop."""
    _, params = make_model("cell-lstm")
    if len(vectors) == 0:
        vectors, length = np.zeros((1, 4)), 0
    else:
        length = len(vectors)
    one = Batch(np.arange(len(vectors))[None], np.array([length]), np.zeros(1), np.ones(1))
    return reference_logits(jax.device_get(params) | {"embedding": vectors}, one)[0]


def vectors_of(row: int) -> np.ndarray:
    _, params = make_model("cell-lstm")
    return np.asarray(params["embedding"], np.float64)[random_tokens()[row, : LENGTHS[row]]]


def gradient_at(vectors: np.ndarray) -> np.ndarray:
    """Returns the gradient of the logit by central differences."""
    gradient, step = np.zeros_like(vectors), 1e-5
    for at in np.ndindex(vectors.shape):
        moved = np.zeros_like(vectors)
        moved[at] = step
        gradient[at] = (oracle(vectors + moved) - oracle(vectors - moved)) / (2 * step)
    return gradient


REVIEWS = (0, 2, 3)  # those with tokens


LONG_TO_COMPILE = ("smoothgrad", "integrated_gradients", "lime")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in LONG_TO_COMPILE))
        for name in ATTRIBUTIONS
    ],
)
def test_padding_gets_zero_and_more_of_it_changes_nothing(name):
    attribution = ATTRIBUTIONS[name]()
    weights = attribute(attribution)
    assert (weights[~OWN] == 0).all()
    assert (weights[0] != 0).all()
    padded = np.pad(random_tokens(), ((0, 0), (0, 3)))
    np.testing.assert_allclose(
        attribute(attribution, tokens=padded),
        np.pad(weights, ((0, 0), (0, 3))),
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_other_reviews_of_the_batch_change_nothing(name):
    attribution = ATTRIBUTIONS[name]()
    tokens, lengths, keys = random_tokens(), LENGTHS.copy(), keys_of(1)
    tokens[:3] = np.random.default_rng(4).integers(1, VOCABULARY, (3, STEPS))
    lengths[:3] = [5, 6, 0]
    among_others = attribute(attribution, tokens=tokens, lengths=lengths, keys=keys)[3]
    expected = attribute(attribution, keys=jnp.concatenate([keys_of()[:3], keys[3:]]))[3]
    np.testing.assert_allclose(among_others, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_gradients_are_central_differences():
    gradient = attribute(ATTRIBUTIONS["gradient"]())
    times_input = attribute(GradientTimesInput())
    for row in REVIEWS:
        expected, vectors = gradient_at(vectors_of(row)), vectors_of(row)
        own = slice(LENGTHS[row])
        lengths = np.linalg.norm(expected, axis=1)
        np.testing.assert_allclose(gradient[row, own], lengths, atol=TOLERANCE)
        products = (vectors * expected).sum(axis=1)
        np.testing.assert_allclose(times_input[row, own], products, atol=TOLERANCE)


def test_gradient_may_leave_the_attention_as_it_is():
    moving, fixed = attribute(GradientTimesInput()), attribute(GradientTimesInput(False))
    assert np.abs(moving - fixed).max() > 1e-4
    same = "attention-uniform"  # which no input moves
    np.testing.assert_allclose(
        attribute(GradientTimesInput(False), same), attribute(GradientTimesInput(), same), atol=1e-6
    )


def test_integrated_gradients_are_the_slow_sum_along_the_way():
    weights, parts = attribute(IntegratedGradients()), 20
    for row in (2, 3):
        vectors = vectors_of(row)
        middles = (np.arange(parts) + 0.5) / parts
        mean = sum(gradient_at(middle * vectors) for middle in middles) / parts
        # The sum's own error is of the size of 1 / parts^2.
        expected = (vectors * mean).sum(axis=1)
        own = slice(LENGTHS[row])
        np.testing.assert_allclose(weights[row, own], expected, atol=TOLERANCE, rtol=1 / parts**2)
        rough = attribute(IntegratedGradients(points=1))[row, own]
        assert np.abs(rough - expected).max() > 5 * np.abs(weights[row, own] - expected).max()


@pytest.mark.parametrize("name", ["cell-lstm", "attention-dot", "pooling-max"])
def test_integrated_gradients_add_up(name):
    model, params = make_model(name)
    tokens, lengths = jnp.asarray(random_tokens()), jnp.asarray(LENGTHS)
    error_of, errors = jax.jit(partial(completeness_error, model)), []
    for points in (2, 32):
        weights = attribute(IntegratedGradients(points), name)
        errors.append(error_of(params, tokens, lengths, jnp.asarray(weights)))
    # Where the logit has a kink (the maximum), a rule for smooth functions is only this good.
    assert float(errors[1].max()) < (0.01 if name == "pooling-max" else TOLERANCE)
    assert float(errors[0].max()) > 2 * float(errors[1].max())


def test_leave_one_out_is_deleting_the_word_by_hand():
    weights = attribute(LeaveOneOut())
    for row in REVIEWS:
        vectors = vectors_of(row)
        for at in range(LENGTHS[row]):
            expected = oracle(vectors) - oracle(np.delete(vectors, at, axis=0))
            np.testing.assert_allclose(weights[row, at], expected, atol=TOLERANCE)


@pytest.mark.slow
def test_smooth_gradient_without_noise_is_the_gradient_and_with_noise_another():
    gradient = attribute(ATTRIBUTIONS["gradient"]())
    np.testing.assert_allclose(attribute(SmoothGrad(noise=0.0)), gradient, atol=TOLERANCE)
    assert np.abs(attribute(SmoothGrad()) - gradient).max() > 1e-3
    few, many = (  # draws differ the less, the more there are
        [attribute(SmoothGrad(samples=samples), keys=keys_of(seed)) for seed in (0, 1)]
        for samples in (2, 100)
    )
    assert np.abs(many[0] - many[1]).max() < np.abs(few[0] - few[1]).max() / 3


def test_smooth_gradient_is_the_mean_over_draws_of_noise():
    smooth = SmoothGrad(samples=3, noise=0.3)
    weights, keys = attribute(smooth), keys_of()
    draw = partial(jax.random.normal, shape=vectors_of(0).shape[1:])
    noise = [np.asarray(draw_per_token(keys, STEPS, draw, number)) for number in range(3)]
    for row in REVIEWS:
        vectors, own = vectors_of(row), slice(LENGTHS[row])
        deviation = 0.3 * (vectors.max() - vectors.min())
        mean = np.mean([gradient_at(vectors + deviation * n[row, own]) for n in noise], axis=0)
        np.testing.assert_allclose(
            weights[row, own], np.linalg.norm(mean, axis=1), atol=TOLERANCE, rtol=TOLERANCE
        )


def test_lime_is_a_weighted_ridge_over_copies_that_were_judged_one_by_one():
    lime, tokens = Lime(samples=20), random_tokens()
    keeps = np.asarray(lime.copies(jnp.asarray(tokens), jnp.asarray(LENGTHS), keys_of()))
    weights = attribute(lime)
    for row in (0, 3):
        own, vectors = slice(LENGTHS[row]), vectors_of(row)
        kept = keeps[:, row, own]
        assert kept[0].all()
        assert not kept[1:].all(axis=1).any()
        logits = [oracle(vectors[each]) for each in kept]
        distance = 1 - np.sqrt(kept.sum(axis=1) / LENGTHS[row])
        near = np.exp(-((distance / lime.width) ** 2))
        expected = Ridge(alpha=lime.ridge).fit(kept, logits, sample_weight=near).coef_
        np.testing.assert_allclose(weights[row, own], expected, atol=TOLERANCE)


def test_copies_delete_every_number_of_words_as_often():
    lime = Lime(samples=3000)
    tokens, lengths = jnp.ones((1, 7), jnp.int32), jnp.array([5])
    kept = np.asarray(lime.copies(tokens, lengths, keys_of()[:1]))[1:, 0]
    assert not kept[:, 5:].any()
    counts = np.bincount(kept.sum(axis=1), minlength=5)
    assert len(counts) == 5
    # Five standard deviations of a binomial of 3,000 draws at 0.2, and of each word's share.
    assert np.abs(counts / 3000 - 0.2).max() < 0.04
    assert np.abs(kept[:, :5].mean(axis=0) - 0.4).max() < 0.05


def test_attention_is_the_models_own_or_zero():
    model, params = make_model("cell-lstm")
    tokens, lengths = jnp.asarray(random_tokens()), jnp.asarray(LENGTHS)
    weights = attribute(ATTRIBUTIONS["attention"]())
    own = jax.jit(model.__call__)(params, tokens, lengths).weights
    np.testing.assert_allclose(weights, own, atol=1e-7)
    assert (attribute(ATTRIBUTIONS["attention"](), "pooling-last") == 0).all()


def test_random_numbers_are_of_the_key_alone():
    weights = attribute(Random())
    np.testing.assert_array_equal(weights, attribute(Random(), "attention-dot"))
    assert (attribute(Random(), keys=keys_of(1))[OWN] != weights[OWN]).all()
    assert (weights < 1).all()


def test_deleting_moves_the_others_together():
    keep = jnp.array([[True, False, True, False, True], [False, False, True, True, True]])
    positions, left = compact(jnp.array([4, 2]), keep)
    assert left.tolist() == [2, 0]
    assert positions[:2, 0].tolist() == [0, 2]


@pytest.mark.slow
def test_lime_ends_on_two_devices_of_a_cpu():
    # XLA runs a batch of linear systems on threads that two devices can take from each other for
    # good: so it did at this size, in the first batch or the twentieth.
    code = """
import jax
import jax.numpy as jnp
import numpy as np

from bilstm_attn.config import ModelConfig
from bilstm_attn.inference.evaluate import make_step
from bilstm_attn.explain.attribution import Lime
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.devices import make_mesh

jax.config.update("jax_num_cpu_devices", 2)
size = dict(embedding_size=2, hidden_size=2, layers=1, attention_size=2, dense_size=0)
model = Model(ModelConfig(**size), 50)
step = make_step(lambda params, rows: Lime()(model, params, *rows), make_mesh(32, 2))
params, tokens = model.init(jax.random.key(0)), jnp.ones((32, 64), jnp.int32)
for seed in range(20):
    rows = tokens, jnp.full(32, 64), jax.random.split(jax.random.key(seed), 32)
    assert np.isfinite(step(params, rows)).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# Planted evidence


def found(attribution) -> float:
    """Returns the share of reviews whose largest weight, toward the label, is the evidence's."""
    made = planted()
    labels, lengths = made.held_out.labels, made.held_out.lengths
    run = jax.jit(partial(attribution, made.model))
    given = jnp.asarray(made.tokens), jnp.asarray(lengths, jnp.int32)
    weights = np.array(run(made.params, *given, planted_keys(len(labels))))
    if attribution.signed:
        weights *= np.where(labels, 1, -1)[:, None]
    weights[np.arange(made.tokens.shape[1])[None] >= lengths[:, None]] = -np.inf
    return float((weights.argmax(axis=1) == made.positions).mean())


@pytest.mark.parametrize(
    "name",
    ["leave_one_out", "integrated_gradients", pytest.param("lime", marks=pytest.mark.slow)],
)
def test_planted_evidence_is_found(name):
    assert found(ATTRIBUTIONS[name]()) > 0.95


def test_random_does_not_find_planted_evidence():
    assert found(Random()) < 0.3  # chance is 1 in 10, the mean length

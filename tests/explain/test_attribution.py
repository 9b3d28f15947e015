"""Every attribution compared with float64 NumPy loops; padding; the synthetic task."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_variants import VOCABULARY, make_model
from sklearn.linear_model import Ridge
from synthetic_task import keys_of as synthetic_keys
from synthetic_task import synthetic_task

from bilstm_attn.benchmark.float64_model import reference_logits
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
ROWS = len(LENGTHS)
MASK = np.arange(STEPS)[None] < LENGTHS[:, None]
# float32 rounding: attributions are sums of tens of terms, at most 1.
TOLERANCE = 1e-5


def random_tokens() -> np.ndarray:
    generator = np.random.default_rng(3)
    return np.where(MASK, generator.integers(1, VOCABULARY, MASK.shape), 0).astype(np.int32)


def keys_of(seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), ROWS)


@partial(jax.jit, static_argnums=(0, 1))
def run(attribution, name, params, tokens, lengths, keys):
    return attribution(make_model(name)[0], params, tokens, lengths, keys)


def attribute(attribution, name="cell-lstm", tokens=None, lengths=LENGTHS, keys=None) -> np.ndarray:
    tokens = random_tokens() if tokens is None else tokens
    inputs = jnp.asarray(tokens), jnp.asarray(lengths), keys_of() if keys is None else keys
    return np.asarray(run(attribution, name, make_model(name)[1], *inputs))


def reference_logit(vectors: np.ndarray) -> float:
    """Returns the logit of one text from its word vectors `[t e]`, by the float64 model."""
    _, params = make_model("cell-lstm")
    if len(vectors) == 0:
        vectors, length = np.zeros((1, 4)), 0
    else:
        length = len(vectors)
    batch = Batch(np.arange(len(vectors))[None], np.array([length]), np.zeros(1), np.ones(1))
    return reference_logits(jax.device_get(params) | {"embedding": vectors}, batch)[0]


def vectors_of(row: int) -> np.ndarray:
    _, params = make_model("cell-lstm")
    return np.asarray(params["embedding"], np.float64)[random_tokens()[row, : LENGTHS[row]]]


def gradient_at(vectors: np.ndarray) -> np.ndarray:
    """Returns the gradient of the logit by central differences."""
    gradient, step = np.zeros_like(vectors), 1e-5
    for index in np.ndindex(vectors.shape):
        offset = np.zeros_like(vectors)
        offset[index] = step
        gradient[index] = (
            reference_logit(vectors + offset) - reference_logit(vectors - offset)
        ) / (2 * step)
    return gradient


ROWS_WITH_TOKENS = (0, 2, 3)


SLOW_TO_COMPILE = ("smoothgrad", "integrated_gradients", "lime")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_TO_COMPILE))
        for name in ATTRIBUTIONS
    ],
)
def test_padding_has_weight_zero_and_more_padding_changes_no_weight(name):
    attribution = ATTRIBUTIONS[name]()
    weights = attribute(attribution)
    assert (weights[~MASK] == 0).all()
    assert (weights[0] != 0).all()
    padded = np.pad(random_tokens(), ((0, 0), (0, 3)))
    np.testing.assert_allclose(
        attribute(attribution, tokens=padded),
        np.pad(weights, ((0, 0), (0, 3))),
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_other_rows_of_the_batch_change_no_weight(name):
    attribution = ATTRIBUTIONS[name]()
    tokens, lengths, keys = random_tokens(), LENGTHS.copy(), keys_of(1)
    tokens[:3] = np.random.default_rng(4).integers(1, VOCABULARY, (3, STEPS))
    lengths[:3] = [5, 6, 0]
    weights = attribute(attribution, tokens=tokens, lengths=lengths, keys=keys)[3]
    expected = attribute(attribution, keys=jnp.concatenate([keys_of()[:3], keys[3:]]))[3]
    np.testing.assert_allclose(weights, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_gradients_equal_central_differences():
    gradient = attribute(ATTRIBUTIONS["gradient"]())
    times_input = attribute(GradientTimesInput())
    for row in ROWS_WITH_TOKENS:
        expected, vectors = gradient_at(vectors_of(row)), vectors_of(row)
        tokens = slice(LENGTHS[row])
        norms = np.linalg.norm(expected, axis=1)
        np.testing.assert_allclose(gradient[row, tokens], norms, atol=TOLERANCE)
        products = (vectors * expected).sum(axis=1)
        np.testing.assert_allclose(times_input[row, tokens], products, atol=TOLERANCE)


def test_gradient_can_hold_the_attention_constant():
    full, constant_attention = (attribute(GradientTimesInput(flag)) for flag in (True, False))
    assert np.abs(full - constant_attention).max() > 1e-4
    uniform = "attention-uniform"  # its weights do not depend on the inputs
    np.testing.assert_allclose(
        attribute(GradientTimesInput(False), uniform),
        attribute(GradientTimesInput(), uniform),
        atol=1e-6,
    )


def test_integrated_gradients_equal_a_midpoint_sum_of_the_float64_gradients():
    weights, parts = attribute(IntegratedGradients()), 20
    for row in (2, 3):
        vectors = vectors_of(row)
        midpoints = (np.arange(parts) + 0.5) / parts
        mean = sum(gradient_at(midpoint * vectors) for midpoint in midpoints) / parts
        # The midpoint rule has an error of order 1 / parts^2.
        expected = (vectors * mean).sum(axis=1)
        actual = weights[row, : LENGTHS[row]]
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE, rtol=1 / parts**2)
        one_point = attribute(IntegratedGradients(points=1))[row, : LENGTHS[row]]
        assert np.abs(one_point - expected).max() > 5 * np.abs(actual - expected).max()


@pytest.mark.parametrize("name", ["cell-lstm", "attention-dot", "pooling-max"])
def test_integrated_gradients_sum_to_the_change_in_the_logit(name):
    model, params = make_model(name)
    tokens, lengths = jnp.asarray(random_tokens()), jnp.asarray(LENGTHS)
    error_of, errors = jax.jit(partial(completeness_error, model)), []
    for points in (2, 32):
        weights = attribute(IntegratedGradients(points), name)
        errors.append(error_of(params, tokens, lengths, jnp.asarray(weights)))
    # Max pooling has kinks, where a quadrature for smooth functions is less accurate.
    assert float(errors[1].max()) < (0.01 if name == "pooling-max" else TOLERANCE)
    assert float(errors[0].max()) > 2 * float(errors[1].max())


def test_leave_one_out_equals_deleting_the_token():
    weights = attribute(LeaveOneOut())
    for row in ROWS_WITH_TOKENS:
        vectors = vectors_of(row)
        for t in range(LENGTHS[row]):
            expected = reference_logit(vectors) - reference_logit(np.delete(vectors, t, axis=0))
            np.testing.assert_allclose(weights[row, t], expected, atol=TOLERANCE)


@pytest.mark.slow
def test_smooth_gradient_without_noise_is_the_gradient_and_more_samples_reduce_its_variance():
    gradient = attribute(ATTRIBUTIONS["gradient"]())
    np.testing.assert_allclose(attribute(SmoothGrad(noise=0.0)), gradient, atol=TOLERANCE)
    assert np.abs(attribute(SmoothGrad()) - gradient).max() > 1e-3
    few, many = (
        [attribute(SmoothGrad(samples=samples), keys=keys_of(seed)) for seed in (0, 1)]
        for samples in (2, 100)
    )
    assert np.abs(many[0] - many[1]).max() < np.abs(few[0] - few[1]).max() / 3


def test_smooth_gradient_is_the_mean_over_noise_samples():
    smooth = SmoothGrad(samples=3, noise=0.3)
    weights, keys = attribute(smooth), keys_of()
    draw = partial(jax.random.normal, shape=vectors_of(0).shape[1:])
    noise = [np.asarray(draw_per_token(keys, STEPS, draw, number)) for number in range(3)]
    for row in ROWS_WITH_TOKENS:
        vectors, tokens = vectors_of(row), slice(LENGTHS[row])
        deviation = 0.3 * (vectors.max() - vectors.min())
        mean = np.mean([gradient_at(vectors + deviation * n[row, tokens]) for n in noise], axis=0)
        np.testing.assert_allclose(
            weights[row, tokens], np.linalg.norm(mean, axis=1), atol=TOLERANCE, rtol=TOLERANCE
        )


def test_lime_equals_the_ridge_regression_of_scikit_learn():
    lime, tokens = Lime(samples=20), random_tokens()
    keeps = np.asarray(lime.copies(jnp.asarray(tokens), jnp.asarray(LENGTHS), keys_of()))
    weights = attribute(lime)
    for row in (0, 3):
        tokens_of_row, vectors = slice(LENGTHS[row]), vectors_of(row)
        masks = keeps[:, row, tokens_of_row]
        assert masks[0].all()
        assert not masks[1:].all(axis=1).any()
        logits = [reference_logit(vectors[mask]) for mask in masks]
        distance = 1 - np.sqrt(masks.sum(axis=1) / LENGTHS[row])
        proximity = np.exp(-((distance / lime.width) ** 2))
        expected = Ridge(alpha=lime.ridge).fit(masks, logits, sample_weight=proximity).coef_
        np.testing.assert_allclose(weights[row, tokens_of_row], expected, atol=TOLERANCE)


def test_lime_samples_the_number_of_deleted_words_uniformly():
    lime = Lime(samples=3000)
    tokens, lengths = jnp.ones((1, 7), jnp.int32), jnp.array([5])
    masks = np.asarray(lime.copies(tokens, lengths, keys_of()[:1]))[1:, 0]
    assert not masks[:, 5:].any()
    counts = np.bincount(masks.sum(axis=1), minlength=5)
    assert len(counts) == 5
    # Five standard deviations: binomial of 3,000 draws at 0.2, and each word's frequency.
    assert np.abs(counts / 3000 - 0.2).max() < 0.04
    assert np.abs(masks[:, :5].mean(axis=0) - 0.4).max() < 0.05


def test_attention_attribution_equals_the_models_weights_or_zero_without_attention():
    model, params = make_model("cell-lstm")
    tokens, lengths = jnp.asarray(random_tokens()), jnp.asarray(LENGTHS)
    weights = attribute(ATTRIBUTIONS["attention"]())
    expected = jax.jit(model.__call__)(params, tokens, lengths).weights
    np.testing.assert_allclose(weights, expected, atol=1e-7)
    assert (attribute(ATTRIBUTIONS["attention"](), "pooling-last") == 0).all()


def test_random_weights_depend_only_on_the_key():
    weights = attribute(Random())
    np.testing.assert_array_equal(weights, attribute(Random(), "attention-dot"))
    assert (attribute(Random(), keys=keys_of(1))[MASK] != weights[MASK]).all()
    assert (weights < 1).all()


def test_compact_moves_the_remaining_tokens_to_the_front():
    keep = jnp.array([[True, False, True, False, True], [False, False, True, True, True]])
    positions, lengths = compact(jnp.array([4, 2]), keep)
    assert lengths.tolist() == [2, 0]
    assert positions[:2, 0].tolist() == [0, 2]


@pytest.mark.slow
def test_lime_does_not_deadlock_on_two_cpu_devices():
    # XLA runs batched linear solves on a thread pool that two devices can exhaust. At this size a
    # deadlock occurred within the first twenty batches.
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


# Synthetic task


def fraction_informative(attribution) -> float:
    """Returns the fraction of texts whose informative word has the largest weight.

    Signed weights are negated for label 0.
    """
    task = synthetic_task()
    labels, lengths = task.held_out.labels, task.held_out.lengths
    run = jax.jit(partial(attribution, task.model))
    inputs = jnp.asarray(task.tokens), jnp.asarray(lengths, jnp.int32)
    weights = np.array(run(task.params, *inputs, synthetic_keys(len(labels))))
    if attribution.signed:
        weights *= np.where(labels, 1, -1)[:, None]
    weights[np.arange(task.tokens.shape[1])[None] >= lengths[:, None]] = -np.inf
    return float((weights.argmax(axis=1) == task.positions).mean())


@pytest.mark.parametrize(
    "name",
    ["leave_one_out", "integrated_gradients", pytest.param("lime", marks=pytest.mark.slow)],
)
def test_informative_word_has_the_largest_weight(name):
    assert fraction_informative(ATTRIBUTIONS[name]()) > 0.95


def test_random_weights_do_not_find_the_informative_word():
    assert (
        fraction_informative(Random()) < 0.3
    )  # chance is about 1 in 10, since texts have about 10 words

"""Properties of the whole classifier, for every cell, encoder, attention and pooling."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_variants import (
    CONFIGS,
    SMALL,
    VOCABULARY,
    every_variant,
    initial,
    make_model,
)

from bilstm_attn.config import ModelConfig
from bilstm_attn.errors import UserError
from bilstm_attn.nn.dropout import dropout_mask
from bilstm_attn.nn.model import Model

STEPS = 4
LENGTHS = np.array([4, 0, 1, 2, 3])
ROWS = len(LENGTHS)
PADDING = np.arange(STEPS)[None] >= LENGTHS[:, None]
# float32 rounding, where the compiler may order sums differently; logits are of order 1.
TOLERANCE = 2e-6


@partial(jax.jit, static_argnums=0)
def output_without_dropout(name, params, tokens, lengths=LENGTHS):
    """Returns the output without dropout."""
    return make_model(name)[0](params, tokens, jnp.asarray(lengths))


@partial(jax.jit, static_argnums=0)
def loss_and_gradients(name, params, inputs, lengths, keys):
    """Returns (loss, output) and the gradients of the loss in the parameters and word vectors."""
    model, _ = make_model(name)

    def loss(params, inputs):
        output = model.classify(params, inputs, lengths, keys)
        return jnp.sin(output.logits).sum(), output

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, inputs)


def run(name, keys, tokens=None, lengths=LENGTHS, inputs=None):
    """Returns the output and the gradients in the parameters and word vectors; keys: dropout."""
    model, params = make_model(name)
    if inputs is None:
        inputs = model.embed(params, jnp.asarray(random_tokens() if tokens is None else tokens))
    (_, output), gradients = loss_and_gradients(name, params, inputs, jnp.asarray(lengths), keys)
    return output, *gradients


def random_tokens(seed=0):
    tokens = np.random.default_rng(seed).integers(1, VOCABULARY, (ROWS, STEPS)).astype(np.int32)
    return np.where(PADDING, 0, tokens)


def keys_of(seed):
    return jax.random.split(jax.random.key(seed), ROWS)


def assert_trees_close(actual, expected, tolerance):
    compare = partial(np.testing.assert_allclose, atol=tolerance, rtol=tolerance)
    jax.tree.map(compare, actual, expected)


def assert_same_bits(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


PADDED = np.pad(random_tokens(), ((0, 0), (0, 4)))


@every_variant
def test_more_padding_changes_no_output(name):
    _, params = make_model(name)
    short, long = (
        output_without_dropout(name, params, random_tokens()),
        output_without_dropout(name, params, PADDED),
    )
    np.testing.assert_allclose(long.logits, short.logits, atol=TOLERANCE)
    np.testing.assert_allclose(long.weights[:, :STEPS], short.weights, atol=TOLERANCE)
    assert (np.asarray(long.weights[:, STEPS:]) == 0).all()
    assert (np.asarray(long.states[:, STEPS:]) == 0).all()


@pytest.mark.slow  # compiles a gradient per variant
@every_variant
def test_more_padding_changes_no_gradient(name):
    short, d_params, d_inputs = run(name, keys_of(1))
    long, long_d_params, long_d_inputs = run(name, keys_of(1), PADDED)
    np.testing.assert_allclose(long.logits, short.logits, atol=TOLERANCE)
    assert_trees_close(long_d_params, d_params, TOLERANCE * 5)  # sums of tens of such terms
    np.testing.assert_allclose(long_d_inputs[:STEPS], d_inputs, atol=TOLERANCE)


@every_variant
def test_tokens_at_padding_change_no_bit_of_outputs_or_gradients(name):
    tokens = np.where(PADDING, 5, random_tokens())
    assert_same_bits(run(name, keys_of(1), tokens), run(name, keys_of(1)))


@every_variant
def test_nan_at_padding_reaches_no_output_or_gradient(name):
    model, params = make_model(name)
    inputs = model.embed(params, jnp.asarray(random_tokens()))
    with_nan = jnp.where(PADDING.T[..., None], jnp.nan, inputs)
    expected = run(name, keys_of(1), inputs=inputs)
    assert_same_bits(run(name, keys_of(1), inputs=with_nan), expected)
    assert (np.asarray(expected[2])[PADDING.T] == 0).all()


@every_variant
def test_permuting_rows_permutes_outputs(name):
    order = np.array([3, 0, 4, 2, 1])
    original, d_params, _ = run(name, keys_of(1))
    permuted, permuted_d_params, _ = run(
        name, keys_of(1)[order], random_tokens()[order], LENGTHS[order]
    )
    np.testing.assert_allclose(permuted.logits, original.logits[order], atol=TOLERANCE)
    np.testing.assert_allclose(permuted.weights, original.weights[order], atol=TOLERANCE)
    assert_trees_close(permuted_d_params, d_params, TOLERANCE * 5)


def swap_directions(params):
    """Returns the parameters of the model that reads every example in reverse."""
    half = SMALL["hidden_size"]

    def swap_rows(matrix):
        return jnp.concatenate([matrix[half:], matrix[:half]])

    swapped = jax.tree.map(lambda leaf: leaf, params)
    if "layers" not in swapped["encoder"]:  # an encoder without directions
        return swapped
    for depth, layer in swapped["encoder"]["layers"].items():
        layer["forward"], layer["backward"] = layer["backward"], layer["forward"]
        if depth > 0:  # its inputs are both directions of the layer below
            for direction in ("forward", "backward"):
                layer[direction]["input_kernel"] = swap_rows(layer[direction]["input_kernel"])
    for name in ("states_kernel", "query_kernel", "kernel"):
        if name in swapped.get("attention", {}):
            swapped["attention"][name] = swap_rows(swapped["attention"][name])
    head = "dense" if "dense" in swapped else "logit"
    swapped[head]["kernel"] = swap_rows(swapped[head]["kernel"])
    return swapped


@every_variant
def test_reversing_an_example_swaps_the_directions(name):
    _, params = make_model(name)
    tokens = random_tokens()
    reversed_tokens = np.zeros_like(tokens)
    for row, length in enumerate(LENGTHS):
        reversed_tokens[row, :length] = tokens[row, :length][::-1]
    original = output_without_dropout(name, params, tokens)
    swapped = output_without_dropout(name, swap_directions(params), reversed_tokens)
    np.testing.assert_allclose(swapped.logits, original.logits, atol=TOLERANCE)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(
            swapped.weights[row, :length], original.weights[row, :length][::-1], atol=TOLERANCE
        )


@every_variant
@pytest.mark.parametrize("length", [0, 1])
def test_short_examples_have_finite_outputs_and_gradients(name, length):
    results = run(name, keys_of(1), lengths=np.full(ROWS, length))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


@every_variant
def test_jit_equals_eager(name):
    model, params = make_model(name)
    arguments = params, jnp.asarray(random_tokens()), jnp.asarray(LENGTHS)
    with jax.disable_jit():
        eager = model(*arguments)
    assert_trees_close(output_without_dropout(name, *arguments), eager, TOLERANCE)


@every_variant
def test_the_key_determines_every_bit_of_parameters_and_outputs(name):
    assert_same_bits(initial(name, 3), initial(name, 3))
    assert not np.array_equal(initial(name, 3)["embedding"], initial(name, 4)["embedding"])
    first, repeated, other = (run(name, keys_of(seed))[0] for seed in (1, 1, 2))
    assert_same_bits(repeated, first)
    assert not np.array_equal(first.logits, other.logits)


@every_variant
def test_every_parameter_has_a_gradient(name):
    # Dropout may hide a parameter with one seed, so take the largest gradient of several seeds.
    gradients = [run(name, keys_of(seed))[1:] for seed in range(16)]
    d_params, d_inputs = jax.tree.map(lambda *seeds: np.abs(seeds).max(axis=0), *gradients)
    leaves = jax.tree_util.tree_leaves_with_path(d_params)
    without_gradient = [jax.tree_util.keystr(path) for path, leaf in leaves if not leaf.max() > 0]
    assert without_gradient == ["['embedding']"]  # the inputs of `classify` are word vectors
    assert (d_inputs.max(axis=-1)[~PADDING.T] > 0).all()


def test_only_words_in_the_batch_get_a_gradient_in_the_embedding():
    model, params = make_model("cell-lstm")
    tokens = jnp.asarray(np.where(PADDING, 10, np.minimum(random_tokens(), 9)))

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sin(model(params, tokens, jnp.asarray(LENGTHS)).logits).sum()

    has_gradient = np.abs(np.asarray(gradient(params)["embedding"])).max(axis=1) > 0
    assert set(np.flatnonzero(has_gradient)) == set(np.asarray(tokens)[~PADDING])


@every_variant
def test_logits_given_weights_match_logits_from_states(name):
    model, params = make_model(name)
    lengths = jnp.asarray(LENGTHS)
    states, last = model.encode(params, model.embed(params, jnp.asarray(random_tokens())), lengths)
    weights = jnp.asarray(np.random.default_rng(0).random(PADDING.T.shape), jnp.float32)
    weights *= ~PADDING.T
    np.testing.assert_allclose(
        model.make_logits_given_weights(params, states, last, lengths)(weights),
        model.logits_from_states(params, states, last, weights, lengths),
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )


def test_without_keys_no_dropout_is_applied():
    config = dataclasses.replace(CONFIGS["cell-lstm"], input_dropout=0.0, head_dropout=0.0)
    _, params = make_model("cell-lstm")
    arguments = jnp.asarray(random_tokens()), jnp.asarray(LENGTHS)
    rate_of_zero = jax.jit(Model(config, VOCABULARY).__call__)(params, *arguments, keys_of(1))
    without_keys = output_without_dropout("cell-lstm", params, *arguments)
    np.testing.assert_allclose(without_keys.logits, rate_of_zero.logits, atol=TOLERANCE)


def test_dropout_preserves_the_mean():
    keys = jax.random.split(jax.random.key(0), 2000)
    mask = np.asarray(dropout_mask(keys, "layer0.forward", 0.25, 8))
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    # 16,000 draws: five standard deviations of the mean.
    assert abs(mask.mean() - 1) < 5 * np.sqrt(0.25 / 0.75 / mask.size)


def test_word_dropout_drops_all_occurrences_of_a_word_in_an_example_or_none():
    model = Model(ModelConfig(word_dropout=0.25, **SMALL), VOCABULARY)
    params = jax.jit(model.init)(jax.random.key(0))
    embed = jax.jit(model.embed)
    tokens = np.tile(np.arange(VOCABULARY, dtype=np.int32), (400, 2))
    keys = jax.random.split(jax.random.key(0), len(tokens))
    scale = np.asarray(embed(params, tokens, keys) / embed(params, tokens))
    assert_same_bits(scale[:VOCABULARY], scale[VOCABULARY:])
    dropped = scale[:VOCABULARY, :, 0] == 0
    np.testing.assert_allclose(scale[:VOCABULARY][~dropped], 1 / 0.75, rtol=1e-6)
    # 4,400 draws: five standard deviations of the mean. Words and examples are drawn independently.
    assert abs(dropped.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / dropped.size)
    assert len({row.tobytes() for row in dropped}) == VOCABULARY
    assert len({column.tobytes() for column in dropped.T}) > 100
    padded = np.pad(tokens, ((0, 0), (0, 3)))
    assert_same_bits(embed(params, padded, keys)[: 2 * VOCABULARY], embed(params, tokens, keys))


def test_directions_layers_and_examples_have_different_dropout_masks():
    keys = jax.random.split(jax.random.key(0), 3)
    names = ["layer0.forward", "layer0.backward", "layer1.forward", "head"]
    masks = [np.asarray(dropout_mask(keys, name, 0.5, 64)) for name in names]
    rows = [mask[row].tobytes() for mask in masks for row in range(3)]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("matmul_precision", "expected"),
    [
        ("float32", {"HIGHEST"}),
        ("tensorfloat32", {"HIGHEST", "HIGH"}),
        ("bfloat16", {"HIGHEST", "DEFAULT"}),
    ],
)
def test_only_the_recurrence_uses_the_matmul_precision(matmul_precision, expected):
    model = Model(ModelConfig(**SMALL, layers=1, matmul_precision=matmul_precision), 15, "plain")
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens, lengths = jnp.ones((2, 3), jnp.int32), jnp.ones(2, jnp.int32)

    def loss(params):
        return model(params, tokens, lengths).logits.sum()

    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    precisions = re.findall(r"dot_general .*precision = \[(\w+), (\w+)\]", text)
    assert {precision for pair in precisions for precision in pair} == expected
    assert text.count("dot_general ") == len(precisions)
    assert ("lhs_precision_type = bf16" in text) == (matmul_precision == "bfloat16")


def test_tutorial_model_has_the_parameter_count_of_the_tutorial():
    params = Model(ModelConfig(), 10_000).init(jax.random.key(0))
    sizes = {
        "embedding": 10_000 * 128,
        "layers": 2 * 2 * (128 * 256 + 64 * 256 + 256),
        "attention": 2 * 128 * 64 + 64 + 64,
        "head": 128 * 20 + 20 + 20 + 1,
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(sizes.values())
    assert np.abs(params["embedding"]).max() <= 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cell": "lsmt"}, r"unknown cell 'lsmt'; choose gru, lstm \(did you mean 'lstm'\?\)"),
        ({"attention": "dott"}, "unknown attention 'dott'.*did you mean 'dot'"),
        ({"pooling": "median"}, "unknown pooling 'median'; choose attention, last"),
        ({"cell_options": {"bias": 1}}, "unknown option 'bias' of cell 'lstm'; choose forget_bias"),
        ({"pooling": "max", "attention_options": {"a": 1}}, "'max' uses no attention; leave out"),
        ({"cell": "gru", "cell_options": {"bias": 1}}, "of cell 'gru'; it takes none"),
    ],
)
def test_unknown_name_or_option_is_an_error_that_lists_the_choices(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(Model(ModelConfig(**fields), VOCABULARY).init, jax.random.key(0))


def test_options_are_passed_to_the_constructor():
    model = Model(ModelConfig(cell_options={"forget_bias": 2.5}, **SMALL), VOCABULARY)
    bias = jax.jit(model.init)(jax.random.key(0))["encoder"]["layers"][0]["forward"]["bias"]
    np.testing.assert_array_equal(bias, [0] * 3 + [2.5] * 3 + [0] * 6)

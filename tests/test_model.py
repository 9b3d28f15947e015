"""Contracts of the whole classifier, over every entry of every table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilstm_attn.attention import ATTENTIONS
from bilstm_attn.cells import CELLS
from bilstm_attn.config import ModelConfig
from bilstm_attn.dropout import dropout_mask
from bilstm_attn.errors import UserError
from bilstm_attn.model import Model
from bilstm_attn.pooling import POOLINGS

VOCABULARY, STEPS = 11, 7
LENGTHS = np.array([7, 0, 1, 4, 6])
ROWS = len(LENGTHS)
SMALL = {"embedding_size": 4, "hidden_size": 3, "attention_size": 5, "dense_size": 2}
# float32 rounding where the compiler may order sums differently; logits are of size 1.
TOLERANCE = 2e-6

CONFIGS = {
    **{f"cell-{name}": ModelConfig(cell=name, **SMALL) for name in CELLS},
    **{f"attention-{name}": ModelConfig(attention=name, **SMALL) for name in ATTENTIONS},
    **{f"pooling-{name}": ModelConfig(pooling=name, **SMALL) for name in POOLINGS},
}
every_entry = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def make_model(config):
    """Returns the model and parameters large enough for logits of size 1."""
    model = Model(config, VOCABULARY)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        model.init(jax.random.key(0)),
    )
    return model, params


def random_tokens(seed=0):
    tokens = np.random.default_rng(seed).integers(1, VOCABULARY, (ROWS, STEPS)).astype(np.int32)
    tokens[np.arange(STEPS)[None] >= LENGTHS[:, None]] = 0
    return jnp.asarray(tokens)


def loss(model, params, tokens, lengths, keys=None):
    return jnp.sin(model(params, tokens, lengths, keys).logits).sum()


def assert_trees_close(one, two, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), one, two)


@every_entry
def test_more_padding_changes_nothing(config):
    model, params = make_model(config)
    tokens, lengths = random_tokens(), jnp.asarray(LENGTHS)
    longer = jnp.pad(tokens, ((0, 0), (0, 4)))
    short, long = model(params, tokens, lengths), model(params, longer, lengths)
    np.testing.assert_allclose(long.logits, short.logits, atol=TOLERANCE)
    np.testing.assert_allclose(long.weights[:, :STEPS], short.weights, atol=TOLERANCE)
    assert (np.asarray(long.weights[:, STEPS:]) == 0).all()
    gradients = [jax.grad(loss, 1)(model, params, given, lengths) for given in (tokens, longer)]
    assert_trees_close(*gradients, tolerance=TOLERANCE * 10)  # sums of tens of terms of size 1


@every_entry
def test_content_of_padding_changes_no_bit_in_value_or_gradient(config):
    model, params = make_model(config)
    tokens, lengths = random_tokens(), jnp.asarray(LENGTHS)
    padding = jnp.arange(STEPS)[None] >= lengths[:, None]
    other = jnp.where(padding, 5, tokens)
    keys = jax.random.split(jax.random.key(1), ROWS)
    value_and_gradient = jax.value_and_grad(loss, 1)
    one = value_and_gradient(model, params, tokens, lengths, keys)
    two = value_and_gradient(model, params, other, lengths, keys)
    jax.tree.map(np.testing.assert_array_equal, one, two)


@every_entry
def test_even_nan_at_padding_reaches_nothing(config):
    model, params = make_model(config)
    tokens, lengths = random_tokens(), jnp.asarray(LENGTHS)
    inputs = model.embed(params, tokens)
    padding = (jnp.arange(STEPS)[:, None] >= lengths[None])[..., None]

    def of_inputs(inputs):
        return jnp.sin(model.classify(params, inputs, lengths).logits).sum()

    value, gradient = jax.value_and_grad(of_inputs)(inputs)
    poisoned_value, poisoned = jax.value_and_grad(of_inputs)(jnp.where(padding, jnp.nan, inputs))
    assert poisoned_value == value
    np.testing.assert_array_equal(poisoned, gradient)
    assert (np.asarray(gradient)[np.broadcast_to(padding, gradient.shape)] == 0).all()


@every_entry
def test_permuting_rows_permutes_outputs(config):
    model, params = make_model(config)
    tokens, lengths = random_tokens(), jnp.asarray(LENGTHS)
    keys = jax.random.split(jax.random.key(1), ROWS)
    order = np.array([3, 0, 4, 2, 1])
    straight = model(params, tokens, lengths, keys)
    permuted = model(params, tokens[order], lengths[order], keys[order])
    np.testing.assert_allclose(permuted.logits, straight.logits[order], atol=TOLERANCE)
    np.testing.assert_allclose(permuted.weights, straight.weights[order], atol=TOLERANCE)


def swap_directions(params):
    """Returns the parameters of the model that reads every review backwards."""
    half = SMALL["hidden_size"]

    def swap_rows(matrix):
        return jnp.concatenate([matrix[half:], matrix[:half]])

    swapped = jax.tree.map(lambda leaf: leaf, params)
    for depth, layer in swapped["encoder"]["layers"].items():
        layer["forward"], layer["backward"] = layer["backward"], layer["forward"]
        if depth > 0:  # reads both directions of the layer below
            for way in ("forward", "backward"):
                layer[way]["input_kernel"] = swap_rows(layer[way]["input_kernel"])
    for name in ("states_kernel", "query_kernel", "kernel"):
        if name in swapped.get("attention", {}):
            swapped["attention"][name] = swap_rows(swapped["attention"][name])
    swapped["dense"]["kernel"] = swap_rows(swapped["dense"]["kernel"])
    return swapped


@every_entry
def test_reversing_a_review_swaps_the_directions(config):
    model, params = make_model(config)
    tokens, lengths = random_tokens(), jnp.asarray(LENGTHS)
    turned = np.zeros_like(tokens)
    for row, length in enumerate(LENGTHS):
        turned[row, :length] = np.asarray(tokens)[row, :length][::-1]
    straight = model(params, tokens, lengths)
    swapped = model(swap_directions(params), jnp.asarray(turned), lengths)
    np.testing.assert_allclose(swapped.logits, straight.logits, atol=TOLERANCE)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(
            swapped.weights[row, :length], straight.weights[row, :length][::-1], atol=TOLERANCE
        )


@every_entry
@pytest.mark.parametrize("length", [0, 1])
def test_short_reviews_are_finite_in_value_and_gradient(config, length):
    model, params = make_model(config)
    lengths = jnp.full(ROWS, length)
    keys = jax.random.split(jax.random.key(1), ROWS)
    value, gradient = jax.value_and_grad(loss, 1)(model, params, random_tokens(), lengths, keys)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@every_entry
def test_jit_equals_eager(config):
    model, params = make_model(config)
    given = params, random_tokens(), jnp.asarray(LENGTHS), jax.random.split(jax.random.key(1), ROWS)
    compiled = jax.jit(model.__call__)(*given)
    with jax.disable_jit():
        eager = model(*given)
    assert_trees_close(compiled, eager, TOLERANCE)


@every_entry
def test_same_key_same_bits_and_another_key_others(config):
    model = Model(config, VOCABULARY)
    first, again, other = (model.init(jax.random.key(seed)) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["embedding"], other["embedding"])
    tokens, lengths = random_tokens(), jnp.asarray(LENGTHS)
    _, params = make_model(config)
    logits = [
        np.asarray(model(params, tokens, lengths, jax.random.split(jax.random.key(k), ROWS)).logits)
        for k in (1, 1, 2)
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.array_equal(logits[0], logits[2])


@every_entry
def test_every_parameter_has_a_gradient(config):
    model, params = make_model(config)
    lengths = jnp.asarray([7, 2, 3, 4, 6])
    gradient = jax.grad(loss, 1)(model, params, random_tokens(), lengths)
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.abs(leaf).max() > 0
    ]
    assert still == []


def test_without_keys_there_is_no_noise_and_with_them_the_mean_stays():
    model, params = make_model(ModelConfig(**SMALL))
    tokens, lengths = random_tokens(), jnp.asarray(LENGTHS)
    one, two = (model(params, tokens, lengths).logits for _ in range(2))
    np.testing.assert_array_equal(one, two)
    keys = jax.random.split(jax.random.key(0), 2000)
    mask = np.asarray(dropout_mask(keys, "layer0.forward", 0.25, 8))
    assert set(np.unique(mask)) == {0.0, np.float32(1 / np.float32(0.75))}
    # 16,000 draws: five standard deviations of the mean.
    assert abs(mask.mean() - 1) < 5 * np.sqrt(0.25 / 0.75 / mask.size)


def test_directions_layers_and_reviews_have_noise_of_their_own():
    keys = jax.random.split(jax.random.key(0), 3)
    names = ["layer0.forward", "layer0.backward", "layer1.forward", "head"]
    masks = [np.asarray(dropout_mask(keys, name, 0.5, 64)) for name in names]
    rows = [mask[row].tobytes() for mask in masks for row in range(3)]
    assert len(set(rows)) == len(rows)


def test_tutorial_model_has_the_tutorials_parameters():
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
    ("field", "given", "message"),
    [
        ("cell", {"cell": "lsmt"}, "unknown cell 'lsmt'; choose gru, lstm .did you mean 'lstm'?"),
        ("attention", {"attention": "dott"}, "unknown attention 'dott'.*did you mean 'dot'"),
        ("pooling", {"pooling": "median"}, "unknown pooling 'median'; choose attention, last"),
        ("option", {"cell_options": {"bias": 1}}, "unknown option 'bias' of cell 'lstm'; choose"),
        ("gru", {"cell": "gru", "cell_options": {"bias": 1}}, "of cell 'gru'; it takes none"),
    ],
)
def test_unknown_names_are_one_line_with_the_choices(field, given, message):
    del field
    with pytest.raises(UserError, match=message):
        Model(ModelConfig(**given), VOCABULARY).init(jax.random.key(0))

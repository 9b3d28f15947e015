"""The GPU and TPU kernels in Pallas' interpreter compared with the scan; lowering; bad input."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_run import error_of

from bilstm_attn.config import Config, ModelConfig
from bilstm_attn.nn.backend import choose_backend
from bilstm_attn.nn.encoder import Bidirectional
from bilstm_attn.nn.kernels import pallas, pallas_tpu
from bilstm_attn.nn.model import Model

pytestmark = pytest.mark.slow


@pytest.fixture(params=["gpu", "tpu"])
def device(request, monkeypatch):
    """Selects the kernel of a device, with TPU tiles and chunks smaller than the test cases."""
    monkeypatch.setattr(pallas_tpu, "MOST_ROWS", 8)
    monkeypatch.setattr(pallas_tpu, "MOST_STEPS", 2)
    options = partial(pallas.KernelOptions, request.param, interpret=True)
    monkeypatch.setattr(pallas, "here", options)
    return request.param


def layer_of(backend, hidden, inputs_size, noisy=True, **config):
    """Returns the parameters of a layer, and the layer as a pure function of its parameters."""
    config = ModelConfig(hidden_size=hidden, **config)
    layer = Bidirectional(inputs_size, config, backend, name="test", rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)

    def run(params, inputs, lengths, keys):
        return nnx.merge(graph, params)(inputs, lengths, keys if noisy else None)

    return params, run


def make_batch(steps, rows, inputs_size):
    """Returns inputs, lengths (among them 0) and keys; the first tile of 16 rows is shorter."""
    inputs = jax.random.normal(jax.random.key(1), (steps, rows, inputs_size))
    lengths = (steps - jnp.arange(rows)) % (steps + 1)  # steps, ..., 0, repeated
    lengths = lengths.at[-1].set(0)
    lengths = jnp.where(jnp.arange(rows) < 16, jnp.minimum(lengths, 3), lengths)
    return inputs, lengths, jax.random.split(jax.random.key(0), rows)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(run, params, inputs, lengths, keys):
    def loss(params, inputs):
        states, last = run(params, inputs, lengths, keys)
        return jnp.sin(states).sum() + jnp.cos(last).sum(), (states, last)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, inputs)


@pytest.mark.parametrize(
    ("hidden", "rows", "inputs_size", "steps", "noisy"),
    [(3, 5, 4, 6, True), (16, 16, 3, 1, False), (20, 33, 7, 5, True)],
)
def test_states_and_gradients_match_the_scan(hidden, rows, inputs_size, steps, noisy, device):
    inputs, lengths, keys = make_batch(steps, rows, inputs_size)
    actual, expected = (
        value_and_gradients(run, params, inputs, lengths, keys)
        for params, run in (
            layer_of(backend, hidden, inputs_size, noisy) for backend in ("pallas", "scan")
        )
    )
    # float32 rounding: gradients are sums of about a hundred terms of order 1.
    compare = partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
    jax.tree.map(compare, actual, expected)


def test_states_at_padding_are_zero_and_inputs_at_padding_are_not_used(device):
    inputs, lengths, keys = make_batch(6, 5, 4)
    padding = np.arange(6)[:, None] >= np.asarray(lengths)
    params, run = layer_of("pallas", 3, 4)
    (_, (states, _)), (_, d_inputs) = value_and_gradients(run, params, inputs, lengths, keys)
    assert (np.asarray(states)[padding] == 0).all()
    assert (np.asarray(d_inputs)[padding] == 0).all()
    longest = lengths == lengths.max()
    jax.tree.map(  # a length above the number of time steps equals that number
        np.testing.assert_array_equal,
        value_and_gradients(run, params, inputs, jnp.where(longest, 9, lengths), keys),
        value_and_gradients(run, params, inputs, jnp.where(longest, 6, lengths), keys),
    )
    with_nan = jnp.where(padding[..., None], jnp.nan, inputs)
    jax.tree.map(
        np.testing.assert_array_equal,
        value_and_gradients(run, params, with_nan, lengths, keys),
        value_and_gradients(run, params, inputs, lengths, keys),
    )


def test_bfloat16_matmuls_are_within_rounding_of_float32(device):
    inputs, lengths, keys = make_batch(6, 5, 4)
    exact, rounded = (
        value_and_gradients(run, params, inputs, lengths, keys)
        for params, run in (
            layer_of("pallas", 3, 4, matmul_precision=matmul_precision)
            for matmul_precision in ("float32", "bfloat16")
        )
    )
    errors = [
        float(np.abs(actual - expected).max() / np.abs(expected).max())
        for actual, expected in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True)
    ]
    assert 1e-4 < max(errors) < 6 * 2**-8  # each step rounds its operands


@pytest.mark.slow
def test_vmap_over_seeds_and_jax_checkpoint_change_no_result(device):
    inputs, lengths, keys = make_batch(4, 5, 4)
    params, run = layer_of("pallas", 3, 4)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, doubled)
    results = jax.jit(jax.vmap(run, (0, None, None, None)))(stacked, inputs, lengths, keys)
    run_single = jax.jit(run)
    for seed, seed_params in enumerate((params, doubled)):
        expected = run_single(seed_params, inputs, lengths, keys)
        for array, expected_array in zip(results, expected, strict=True):
            np.testing.assert_allclose(array[seed], expected_array, atol=1e-6)
    compare = partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
    actual = value_and_gradients(jax.checkpoint(run), params, inputs, lengths, keys)
    jax.tree.map(compare, actual, value_and_gradients(run, params, inputs, lengths, keys))


def lowered_gradient(device, matmul_precision, hidden):
    """Returns the gradient of a layer, lowered for a device that this machine need not have."""
    shapes = ((50, 32, 8), (32,), (2, 8 + hidden, 4 * hidden), (2, 4 * hidden), (2, 32, 8))
    dtypes = (jnp.float32, jnp.int32, jnp.float32, jnp.float32, jnp.float32)
    arrays = [jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, dtypes, strict=True)]

    def loss(*arguments):
        states, last = pallas.lstm(*arguments, pallas.KernelOptions(device, matmul_precision))
        return states.sum() + last.sum()

    platform = {"gpu": "cuda"}.get(device, device)
    with abstract_gpu() if device == "gpu" else contextlib.nullcontext():
        traced = jax.jit(jax.grad(loss, (0, 2, 3))).trace(*arrays)
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("matmul_precision", "hidden"), [("float32", 64), ("tensorfloat32", 64), ("bfloat16", 128)]
)
def test_kernel_lowers_for_cuda(matmul_precision, hidden):
    text = lowered_gradient("gpu", matmul_precision, hidden)
    assert text.count("__gpu$xla.gpu.triton") == 2  # forward and backward


@pytest.mark.parametrize(("matmul_precision", "hidden"), [("float32", 64), ("bfloat16", 512)])
def test_kernel_lowers_for_tpu(matmul_precision, hidden):
    text = lowered_gradient("tpu", matmul_precision, hidden)
    assert text.count("tpu_custom_call") == 2  # forward and backward


def test_vmap_over_batches_lowers_for_tpu():
    shapes = ((3, 9, 8, 4), (3, 8), (3, 68, 256), (3, 2, 256))
    options = pallas.KernelOptions("tpu")

    def run(inputs, lengths, kernel, biases):
        kernels = jnp.stack([kernel, kernel])
        return pallas.lstm(inputs, lengths, kernels, biases, jnp.zeros(0), options)[0]

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    arrays[1] = jax.ShapeDtypeStruct(shapes[1], jnp.int32)
    traced = jax.jit(jax.vmap(run)).trace(*arrays)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_tensorfloat32_is_not_supported_on_tpu():
    assert pallas.most_hidden(pallas.KernelOptions("tpu", "tensorfloat32")) == 0


def abstract_gpu():
    """Returns a context manager for lowering without a GPU, which jax 0.11 and later need."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def test_second_derivatives_and_forward_mode_are_errors():
    inputs, lengths, keys = make_batch(4, 5, 4)
    params, run = layer_of("pallas", 3, 4)
    forward = partial(jax.jvp, lambda params: run(params, inputs, lengths, keys)[1])
    message = error_of(forward, (params,), (params,))
    assert message == "backend pallas does not support forward mode; use backend plain"
    gradient = jax.grad(lambda inputs: run(params, inputs, lengths, keys)[1].sum())
    message = error_of(jax.jvp, gradient, (inputs,), (inputs,))
    assert message.startswith("backend pallas does not support second derivatives; apply jax.lax")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"cell": "gru"}, "it does not support cell 'gru'"),
        ({"remat": True}, "it does not support model.remat"),
        ({"hidden_size": 65}, "it supports at most 64 hidden units with matmuls in float32"),
        (
            {"hidden_size": 129, "matmul_precision": "bfloat16"},
            "it supports at most 128 hidden units with matmuls in bfloat16",
        ),
    ],
)
def test_unsupported_model_is_an_error(model, reason):
    message = error_of(Model, ModelConfig(**model), 5, "pallas")
    assert message == f"backend pallas cannot run this model: {reason}; use backend scan"


def test_pallas_on_a_cpu_is_an_error():
    message = error_of(choose_backend, "pallas", Config(), print)
    reason = "it needs a gpu or tpu, got a cpu"
    assert message == f"backend pallas is not available ({reason}); or give --backend scan"

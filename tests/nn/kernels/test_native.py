"""The native kernel and the scans compared with reference loops; masks, threads, bad input."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from tiny_run import error_of, full_disk

from bilstm_attn.config import Config, ModelConfig
from bilstm_attn.nn.backend import choose_backend, prepare_native
from bilstm_attn.nn.cells import CELLS, LSTM
from bilstm_attn.nn.kernels import native
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.recurrence import Noise, make_bidirectional_reencoder, run_bidirectional

prepare_native()

# (steps, rows, inputs, hidden units): all 1, odd sizes, several tiles of rows, several blocks.
SIZES = [
    (1, 1, 1, 1),
    (7, 5, 4, 6),
    (5, 49, 3, 17),
    (6, 25, 70, 64),
    (4, 30, 5, 130),
    (20, 530, 2, 3),
]
every_size = pytest.mark.parametrize("size", SIZES)
BACKENDS = ("native", "scan", "plain")
every_backend = pytest.mark.parametrize("backend", BACKENDS)


class Layer:
    """A bidirectional layer with random parameters, inputs, noise and lengths."""

    def __init__(self, steps, rows, inputs, hidden):
        generator = np.random.default_rng(hidden)
        self.cells = [LSTM(inputs, hidden, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
        for cell in self.cells:
            for name in ("input_kernel", "recurrent_kernel", "bias"):
                values = generator.normal(size=getattr(cell, name)[...].shape) / np.sqrt(hidden)
                setattr(cell, name, nnx.Param(jnp.asarray(values, jnp.float32)))
        self.graph, self.params = nnx.split(nnx.List(self.cells))
        self.inputs = jnp.asarray(generator.normal(size=(steps, rows, inputs)), jnp.float32)
        self.noises = jnp.asarray(generator.normal(size=(2, rows, inputs)), jnp.float32)
        self.lengths = generator.integers(0, steps + 1, rows)
        self.lengths[:3] = [steps, 0, 1][:rows]
        self.cotangents = [
            generator.normal(size=shape).astype(np.float32)
            for shape in ((steps, rows, 2 * hidden), (rows, 2 * hidden))
        ]

    def run(self, backend, params, inputs, noises):
        pair = (Noise(), Noise()) if noises is None else tuple(map(Noise, noises))
        cells, lengths = nnx.merge(self.graph, params), jnp.asarray(self.lengths)
        return run_bidirectional(*cells, inputs, lengths, noises=pair, backend=backend)

    def loss(self, backend, params, inputs, noises):
        results = self.run(backend, params, inputs, noises)
        return sum((a * b).sum() for a, b in zip(results, self.cotangents, strict=True))

    def gradients(self, backend, noisy=True):
        noises = self.noises if noisy else None
        gradient = jax.jit(jax.grad(partial(self.loss, backend), (0, 1, 2)))
        return gradient(self.params, self.inputs, noises)


def assert_close(actual, expected):
    """Asserts that each array differs by at most float32 rounding of its largest value."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * max(np.abs(e).max(initial=0), 1e-3), rtol=0)


@every_size
@every_backend
def test_states_match_the_reference_loop(size, backend):
    layer = Layer(*size)
    states, last = jax.jit(partial(layer.run, backend))(layer.params, layer.inputs, None)
    expected = []
    for direction, cell in enumerate(layer.cells):
        params = {
            name: getattr(cell, name)[...] for name in ("input_kernel", "recurrent_kernel", "bias")
        }
        expected.append(
            oracles.lstm(params, np.asarray(layer.inputs), layer.lengths, reverse=bool(direction))
        )
    for actual, directions in zip((states, last), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(actual, np.concatenate(directions, axis=-1), atol=2e-6)


@pytest.mark.parametrize(("size", "noisy"), [(SIZES[1], False), *[(size, True) for size in SIZES]])
def test_gradients_match_the_plain_backend(size, noisy):
    layer = Layer(*size)
    expected = layer.gradients("plain", noisy)
    padding = np.arange(size[0])[:, None] >= layer.lengths
    for backend in ("native", "scan"):
        gradients = layer.gradients(backend, noisy)
        assert_close(gradients, expected)
        assert (np.asarray(gradients[1])[padding] == 0).all()


@every_size
def test_reencoding_matches_encoding_the_selected_tokens(size):
    layer = Layer(*size)
    steps, rows, *_ = size
    generator = np.random.default_rng(0)
    for positions_count in (steps, steps + 3):
        positions = jnp.asarray(generator.integers(0, steps, (positions_count, rows)))
        lengths = jnp.asarray(generator.integers(0, positions_count + 1, rows))
        inputs = jnp.take_along_axis(layer.inputs, positions[..., None], axis=0)
        expected = run_bidirectional(*layer.cells, inputs, lengths, backend="plain")
        for backend in BACKENDS:
            reencode = make_bidirectional_reencoder(*layer.cells, layer.inputs, backend=backend)
            assert_close(reencode(positions, lengths), expected)


def test_reencoding_a_position_out_of_range_is_an_error():
    layer = Layer(*SIZES[1])
    reencode = make_bidirectional_reencoder(*layer.cells, layer.inputs, backend="native")
    positions = jnp.zeros((7, 5), jnp.int32).at[3, 1].set(7)
    reencode(positions, jnp.full(5, 3))  # positions at padding are not checked
    with pytest.raises(ValueError, match="positions must be in"):
        jax.block_until_ready(reencode(positions, jnp.full(5, 4)))


def test_differentiating_a_reencoding_is_an_error():
    layer = Layer(*SIZES[1])
    positions, lengths = jnp.zeros((7, 5), jnp.int32), jnp.full(5, 3)

    def total(inputs):
        reencode = make_bidirectional_reencoder(*layer.cells, inputs, backend="native")
        return reencode(positions, lengths)[1].sum()

    assert "cannot differentiate a re-encoding" in error_of(lambda: jax.grad(total)(layer.inputs))


def test_gradients_do_not_depend_on_the_number_of_threads(monkeypatch):
    layer = Layer(*SIZES[-1])
    gradients = []
    for count in (1, 2, 5):
        monkeypatch.setattr(native, "threads", lambda count=count: count)
        gradients.append(layer.gradients("native"))
    for other in gradients[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, gradients[0])


@every_backend
def test_vmap_over_params_matches_separate_calls(backend):
    layer = Layer(*SIZES[1])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), layer.params)
    gradient = jax.jit(jax.grad(partial(layer.loss, backend)))
    d_stacked = jax.jit(jax.vmap(gradient, (0, None, None)))(stacked, layer.inputs, layer.noises)
    for index in range(3):
        params, d_params = (
            jax.tree.map(lambda leaf, index=index: leaf[index], tree)
            for tree in (stacked, d_stacked)
        )
        assert_close(d_params, gradient(params, layer.inputs, layer.noises))


@pytest.mark.slow
@every_backend
def test_gradients_under_jax_checkpoint_are_the_same(backend):
    layer = Layer(*SIZES[1])
    loss = jax.checkpoint(partial(layer.loss, backend))
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(layer.params, layer.inputs, layer.noises)
    assert_close(gradients, layer.gradients(backend))


def test_nan_propagates_and_large_inputs_stay_finite():
    layer = Layer(*SIZES[1])
    run = jax.jit(partial(layer.run, "native"))
    states, _ = run(layer.params, layer.inputs.at[2, 0, 0].set(jnp.nan), None)
    assert np.isnan(states[2, 0]).all()
    assert np.isfinite(states[:, 1:]).all()
    for large in (1e30, -jnp.inf):
        inputs = layer.inputs.at[2, 0, 0].set(large)
        states, _ = run(layer.params, inputs, None)
        scanned, _ = jax.jit(partial(layer.run, "scan"))(layer.params, inputs, None)
        assert np.isfinite(scanned).all()
        np.testing.assert_allclose(states, scanned, atol=2e-6)


def test_mismatched_shapes_are_an_error():
    layer = Layer(*SIZES[1])
    kernels, biases = (
        jnp.stack(parts)
        for parts in zip(*(cell.params().linear for cell in layer.cells), strict=True)
    )
    lengths = jnp.asarray(layer.lengths, jnp.int32)
    valid = (layer.inputs, lengths, kernels, biases, layer.noises)
    for index, wrong in ((1, lengths[1:]), (2, kernels[:, 1:]), (3, biases[:1]), (4, biases)):
        arguments = (*valid[:index], wrong, *valid[index + 1 :])
        shapes = ((7, 5, 12), (5, 12), (0,))
        with pytest.raises(Exception, match=r"lstm: (expected|shapes do not match)"):
            jax.block_until_ready(native._call("forward", shapes, arguments))


def test_second_derivatives_and_forward_mode_are_errors():
    layer = Layer(*SIZES[0])
    loss = partial(layer.loss, "native", layer.params, noises=None)
    message = error_of(jax.jacrev(jax.grad(loss)), layer.inputs)
    assert message.startswith("backend native does not support second derivatives; apply jax.lax")
    message = error_of(jax.jvp, loss, (layer.inputs,), (layer.inputs,))
    assert message == "backend native does not support forward mode; use backend plain"


# Compiling and choosing the kernel


@pytest.mark.slow
def test_two_concurrent_builds_create_one_library(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        native, "FLAGS", ("-O0", "-std=c++17", "-shared", "-fPIC")
    )  # compiles faster
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(native._build) for _ in range(2)]
        library, same_library = (future.result() for future in futures)
    assert library == same_library
    assert list(library.parent.iterdir()) == [library]


CONFIG = Config(model=ModelConfig(hidden_size=3))


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "C++ compiler no-such-compiler not found; install g++ or clang"),
        ("false", "false failed: exit status 1"),
        ("/dev/null", "C++ compiler /dev/null not found"),
    ],
)
def test_without_a_compiler_auto_falls_back_to_scan_and_native_is_an_error(
    compiler, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(native, "_loaded", [])
    assert choose_backend("auto", CONFIG, print) == "scan"
    assert f"backend native is not available ({reason}" in capsys.readouterr().out
    message = error_of(choose_backend, "native", CONFIG, print)
    assert reason in message
    assert message.endswith("; or give --backend scan")


def test_self_test_rejects_wrong_results_and_is_repeated_for_a_new_reference(tmp_path, monkeypatch):
    library = tmp_path / "lstm_cpu-0.so"
    library.touch()
    reference = tmp_path / "scan.py"
    reference.write_text("the equation")
    monkeypatch.setattr(native, "_loaded", [(library, int)])
    with pytest.raises(native.UnavailableError, match="differ from the scan"):
        native.prepare(lambda: False, [reference], print)
    tests = []
    for _ in range(2):
        native.prepare(lambda: tests.append("first") or True, [reference], print)
    assert tests == ["first"]
    reference.write_text("another equation")
    native.prepare(lambda: tests.append("second") or True, [reference], print)
    assert tests == ["first", "second"]


@pytest.mark.parametrize("kind", ["file", "folder on a full disk"])
def test_auto_falls_back_to_scan_if_the_cache_is_not_writable(kind, tmp_path, monkeypatch, capsys):
    cache = tmp_path / "cache"
    cache.touch() if kind == "file" else cache.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(native, "_loaded", [])
    with contextlib.nullcontext() if kind == "file" else full_disk():
        assert choose_backend("auto", CONFIG, print) == "scan"
    assert "backend native is not available (" in capsys.readouterr().out


def test_subclass_of_a_fused_cell_uses_the_scan(monkeypatch):
    class Other(LSTM):
        pass

    monkeypatch.setitem(CELLS, "other", Other)
    config = Config(model=ModelConfig(cell="other"))
    assert choose_backend("auto", config, print) == "scan"
    message = error_of(Model, config.model, 5, "native")
    reason = "it does not support cell 'other'"
    assert message == f"backend native cannot run this model: {reason}; use backend scan"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"cell": "gru"}, "it does not support cell 'gru'"),
        ({"matmul_precision": "bfloat16"}, "it does not support matmuls in bfloat16"),
        ({"remat": True}, "it does not support model.remat"),
    ],
)
def test_unsupported_model_is_an_error_for_native_and_falls_back_for_auto(model, reason):
    config = Config(model=ModelConfig(**model))
    assert choose_backend("auto", config, print) == "scan"
    message = error_of(choose_backend, "native", config, print)
    assert message == f"backend native is not available ({reason}); or give --backend scan"

"""The compiled layer and the scans against the equations and each other: sizes, masks, faults."""

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

# Steps, rows, inputs, hidden units: all 1, odd sizes, several tiles of rows, several blocks.
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
    """Two cells with random parameters, inputs, noise and lengths of the given sizes."""

    def __init__(self, steps, rows, inputs, hidden):
        numbers = np.random.default_rng(hidden)
        self.cells = [LSTM(inputs, hidden, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
        for cell in self.cells:
            for name in ("input_kernel", "recurrent_kernel", "bias"):
                values = numbers.normal(size=getattr(cell, name)[...].shape) / np.sqrt(hidden)
                setattr(cell, name, nnx.Param(jnp.asarray(values, jnp.float32)))
        self.graph, self.params = nnx.split(nnx.List(self.cells))
        self.inputs = jnp.asarray(numbers.normal(size=(steps, rows, inputs)), jnp.float32)
        self.noises = jnp.asarray(numbers.normal(size=(2, rows, inputs)), jnp.float32)
        self.lengths = numbers.integers(0, steps + 1, rows)
        self.lengths[:3] = [steps, 0, 1][:rows]
        self.cotangents = [
            numbers.normal(size=shape).astype(np.float32)
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


def assert_close(one, other):
    """Asserts that each array differs by float32 rounding of its largest number."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(initial=0), 1e-3), rtol=0)


@every_size
@every_backend
def test_values_match_the_loop_from_the_equations(size, backend):
    layer = Layer(*size)
    states, last = jax.jit(partial(layer.run, backend))(layer.params, layer.inputs, None)
    found = []
    for direction, cell in enumerate(layer.cells):
        params = {
            name: getattr(cell, name)[...] for name in ("input_kernel", "recurrent_kernel", "bias")
        }
        found.append(
            oracles.lstm(params, np.asarray(layer.inputs), layer.lengths, reverse=bool(direction))
        )
    for result, expected in zip((states, last), zip(*found, strict=True), strict=True):
        np.testing.assert_allclose(result, np.concatenate(expected, axis=-1), atol=2e-6)


@pytest.mark.parametrize(("size", "noisy"), [(SIZES[1], False), *[(size, True) for size in SIZES]])
def test_gradients_match_the_plain_backend(size, noisy):
    layer = Layer(*size)
    expected = layer.gradients("plain", noisy)
    padding = np.arange(size[0])[:, None] >= layer.lengths
    for backend in ("native", "scan"):
        found = layer.gradients(backend, noisy)
        assert_close(found, expected)
        assert (np.asarray(found[1])[padding] == 0).all()


@every_size
def test_reencoding_matches_encoding_the_selected_tokens(size):
    layer = Layer(*size)
    steps, rows, *_ = size
    numbers = np.random.default_rng(0)
    for more in (0, 3):  # as many positions as tokens, and more
        positions = jnp.asarray(numbers.integers(0, steps, (steps + more, rows)))
        lengths = jnp.asarray(numbers.integers(0, steps + more + 1, rows))
        inputs = jnp.take_along_axis(layer.inputs, positions[..., None], axis=0)
        expected = run_bidirectional(*layer.cells, inputs, lengths, backend="plain")
        for backend in BACKENDS:
            found = make_bidirectional_reencoder(*layer.cells, layer.inputs, backend=backend)(
                positions, lengths
            )
            assert_close(found, expected)


def test_reencoding_a_position_out_of_range_is_an_error():
    layer = Layer(*SIZES[1])
    read = make_bidirectional_reencoder(*layer.cells, layer.inputs, backend="native")
    positions = jnp.zeros((7, 5), jnp.int32).at[3, 1].set(7)
    read(positions, jnp.full(5, 3))  # positions at padding are not checked
    with pytest.raises(ValueError, match="positions must be in"):
        jax.block_until_ready(read(positions, jnp.full(5, 4)))


def test_reencoding_has_no_derivative():
    layer = Layer(*SIZES[1])
    positions, lengths = jnp.zeros((7, 5), jnp.int32), jnp.full(5, 3)

    def total(inputs):
        return make_bidirectional_reencoder(*layer.cells, inputs, backend="native")(
            positions, lengths
        )[1].sum()

    assert "cannot differentiate a re-encoding" in error_of(lambda: jax.grad(total)(layer.inputs))


def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch):
    layer = Layer(*SIZES[-1])
    found = []
    for count in (1, 2, 5):
        monkeypatch.setattr(native, "threads", lambda count=count: count)
        found.append(layer.gradients("native"))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, found[0])


@every_backend
def test_vmap_over_params_matches_separate_calls(backend):
    layer = Layer(*SIZES[1])
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), layer.params)
    gradient = jax.jit(jax.grad(partial(layer.loss, backend)))
    together = jax.jit(jax.vmap(gradient, (0, None, None)))(several, layer.inputs, layer.noises)
    for seed in range(3):
        params = jax.tree.map(lambda leaf, seed=seed: leaf[seed], several)
        alone = gradient(params, layer.inputs, layer.noises)
        assert_close(jax.tree.map(lambda leaf, seed=seed: leaf[seed], together), alone)


@pytest.mark.slow
@every_backend
def test_gradients_under_jax_checkpoint_are_the_same(backend):
    layer = Layer(*SIZES[1])
    given = layer.params, layer.inputs, layer.noises
    again = jax.jit(jax.grad(jax.checkpoint(partial(layer.loss, backend)), (0, 1, 2)))(*given)
    assert_close(again, layer.gradients(backend))


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
    good = (layer.inputs, lengths, kernels, biases, layer.noises)
    for place, bad in ((1, lengths[1:]), (2, kernels[:, 1:]), (3, biases[:1]), (4, biases)):
        given = [*good[:place], bad, *good[place + 1 :]]
        sizes = ((7, 5, 12), (5, 12), (0,))
        with pytest.raises(Exception, match=r"lstm: (expected|shapes do not match)"):
            jax.block_until_ready(native._call("forward", sizes, tuple(given)))


def test_second_derivatives_and_forward_mode_are_refused():
    layer = Layer(*SIZES[0])
    loss = partial(layer.loss, "native", layer.params, noises=None)
    message = error_of(jax.jacrev(jax.grad(loss)), layer.inputs)
    assert message.startswith("backend native has no second derivatives; apply jax.lax.stop_grad")
    message = error_of(jax.jvp, loss, (layer.inputs,), (layer.inputs,))
    assert message == "backend native has no forward mode; use backend plain"


# Building the library


@pytest.mark.slow
def test_two_builders_at_once_leave_one_library(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ("-O0", "-std=c++17", "-shared", "-fPIC"))  # quick
    with ThreadPoolExecutor(2) as pool:
        one, other = (done.result() for done in [pool.submit(native._build) for _ in "ab"])
    assert one == other
    assert list(one.parent.iterdir()) == [one]


CONFIG = Config(model=ModelConfig(hidden_size=3))


@pytest.mark.parametrize(
    ("compiler", "says"),
    [
        ("no-such-compiler", "no C++ compiler no-such-compiler is found; install g++ or clang"),
        ("false", "false failed: exit status 1"),
        ("/dev/null", "no C++ compiler /dev/null is found"),
    ],
)
def test_without_a_compiler_auto_falls_back_to_scan_and_native_is_an_error(
    compiler, says, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(native, "_loaded", [])
    assert choose_backend("auto", CONFIG, print) == "scan"
    assert f"no native kernel ({says}" in capsys.readouterr().out
    message = error_of(choose_backend, "native", CONFIG, print)
    assert says in message
    assert message.endswith("; or give --backend scan")


def test_kernel_with_wrong_results_is_refused(tmp_path, monkeypatch):
    library = tmp_path / "lstm_cpu-0.so"
    library.touch()
    reference = tmp_path / "scan.py"
    reference.write_text("the equation")
    monkeypatch.setattr(native, "_loaded", [(library, int)])
    with pytest.raises(native.UnavailableError, match="does not agree with the scan"):
        native.prepare(lambda: False, [reference], print)
    tested = []
    for _ in range(2):
        native.prepare(lambda: tested.append(1) or True, [reference], print)
    assert tested == [1]
    reference.write_text("another equation")
    native.prepare(lambda: tested.append(2) or True, [reference], print)
    assert tested == [1, 2]


@pytest.mark.parametrize("place", ["a file", "a folder nobody may write"])
def test_auto_falls_back_to_scan_if_the_cache_is_not_writable(place, tmp_path, monkeypatch, capsys):
    cache = tmp_path / "cache"
    cache.mkdir() if place != "a file" else cache.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(native, "_loaded", [])
    with full_disk() if place != "a file" else contextlib.nullcontext():
        assert choose_backend("auto", CONFIG, print) == "scan"
    assert "no native kernel (" in capsys.readouterr().out


def test_subclass_of_a_fused_cell_uses_the_scan(monkeypatch):
    class Other(LSTM):
        pass

    monkeypatch.setitem(CELLS, "other", Other)
    config = Config(model=ModelConfig(cell="other"))
    assert choose_backend("auto", config, print) == "scan"
    says = "backend native cannot run this model: it runs no cell 'other'; use backend scan"
    assert error_of(Model, config.model, 5, "native") == says


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"cell": "gru"}, "it runs no cell 'gru'"),
        ({"matmul_precision": "bfloat16"}, "it has no matmuls in bfloat16"),
        ({"remat": True}, "it has no rematerialisation (model.remat)"),
    ],
)
def test_unsupported_model_is_an_error_for_native_and_scanned_for_auto(model, why):
    config = Config(model=ModelConfig(**model))
    assert choose_backend("auto", config, print) == "scan"
    says = f"no native kernel ({why}); or give --backend scan"
    assert error_of(choose_backend, "native", config, print) == says

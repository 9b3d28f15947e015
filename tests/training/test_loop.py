"""The train step and the evaluation: devices, seeds, filler, descent."""

import dataclasses
import os
import re
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_variants import BACKENDS, CONFIGS, every_variant

from bilstm_attn.config import DataConfig, OptimConfig
from bilstm_attn.data.batches import plan_epoch, read_batch
from bilstm_attn.data.splits import Examples
from bilstm_attn.inference.evaluate import make_logits_step, predict_logits
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.devices import AXIS, REPLICATED, SHARDED, make_mesh, replicate, shard_rows
from bilstm_attn.training.metrics_log import MAX_STEPS_IN_FLIGHT, MetricsLog
from bilstm_attn.training.objectives import OBJECTIVES, CrossEntropy, Term
from bilstm_attn.training.optim import make_optimizer
from bilstm_attn.training.step import initial_state, make_gradient, make_train_step

DATA = DataConfig(vocabulary_size=15, max_tokens=9, batch_size=8, bucket_edges=(5,))
LARGE = dataclasses.replace(DATA, batch_size=16)  # for up to eight devices
ONE_LENGTH = dataclasses.replace(DATA, bucket_edges=())
STEPS = 6
ADAM = make_optimizer(OptimConfig(learning_rate=0.01), STEPS)
MODEL = Model(dataclasses.replace(CONFIGS["cell-lstm"], layers=1), DATA.vocabulary_size)
# Of every entry a model that compiles soon: dropout and Adam are the same for all.
SOON = {"layers": 1, "input_dropout": 0.0, "head_dropout": 0.0}
MADE = {"whole": (MODEL, ADAM)} | {
    name: (
        Model(
            dataclasses.replace(config, **SOON), DATA.vocabulary_size, BACKENDS.get(name, "scan")
        ),
        optax.sgd(0.3),
    )
    for name, config in CONFIGS.items()
}


def random_examples(reviews=45):
    """Returns reviews whose label says whether word 5 stands in them."""
    numbers = np.random.default_rng(0)
    # So few long ones that every batch fits the edges: one layout to compile.
    counts = np.where(numbers.random(reviews) < 0.7, numbers.integers(0, 5, reviews), 11)
    ids = numbers.integers(4, 15, counts.sum()).astype(np.int32)
    stops = np.cumsum(counts)
    starts = stops - counts
    labels = [5 in ids[start:stop][-8:] for start, stop in zip(starts, stops, strict=True)]
    return Examples(
        ids=ids,
        starts=starts,
        stops=stops,
        labels=np.array(labels, np.int8),
        rows=np.arange(reviews),
        lengths=np.minimum(counts + 1, DATA.max_tokens),
    )


EXAMPLES = random_examples()


@cache
def steps_on(devices, name="whole", objective="cross_entropy"):
    (model, optimizer), mesh = MADE[name], make_mesh(LARGE.group_size, devices)
    return mesh, make_train_step(model, OBJECTIVES[objective](), optimizer, mesh)


@cache
def made_state(name, seed):
    return jax.device_get(initial_state(MADE[name][0], CrossEntropy(), MADE[name][1], seed))


def first_state(name="whole", seed=0):
    return jax.tree.map(jnp.array, made_state(name, seed))  # a step takes it for its own


def train_on(devices, seed=0, key=7, batches=None, name="whole", **objective):
    """Returns the state and the terms of every step."""
    mesh, step = steps_on(devices, name, **objective)
    state = replicate(first_state(name, seed), mesh)
    terms = []
    for groups in first_batches(DATA, seed) if batches is None else batches:
        state, of_step = step(state, shard_rows(groups, mesh), jax.random.key(key))
        terms.append(of_step)
    return state, jax.device_get(terms)


def first_batches(data, seed=0):
    plans = plan_epoch(EXAMPLES.lengths, data, seed, 0)[:STEPS]
    return [read_batch(EXAMPLES, plan, data) for plan in plans]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_device_equals_several_for_every_objective(objective):
    for devices in (2, 4):
        assert_devices_agree(devices, objective=objective, batches=first_batches(LARGE))


@pytest.mark.slow
def test_one_device_equals_eight():
    code = (
        "import jax; jax.config.update('jax_num_cpu_devices', 8); jax.devices()\n"
        "import test_loop as t; t.assert_devices_agree(8, batches=t.first_batches(t.LARGE))"
    )
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent / "support"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@every_variant
def test_one_device_equals_several_for_every_variant(name):
    assert_devices_agree(4, name=name, batches=first_batches(ONE_LENGTH))


def assert_devices_agree(devices, **given):
    one, of_one = train_on(1, **given)
    several, of_several = train_on(devices, **given)
    # Sums over devices are added in another order: float32 rounding, through 6 steps.
    for name in ("params", "terms"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6, rtol=5e-6),
            getattr(one, name),
            getattr(several, name),
        )
    compare = partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(compare, of_one, of_several)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pmap.*:DeprecationWarning")
@pytest.mark.parametrize("on_cpu", [True, False])
def test_gradient_of_rows_runs_under_pmap_as_under_shard_map(on_cpu):
    model, _ = MADE["pooling-max"]
    mesh, state = make_mesh(DATA.group_size, 2), first_state("pooling-max")
    groups = first_batches(DATA)[0]
    keys = tuple(jax.random.split(jax.random.key(seed), 4) for seed in (0, 1))

    def gradient(on_cpu):
        return make_gradient(model, OBJECTIVES["cross_entropy"](), on_cpu=on_cpu)

    expected = jax.jit(
        jax.shard_map(
            gradient(True),
            mesh=mesh,
            in_specs=(REPLICATED, SHARDED, SHARDED),
            out_specs=REPLICATED,
            check_vma=False,
        )
    )(state.params, *shard_rows((groups, keys), mesh))

    def split(leaf):
        return leaf.reshape(2, -1, *leaf.shape[1:])

    given = jax.tree.map(split, (groups, keys))
    pmapped = jax.pmap(
        gradient(on_cpu), axis_name=AXIS, in_axes=(None, 0, 0), devices=jax.devices()[:2]
    )
    found = pmapped(state.params, *given)
    compare = partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-5)  # float32 rounding
    for device in range(2):
        jax.tree.map(lambda a, b, d=device: compare(a[d], b), found, expected)


def test_same_seed_same_bits_and_another_seed_or_key_others():
    one, _ = train_on(4)
    again, _ = train_on(4)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    for other, _ in (train_on(4, seed=1), train_on(4, key=8)):
        assert not np.array_equal(other.params["embedding"], one.params["embedding"])


def test_loss_and_gradient_are_the_mean_over_real_rows_whatever_the_grouping():
    """The first step against one plain, unsharded gradient over the same reviews."""
    plan = plan_epoch(EXAMPLES.lengths, DATA, 0, 0)[-1]  # 45 = 5 * 8 + 5: three rows of filler
    groups = read_batch(EXAMPLES, plan, DATA)
    assert sum(group.weight.sum() for group in groups) == 5
    before = first_state()
    keys = jax.random.split(jax.random.fold_in(jax.random.key(7), 0), 8)

    def loss(params):
        logits = []
        for group, chosen in zip(groups, (keys[:4], keys[4:]), strict=True):
            given = jnp.asarray(group.tokens), jnp.asarray(group.length), chosen
            logits.append(MODEL(params, *given).logits[group.weight == 1])
        labels = np.concatenate([group.label[group.weight == 1] for group in groups])
        signed = jnp.concatenate(logits) * (2.0 * labels - 1)
        return jnp.log1p(jnp.exp(-signed)).mean()

    @jax.jit
    def one_step(before):
        value, gradient = jax.value_and_grad(loss)(before.params)
        updates, _ = ADAM.update(gradient, before.optimizer, before.params)
        return value, jax.tree.map(jnp.add, before.params, updates)

    value, expected = one_step(before)
    after, (terms,) = train_on(4, batches=[groups])
    assert terms["cross_entropy"].count == 5
    assert terms["cross_entropy"].sum / terms["cross_entropy"].count == pytest.approx(
        float(value), rel=1e-6
    )
    # Adam divides by the gradient's size: where that is 1e-6, its rounding is seen.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), after.params, expected)


def test_no_device_waits_for_another_inside_a_time_loop():
    mesh, step = steps_on(4)
    groups = shard_rows(
        read_batch(EXAMPLES, plan_epoch(EXAMPLES.lengths, DATA, 0, 0)[0], DATA), mesh
    )
    state = replicate(first_state(), mesh)
    program = step.lower(state, groups, jax.random.key(0)).compile().as_text()
    bodies = set(re.findall(r"body=%?([\w.-]+)", program))
    computations = {
        name: text
        for name, text in re.findall(r"^%?([\w.-]+) [^\n]*\{\n(.*?)^\}", program, re.M | re.S)
    }
    assert bodies <= set(computations)
    assert len(bodies) >= 8  # forward and backward, two directions, two groups
    assert [name for name in bodies if "all-reduce" in computations[name]] == []
    assert len(re.findall(r" all-reduce(?:-start)?\(", program)) == 1


def test_few_steps_are_in_flight():
    waited = []

    class Sum:
        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            waited.append(self.step)

    log = MetricsLog(CrossEntropy(), every_steps=1000)
    for step in range(1, 31):
        log.add(step, 1, {"cross_entropy": Term(Sum(step), 0.0)})
        assert waited == list(range(1, step - MAX_STEPS_IN_FLIGHT + 1))


@pytest.mark.slow
def test_many_steps_of_a_large_vocabulary_end_on_two_devices_of_a_cpu():
    # Without a bound on the steps under way this one sometimes never ended.
    code = """
import jax
import jax.numpy as jnp
import numpy as np

from bilstm_attn.config import ModelConfig, OptimConfig
from bilstm_attn.nn.model import Model
from bilstm_attn.training.objectives import OBJECTIVES
from bilstm_attn.training.optim import make_optimizer
from bilstm_attn.runtime.devices import make_mesh, shard_rows, replicate
from bilstm_attn.training.metrics_log import MetricsLog
from bilstm_attn.training.step import initial_state, make_train_step
from bilstm_attn.types import Batch

mesh, steps, words = make_mesh(32, 2), 100, 14_000
size = dict(embedding_size=300, hidden_size=128, layers=1, dense_size=0)
model = Model(ModelConfig(**size), words)
optimizer = make_optimizer(OptimConfig(amsgrad=True, l2_penalty=1e-6), steps)
objective = OBJECTIVES["cross_entropy"]()
step = make_train_step(model, objective, optimizer, mesh)
state = replicate(initial_state(model, objective, optimizer, 0, None), mesh)
key, log = replicate(jax.random.key(0), mesh), MetricsLog(objective, every_steps=10 * steps)
for number in range(1, steps + 1):
    tokens = np.random.default_rng(number).integers(1, words, (32, 20), np.int32)
    rows = Batch(tokens, *np.full((3, 32), [[20], [number % 2], [1]], np.int32))
    state, terms = step(state, shard_rows((rows,), mesh), key)
    log.add(number, 1, terms)
assert len(log.pending()) == steps
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.slow
def test_microbatches_are_the_same_step_to_rounding_in_less_memory():
    mesh, step = steps_on(2)
    in_parts = make_train_step(*MADE["whole"][:1], OBJECTIVES["cross_entropy"](), ADAM, mesh, 2)
    groups = shard_rows(first_batches(ONE_LENGTH)[0], mesh)
    whole, halves = (
        run.lower(replicate(first_state(), mesh), groups, jax.random.key(7)).compile()
        for run in (step, in_parts)
    )
    sizes = [each.memory_analysis().temp_size_in_bytes for each in (whole, halves)]
    assert sizes[1] < 0.9 * sizes[0]
    found = [
        each(replicate(first_state(), mesh), groups, jax.random.key(7)) for each in (whole, halves)
    ]
    compare = partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
    jax.tree.map(compare, found[1][1], found[0][1])
    jax.tree.map(compare, found[1][0].params, found[0][0].params)


@pytest.mark.slow
def test_groups_take_turns_in_memory():
    mesh, step = steps_on(1)
    state = replicate(first_state(), mesh)
    (group,) = read_batch(EXAMPLES, plan_epoch(EXAMPLES.lengths, ONE_LENGTH, 0, 0)[0], ONE_LENGTH)
    long = group._replace(tokens=np.pad(group.tokens, ((0, 0), (0, 200))))

    def temporaries(groups):
        compiled = step.lower(state, shard_rows(groups, mesh), jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries((long, long, long)) < 1.5 * temporaries((long,))


def test_filler_and_unlabelled_rows_change_nothing():
    (plan,) = plan_epoch(EXAMPLES.lengths[:5], DATA, 0, 0)
    groups = read_batch(EXAMPLES, plan, DATA)
    other = tuple(
        group._replace(
            tokens=np.where(group.weight[:, None] == 0, 9, group.tokens).astype(np.int32),
            length=np.where(group.weight == 0, 3, group.length).astype(np.int32),
        )
        for group in groups
    )
    unlabelled = tuple(
        group._replace(weight=np.ones_like(group.weight)) for group in other
    )  # filler has label -1
    results = [train_on(4, batches=[given]) for given in (groups, other, unlabelled)]
    for state, terms in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, (state, terms), results[0])


def test_a_gradient_that_is_not_finite_shows_in_the_loss():
    groups = read_batch(EXAMPLES, plan_epoch(EXAMPLES.lengths, DATA, 0, 0)[0], DATA)
    mesh, step = steps_on(4)
    state = first_state()
    state.params["logit"]["bias"] = jnp.full(1, jnp.inf, jnp.float32)
    _, terms = step(replicate(state, mesh), shard_rows(groups, mesh), jax.random.key(0))
    assert not np.isfinite(terms["cross_entropy"].sum)


def test_training_fits_a_rule():
    batches = [
        read_batch(EXAMPLES, plan, DATA) for plan in plan_epoch(EXAMPLES.lengths, DATA, 0, 0)
    ]
    _, terms = train_on(4, batches=batches * 25)
    first, last = (terms[:6], terms[-6:])
    losses = [
        np.mean([t["cross_entropy"].sum / t["cross_entropy"].count for t in some])
        for some in (first, last)
    ]
    assert losses[1] < 0.6 * losses[0]


@pytest.mark.parametrize("devices", [1, 4])
def test_evaluation_counts_every_review_once_in_order(devices):
    params = MODEL.init(jax.random.key(0))
    mesh = make_mesh(DATA.group_size, devices)
    counted = []
    logits = predict_logits(
        make_logits_step(MODEL, mesh),
        replicate(params, mesh),
        EXAMPLES,
        DATA,
        mesh,
        counted.append,
    )
    assert sum(counted) == EXAMPLES.size
    single = jax.jit(MODEL.__call__)
    for example in range(0, EXAMPLES.size, 7):
        ids = EXAMPLES.ids[EXAMPLES.starts[example] : EXAMPLES.stops[example]]
        tokens = np.zeros((1, DATA.max_tokens), np.int32)
        review = [1, *ids][-DATA.max_tokens :]
        tokens[0, : len(review)] = review
        alone = single(params, tokens, np.array([len(review)])).logits[0]
        assert logits[example] == pytest.approx(float(alone), abs=2e-6)  # float32 rounding

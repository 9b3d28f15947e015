"""Vectorised experiments against loops over one review, one word and one draw."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from entries import make_model
from test_jain_wallace import KEYS, LENGTHS, STEPS, TOKENS

from bilstm_attn.explain.attribution import LeaveOneOut
from bilstm_attn.explain.chance import at_places
from bilstm_attn.explain.jain_wallace import (
    SPREAD,
    adversaries,
    draw_orders,
    permutation_change,
)
from bilstm_attn.explain.naive import Naive, time_naive

pytestmark = pytest.mark.slow

ROWS = (0, 3)  # of six and of four tokens
IDS = [np.asarray(TOKENS[row, : LENGTHS[row]]) for row in ROWS]


@pytest.fixture(scope="module")
def naive():
    return Naive(*make_model("cell-lstm"), STEPS)


def jitted(experiment):
    model, params = make_model("cell-lstm")
    return jax.jit(partial(experiment, model))(params, TOKENS, LENGTHS, KEYS)


def test_leaving_one_out(naive):
    found = jitted(LeaveOneOut())
    for row, ids in zip(ROWS, IDS, strict=True):
        np.testing.assert_allclose(
            naive.leave_one_out(ids), found[row, : len(ids)], atol=2e-6
        )  # float32 rounding of logits of size 1


def test_permutation(naive):
    draws = 5
    found = jitted(partial(permutation_change, draws=draws))
    orders = [np.asarray(draw_orders(KEYS, LENGTHS, STEPS, at)) for at in range(draws)]
    for row, ids in zip(ROWS, IDS, strict=True):
        own = [order[: len(ids), row] for order in orders]
        assert naive.permutation_change(ids, own) == pytest.approx(float(found[row]), abs=1e-6)


def test_adversaries(naive):
    count, steps = 3, 30
    found = jitted(partial(adversaries, count=count, steps=steps))
    scores = [
        SPREAD * np.asarray(at_places(KEYS, STEPS, jax.random.normal, at)) for at in range(count)
    ]
    for row, ids in zip(ROWS, IDS, strict=True):
        judged = naive.adversaries(ids, np.stack([one[row] for one in scores]), steps)
        expected = jnp.stack([found.change[:, row], found.divergence[:, row]], axis=1)
        # 30 steps of Adam, whose first ones are of a size whatever the gradient's.
        np.testing.assert_allclose(judged, expected, atol=1e-3)


def test_times_are_of_each_experiment():
    seconds = time_naive(*make_model("cell-lstm"), STEPS, IDS[:1])
    assert list(seconds) == ["leave one out", "permutation", "adversaries"]
    assert all(each > 0 for each in seconds.values())

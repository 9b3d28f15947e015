"""Contract tests for variants from outside: call them from the tests of a plug-in.

Each function trains nothing: it builds a small classifier around the class and checks what every
entry of our own tables guarantees. A failed check raises an `AssertionError` that names it.
"""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilstm_attn.config import ModelConfig
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.plugins import FAMILIES
from bilstm_attn.types import Params

NAME = "class_under_test"
VOCABULARY = 11
LENGTHS = np.array([6, 1, 0, 4])
TOLERANCE = 1e-5  # float32 rounding of logits and gradients of size 1


def check_cell(cell: type, options: Mapping[str, Any] | None = None) -> None:
    """Checks a `Cell`, and that its gradients by `scan` are those of plain JAX.

    Raises:
      AssertionError: names the check that failed.
    """
    _check("CELLS", "cell", cell, options)
    with _model("CELLS", "cell", cell, options) as model:
        params = model.init(jax.random.key(0))
        scan, plain = (
            jax.jit(jax.grad(partial(_loss, Model(model.config, VOCABULARY, backend))))(params)
            for backend in ("scan", "plain")
        )
    _require_close(scan, plain, "gradients by the scan are those of plain JAX")


def check_encoder(encoder: type, options: Mapping[str, Any] | None = None) -> None:
    """Checks an `Encoder`. Raises an `AssertionError` that names the check that failed."""
    _check("ENCODERS", "encoder", encoder, options)


def check_attention(attention: type, options: Mapping[str, Any] | None = None) -> None:
    """Checks an `Attention`. Raises an `AssertionError` that names the check that failed."""
    _check("ATTENTIONS", "attention", attention, options)
    with _model("ATTENTIONS", "attention", attention, options) as model:
        weights = _run(model, model.init(jax.random.key(0)), _tokens()).weights
    totals = np.where(LENGTHS > 0, 1.0, 0.0)
    _require_close(weights.sum(axis=1), totals, "attention weights sum to 1 over own tokens")


def check_pooling(pooling: type, options: Mapping[str, Any] | None = None) -> None:
    """Checks a `Pooling`. Raises an `AssertionError` that names the check that failed."""
    _check("POOLINGS", "pooling", pooling, options)


def _check(table: str, field: str, kind: type, options: Mapping[str, Any] | None) -> None:
    with _model(table, field, kind, options) as model:
        params = jax.tree.map(_perturbed, model.init(jax.random.key(0)))
        output = _run(model, params, _tokens())
        padded = np.pad(_tokens(other=True), ((0, 0), (0, 3)), constant_values=7)
        _require_close(
            _run(model, params, padded).logits, output.logits, "padding changes no logit"
        )
        again = model(params, jnp.asarray(_tokens()[::-1]), jnp.asarray(LENGTHS[::-1])).logits
        _require_close(again[::-1], output.logits, "a logit depends on no other row of the batch")
        assert np.isfinite(output.logits).all(), "an empty text has a finite logit"
        gradient = jax.jit(jax.grad(partial(_loss, model)))(params)
        finite = [bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient)]
        assert all(finite), "gradients are finite, also for an empty text"
        assert float(jnp.abs(gradient["embedding"][5]).max()) > 0, "gradients reach the embedding"
        poisoned = params["embedding"].at[0].set(jnp.nan)
        nan = _run(model, params | {"embedding": poisoned}, _tokens()).logits
        _require_close(nan, output.logits, "NaN at padding reaches no logit")


@contextlib.contextmanager
def _model(
    table: str, field: str, kind: type, options: Mapping[str, Any] | None
) -> Iterator[Model]:
    """Yields a small model around the class, which is in its table meanwhile."""
    entries = getattr(importlib.import_module(FAMILIES[table].module), table)
    entries[NAME] = kind
    fields: dict[str, Any] = {field: NAME, f"{field}_options": dict(options or {})}
    sizes: dict[str, Any] = {"embedding_size": 4, "hidden_size": 3, "attention_size": 5}
    dropout: dict[str, Any] = {"input_dropout": 0.0, "head_dropout": 0.0}
    try:
        config = ModelConfig(**sizes, **dropout, **fields, layers=2, dense_size=0)
        yield Model(config, VOCABULARY)
    finally:
        del entries[NAME]


def _tokens(*, other: bool = False) -> np.ndarray:
    """Returns tokens `int32[b t]`, 0 at padding, or other tokens there."""
    tokens = np.random.default_rng(0).integers(4, VOCABULARY, (4, 6)).astype(np.int32)
    tokens[0, 0] = 5
    return np.where(np.arange(6) < LENGTHS[:, None], tokens, 8 if other else 0).astype(np.int32)


def _run(model: Model, params: Params, tokens: np.ndarray) -> Any:
    return jax.jit(model.__call__)(params, jnp.asarray(tokens), jnp.asarray(LENGTHS))


def _loss(model: Model, params: Params) -> Any:
    return jnp.sin(model(params, jnp.asarray(_tokens()), jnp.asarray(LENGTHS)).logits).sum()


def _perturbed(leaf: Any) -> Any:
    noise = np.random.default_rng(leaf.size).normal(size=leaf.shape)
    return leaf + jnp.asarray(0.3 * noise, jnp.float32)


def _require_close(found: Any, expected: Any, claim: str) -> None:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    close = [np.allclose(a, b, atol=TOLERANCE, rtol=TOLERANCE) for a, b in pairs]
    assert all(close), claim

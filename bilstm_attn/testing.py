"""Contract tests for plug-ins: call them from the tests of your own cell, tokeniser or data set.

No function trains. Those for parts of the model build a small classifier around the class. Every
entry of our own tables passes the same checks. A failed check raises an `AssertionError` whose
message is the claim that does not hold.
"""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilstm_attn.config import ModelConfig
from bilstm_attn.data.sources import SPLITS
from bilstm_attn.data.token_writer import read_examples
from bilstm_attn.errors import UserError
from bilstm_attn.nn.model import Model
from bilstm_attn.registry import make
from bilstm_attn.runtime.plugins import FAMILIES
from bilstm_attn.training.objectives import Objective, Term, Terms
from bilstm_attn.types import Batch, Keys, Params

NAME = "class_under_test"
VOCABULARY = 11
SIZES: dict[str, Any] = {"embedding_size": 4, "hidden_size": 3, "attention_size": 5}
LENGTHS = np.array([6, 1, 0, 4])
TOLERANCE = 1e-5  # float32 rounding of logits and gradients of size 1

# Texts that are hard to tokenise: markup, line breaks, controls, and letters that have more
# characters in lower case.
TEXTS = (
    "It's GOOD, really: 10/10!",
    "well-made<br /><br />film",
    " two\nlines\r\nand\ta tab ",
    "\u0130stanbul, caf\u00e9, na\u0131ve \u1e9e",
    "\u65e5\u672c\u8a9e\u3068\u7d75\u6587\u5b57\U0001f642e\u0301",
    "nul\x00, next line\x85, separator\u2028",
    "a",
    " \n ",
    "...!?",
)


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


def check_objective(
    objective: type,
    options: Mapping[str, Any] | None = None,
    extras: Mapping[str, Any] | None = None,
) -> None:
    """Checks an `Objective` on a batch with an empty, an unlabelled and a filler row.

    Args:
      objective: the class.
      options: further arguments of its constructor.
      extras: `Batch.extras` for 6 examples padded to 6 tokens, if the objective reads any: arrays
        `[6 ...]`. The last example is a filler row.

    Raises:
      AssertionError: names the check that failed.
    """
    made = make("objective", {NAME: objective}, NAME, dict(options or {}))
    config = ModelConfig(**SIZES, encoder="token_wise", head_dropout=0.25, dense_size=2)
    model = Model(config, VOCABULARY)  # without a recurrence, since that takes longer to compile
    params, rows = model.init(jax.random.key(0)), _objective_rows(dict(extras or {}))
    _check_form_of_terms(made, jax.eval_shape(partial(made, model), params, *rows))
    evaluate = jax.jit(partial(_terms_and_gradient, made, model))
    terms, gradient = evaluate(params, *rows)
    _require_finite((terms, gradient), "terms and gradients are finite")
    for other in (jax.tree.map(_perturbed, params), jax.tree.map(jnp.negative, params)):
        counts = {name: term.count for name, term in evaluate(other, *rows)[0].items()}
        claim = "counts do not depend on the parameters"
        _require_close(counts, {name: term.count for name, term in terms.items()}, claim)
    parts = [evaluate(params, *_take(rows, part)) for part in (slice(0, 3), slice(3, 6))]
    claim = "terms of a batch are the sums of the terms of its parts"
    _require_close(jax.tree.map(jnp.add, *parts), (terms, gradient), claim)
    for same in (_take(rows, slice(0, 5)), _with_other_filler(*rows)):
        claim = "a filler row of weight 0 changes no term and no gradient"
        _require_close(evaluate(params, *same), (terms, gradient), claim)
    filler = _take(rows, np.full(3, 5))
    claim = "terms and gradients of a batch of filler rows are finite"
    _require_finite(evaluate(params, *filler), claim)


def check_source(source: type, data_dir: Path | None = None, archive: Path | None = None) -> None:
    """Checks a `Source`, which is constructed with `data_dir` and `archive`; reads it three times.

    Raises:
      AssertionError: names the check that failed.
    """
    for name in (source.name, source.version):
        assert isinstance(name, str), "name and version are non-empty strings"
        assert name, "name and version are non-empty strings"
    assert "train" in source.splits, "the splits include train"
    assert set(source.splits) <= set(SPLITS), f"the splits are among {', '.join(SPLITS)}"
    names = source.label_names
    assert len(set(names)) == len(names) > 0, "label_names are distinct, and at least one"
    first, second = (source(data_dir=data_dir, archive=archive) for _ in range(2))
    for split in source.splits:
        try:
            examples = list(read_examples(first, split))
        except UserError as error:
            raise AssertionError(f"texts are str and labels have a name: {error}") from None
        assert examples, "every split has an example"
        assert first.size(split) == len(examples), "size is the number of examples that are read"
        assert list(first.read(split)) == examples, "reading twice gives the same order"
        assert list(second.read(split)) == examples, "a second instance reads the same order"


def check_tokeniser(tokeniser: type, options: Mapping[str, Any] | None = None) -> None:
    """Checks a `Tokeniser` on texts in several scripts, and on texts without a word.

    Raises:
      AssertionError: names the check that failed.
    """
    first, second = (
        make("tokeniser", {NAME: tokeniser}, NAME, dict(options or {})) for _ in range(2)
    )
    assert isinstance(tokeniser.version, int), "version is an int"
    assert first("") == [], "an empty text has no words"
    assert first.spans("") == [], "an empty text has no spans"
    for text in (*TEXTS, " ".join(TEXTS)):
        words, spans = first(text), first.spans(text)
        strings = [isinstance(word, str) and word != "" for word in words]
        assert all(strings), f"words are non-empty strings ({text!r})"
        assert not any("\n" in word for word in words), f"no word has a line break ({text!r})"
        assert len(spans) == len(words), f"every word has one span ({text!r})"
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        assert edges == sorted(edges), f"spans ascend, apart and inside the text ({text!r})"
        assert all(start < stop for start, stop in spans), f"no span is empty ({text!r})"
        assert first(text) == second(text) == words, f"equal texts have equal words ({text!r})"
        assert first.spans(text) == spans, f"equal texts have equal spans ({text!r})"


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
        _require_finite(gradient, "gradients are finite, also for an empty text")
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
    dropout: dict[str, Any] = {"input_dropout": 0.0, "head_dropout": 0.0}
    try:
        config = ModelConfig(**SIZES, **dropout, **fields, layers=2, dense_size=0)
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


def _check_form_of_terms(objective: Objective, terms: Any) -> None:
    names = set(objective.coefficients)
    assert set(terms) == names, "the names of the terms are those of the coefficients"
    assert objective.minimised, "at least one coefficient is not 0"
    assert all(isinstance(term, Term) for term in terms.values()), "every term is a Term"
    shapes = {leaf.shape for leaf in jax.tree.leaves(terms)}
    assert shapes == {()}, "the sum and the count of a term are scalars"


def _terms_and_gradient(
    objective: Objective, model: Model, params: Params, batch: Batch, keys: Keys
) -> tuple[Terms, Params]:
    """Returns the terms, and the gradient of the sum of the minimised ones."""

    def loss(params: Params) -> tuple[Any, Terms]:
        terms = objective(model, params, batch, keys)
        scaled = [objective.coefficients[name] * terms[name].sum for name in objective.minimised]
        return sum(scaled), terms

    gradient, terms = jax.grad(loss, has_aux=True)(params)
    return terms, gradient


def _objective_rows(extras: dict[str, Any]) -> tuple[Batch, Keys]:
    """Returns 6 examples, among them an empty, an unlabelled and, last, a filler row; and keys."""
    tokens, lengths = np.concatenate([_tokens(), _tokens()[:2]]), np.array([6, 1, 0, 4, 1, 0])
    batch = Batch(
        jnp.asarray(np.where(np.arange(6) < lengths[:, None], tokens, 0)),
        jnp.asarray(lengths, jnp.int32),
        jnp.array([0, 1, 1, -1, 0, -1], jnp.int32),
        jnp.array([1, 1, 1, 1, 1, 0], jnp.float32),
        jax.tree.map(jnp.asarray, extras),
    )
    return batch, jax.random.split(jax.random.key(1), 6)


def _take(rows: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], rows)


def _with_other_filler(batch: Batch, keys: Keys) -> tuple[Batch, Keys]:
    """Returns the rows with other tokens and another label in the filler row."""
    tokens, label = batch.tokens.at[-1].set(7), batch.label.at[-1].set(1)
    return batch._replace(tokens=tokens, label=label), keys


def _require_finite(tree: Any, claim: str) -> None:
    finite = [bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree)]
    assert all(finite), claim


def _require_close(found: Any, expected: Any, claim: str) -> None:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    close = [np.allclose(a, b, atol=TOLERANCE, rtol=TOLERANCE) for a, b in pairs]
    assert all(close), claim

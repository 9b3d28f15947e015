"""From a run and some texts to explained reviews: words, weights, and how far they agree."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bilstm_attn.config import DataConfig
from bilstm_attn.data.splits import Examples
from bilstm_attn.data.tokenisers import tokenise, word_spans
from bilstm_attn.explain.agreement import kendall
from bilstm_attn.explain.attribution import (
    Attributed,
    Attribution,
    IntegratedGradients,
    completeness_error,
)
from bilstm_attn.inference.evaluate import Rows, make_step, map_examples, require_finite
from bilstm_attn.inference.exported import Exported
from bilstm_attn.nn.metrics import sigmoid
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.devices import replicate
from bilstm_attn.runtime.prng import stream
from bilstm_attn.types import Batch, Keys, Lengths, Params, Tokens

LABELS = ("negative", "positive")
# Reviews are padded to; the effort of some attributions grows as its square.
EDGES = (100, 200, 300)
# Divisible by the number of edges, whatever the longest review, and one by the other.
REVIEWS_AT_ONCE, FEWEST_AT_ONCE = 48, 16


class Explained(NamedTuple):
    """A review with a weight a word, by each of some attributions."""

    text: str
    label: int  # 1 positive, 0 negative, -1 unknown
    probability: float  # of a positive review
    spans: list[tuple[int, int]]  # of every word in the text, in characters
    read: int  # words read: the last ones
    weights: dict[str, np.ndarray]  # of the words that were read, in order
    start: dict[str, float]  # weights of the start token, where it is read
    disagreement: float  # 1 - mean Kendall's tau between attributions; not a number for one word
    completeness_error: float | None = None  # of integrated gradients, if asked for

    @property
    def answer(self) -> str:
        """`positive` or `negative`."""
        return LABELS[self.probability > 0.5]


def read_texts(texts: Sequence[str], labels: Sequence[int], exported: Exported) -> Examples:
    """Returns texts as the model reads them."""
    words = [exported.vocabulary.encode(tokenise(text)) for text in texts]
    stops = np.cumsum([len(ids) for ids in words], dtype=np.int64)
    counts = np.diff(stops, prepend=0)
    return Examples(
        ids=np.concatenate([np.zeros(0, np.int32), *words]),
        starts=stops - counts,
        stops=stops,
        labels=np.array(labels, np.int8),
        rows=np.arange(len(texts)),
        lengths=np.minimum(counts + 1, exported.config.data.max_tokens),
    )


def batches_of(config: DataConfig, reviews: int) -> DataConfig:
    """Returns how so many reviews are batched to be explained."""
    edges = tuple(edge for edge in EDGES if edge < config.max_tokens)
    rows = REVIEWS_AT_ONCE if reviews > FEWEST_AT_ONCE else FEWEST_AT_ONCE
    return dataclasses.replace(config, batch_size=rows, bucket_edges=edges)


Analysis = Callable[[Params, Tokens, Lengths, Keys], Any]


def analyse(
    analysis: Analysis,
    params: Params,
    examples: Examples,
    config: DataConfig,
    mesh: Mesh,
    seed: int = 0,
    advance: Callable[[int], object] = lambda reviews: None,
) -> Any:
    """Returns what a pure function of parameters, tokens, lengths and keys says of every review.

    Its arrays are `[b]` or `[b t]`. A review's key is of `seed` and its row, so that what it draws
    depends on no other review.
    """
    key = stream(jax.random.key(seed), "explain")

    def of_rows(params: Params, reviews: tuple[Batch, Rows]) -> Any:
        batch, rows = reviews
        keys = jax.vmap(partial(jax.random.fold_in, key))(rows)
        return analysis(params, batch.tokens, batch.length, keys)

    step = make_step(of_rows, mesh)
    return map_examples(
        lambda params, batch, rows: step(params, (batch, rows)),
        replicate(params, mesh),
        examples,
        config,
        mesh,
        advance,
    )


def explain(
    exported: Exported,
    model: Model,
    texts: Sequence[str],
    labels: Sequence[int],
    attributions: Mapping[str, Attribution],
    mesh: Mesh,
    bar: Callable[[str, int], Any],
) -> list[Explained]:
    """Returns every text explained by every attribution.

    `bar` makes a context manager with `advance`, of a description and a total.

    Raises:
      UserError: the model's answers, or an attribution's weights, are not finite.
    """
    examples = read_texts(texts, labels, exported)
    batches = batches_of(exported.config.data, len(texts))

    def run(name: str, analysis: Analysis) -> Any:
        with bar(name, len(texts)) as drawn:
            return analyse(
                analysis, exported.params, examples, batches, mesh, advance=drawn.advance
            )

    def logits_of(
        params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Float[Array, " b"]:
        del keys
        return model(params, tokens, lengths).logits

    logits = run("probability", logits_of)
    require_finite(logits, "these reviews")
    probabilities = sigmoid(logits)
    weights, errors = {}, np.full(len(texts), np.nan)
    for name, one in attributions.items():
        if isinstance(one, IntegratedGradients):
            weights[name], errors = run(name, partial(_with_error, one, model))
        else:
            weights[name] = run(name, partial(one, model))
        require_finite(weights[name], f"these reviews, explained by {name},")
    apart = disagreement(list(weights.values()), examples.lengths)
    found = []
    for row, text in enumerate(texts):
        spans, length = word_spans(text), int(examples.lengths[row])
        begun = int(length > len(spans))  # whether the start token is read
        own = {name: each[row, :length] for name, each in weights.items()}
        found.append(
            Explained(
                text,
                int(labels[row]),
                float(probabilities[row]),
                spans,
                length - begun,
                {name: each[begun:] for name, each in own.items()},
                {name: float(each[0]) for name, each in own.items() if begun},
                float(apart[row]),
                None if np.isnan(errors[row]) else float(errors[row]),
            )
        )
    return found


def _with_error(
    one: IntegratedGradients,
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    keys: Keys,
) -> tuple[Attributed, Float[Array, " b"]]:
    weights = one(model, params, tokens, lengths, keys)
    return weights, completeness_error(model, params, tokens, lengths, weights)


def disagreement(weights: Sequence[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """Returns `1 - mean over pairs of Kendall's tau` between sizes of weights `[n t]`, a review.

    Not a number for a review of one token, or a single attribution. Even weights, which have no
    order, are left out of a review's mean.
    """
    pairs = itertools.combinations([np.abs(each) for each in weights], 2)
    taus = [kendall(one, two, lengths).taus for one, two in pairs]
    counts = np.sum([~np.isnan(tau) for tau in taus], axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 where there is no tau
        return 1 - np.sum([np.zeros(len(lengths)), *map(np.nan_to_num, taus)], axis=0) / counts

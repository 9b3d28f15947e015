"""Explanations: texts with their words, attribution weights and the attributions' agreement."""

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
from bilstm_attn.data.tokenisers import make_tokeniser, word_spans
from bilstm_attn.explain.agreement import kendall
from bilstm_attn.explain.attribution import (
    Attribution,
    IntegratedGradients,
    TokenWeights,
    completeness_error,
)
from bilstm_attn.inference.evaluate import Rows, make_step, map_examples, require_finite
from bilstm_attn.inference.exported import Exported
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.devices import replicate
from bilstm_attn.runtime.prng import stream
from bilstm_attn.types import Batch, Keys, Lengths, Params, Tokens

# Lengths to pad to; the cost of some attributions grows with the square of the length.
BUCKET_EDGES = (100, 200, 300)
# The larger is a multiple of the smaller, so that a mesh for one serves the other.
BATCH_SIZE, SMALL_BATCH_SIZE = 48, 16


class Explanation(NamedTuple):
    """One text with one weight per word and attribution."""

    text: str
    label: int
    """The true label, or -1 if unknown."""
    predicted: int
    """The predicted label."""
    probability: float
    """Probability of the last label."""
    label_names: tuple[str, ...]
    spans: list[tuple[int, int]]
    """Start and end of every word, in characters."""
    words_read: int
    """Number of words the model reads; the text is truncated to its last words."""
    weights: dict[str, np.ndarray]
    """Per attribution, the weights of the words that are read, in order."""
    start: dict[str, float]
    """Per attribution, the weight of the start token; empty if truncation removes it."""
    disagreement: float
    """1 - mean Kendall's tau between attributions; NaN for a single word."""
    completeness_error: float | None = None
    """Of integrated gradients, if they were computed."""

    @property
    def prediction(self) -> str:
        """The name of the predicted label."""
        return self.label_names[self.predicted]

    @property
    def label_name(self) -> str | None:
        """The name of the true label, if it is known."""
        return self.label_names[self.label] if self.label >= 0 else None

    @property
    def skipped(self) -> int:
        """Number of words that truncation removes from the start of the text."""
        return len(self.spans) - self.words_read


def encode_texts(texts: Sequence[str], labels: Sequence[int], exported: Exported) -> Examples:
    """Returns texts as examples, tokenised with the model's vocabulary and truncated."""
    tokenise = make_tokeniser(exported.config.data)
    ids = [exported.vocabulary.encode(tokenise(text)) for text in texts]
    stops = np.cumsum([len(each) for each in ids], dtype=np.int64)
    counts = np.diff(stops, prepend=0)
    return Examples(
        ids=np.concatenate([np.zeros(0, np.int32), *ids]),
        starts=stops - counts,
        stops=stops,
        labels=np.array(labels, np.int8),
        rows=np.arange(len(texts)),
        lengths=np.minimum(counts + 1, exported.config.data.max_tokens),
    )


def batch_config(config: DataConfig, examples: int) -> DataConfig:
    """Returns the config with the batch size and bucket edges for explaining `examples` texts."""
    edges = tuple(edge for edge in BUCKET_EDGES if edge < config.max_tokens)
    size = BATCH_SIZE if examples > SMALL_BATCH_SIZE else SMALL_BATCH_SIZE
    return dataclasses.replace(config, batch_size=size, bucket_edges=edges)


Analysis = Callable[[Params, Tokens, Lengths, Keys], Any]


def analyse(
    analysis: Analysis,
    params: Params,
    examples: Examples,
    config: DataConfig,
    mesh: Mesh,
    seed: int = 0,
    advance: Callable[[int], object] = lambda examples: None,
) -> Any:
    """Applies a pure function of parameters, tokens, lengths and keys to every example.

    Its results are arrays `[b]` or `[b t]`; they are returned in the order of `examples`. The key
    of an example derives from `seed` and its row alone, so its random draws do not depend on the
    rest of the batch.
    """
    key = stream(jax.random.key(seed), "explain")

    def of_rows(params: Params, batch_and_rows: tuple[Batch, Rows]) -> Any:
        batch, rows = batch_and_rows
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


class Explainer:
    """Explains texts by an exported model."""

    def __init__(
        self, exported: Exported, model: Model, mesh: Mesh, bar: Callable[[str, int], Any]
    ):
        """`bar(description, total)` returns a context manager with a method `advance`."""
        self.exported, self.model, self.mesh, self.bar = exported, model, mesh, bar

    def __call__(
        self, texts: Sequence[str], labels: Sequence[int], attributions: Mapping[str, Attribution]
    ) -> list[Explanation]:
        """Returns the explanation of every text by every attribution.

        Raises:
          UserError: the model's logits, or an attribution's weights, are not finite.
        """
        examples, task = encode_texts(texts, labels, self.exported), self.exported.task
        logits = self._run("probability", self._logits, examples)
        require_finite(logits, "these texts")
        predicted, probabilities = task.predicted(logits), task.probabilities(logits)[:, -1]
        weights, errors = self._attribute(attributions, examples)
        disagreements = disagreement(list(weights.values()), examples.lengths)
        tokeniser, explanations = make_tokeniser(self.exported.config.data), []
        for row, text in enumerate(texts):
            spans, length = word_spans(tokeniser, text), int(examples.lengths[row])
            start_tokens = int(length > len(spans))  # 0 if truncation removes the start token
            row_weights = {name: each[row, :length] for name, each in weights.items()}
            explanations.append(
                Explanation(
                    text,
                    int(labels[row]),
                    int(predicted[row]),
                    float(probabilities[row]),
                    task.label_names,
                    spans,
                    length - start_tokens,
                    {name: each[start_tokens:] for name, each in row_weights.items()},
                    {name: float(each[0]) for name, each in row_weights.items() if start_tokens},
                    float(disagreements[row]),
                    None if np.isnan(errors[row]) else float(errors[row]),
                )
            )
        return explanations

    def _attribute(
        self, attributions: Mapping[str, Attribution], examples: Examples
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns the weights `[n t]` of each attribution, and completeness errors `[n]` or NaN."""
        weights, errors = {}, np.full(examples.size, np.nan)
        for name, attribution in attributions.items():
            if isinstance(attribution, IntegratedGradients):
                analysis = partial(_weights_and_error, attribution, self.model)
                weights[name], errors = self._run(name, analysis, examples)
            else:
                weights[name] = self._run(name, partial(attribution, self.model), examples)
            require_finite(weights[name], f"these texts, explained by {name},")
        return weights, errors

    def _run(self, name: str, analysis: Analysis, examples: Examples) -> Any:
        config = batch_config(self.exported.config.data, examples.size)
        with self.bar(name, examples.size) as bar:
            params = self.exported.params
            return analyse(analysis, params, examples, config, self.mesh, advance=bar.advance)

    def _logits(
        self, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> Float[Array, " b"]:
        del keys
        return self.model(params, tokens, lengths).logits


def _weights_and_error(
    attribution: IntegratedGradients,
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    keys: Keys,
) -> tuple[TokenWeights, Float[Array, " b"]]:
    weights = attribution(model, params, tokens, lengths, keys)
    return weights, completeness_error(model, params, tokens, lengths, weights)


def disagreement(weights: Sequence[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """Returns `1 - mean over pairs of Kendall's tau` between weights' magnitudes, per example.

    Args:
      weights: of each attribution, `[n t]`.
      lengths: numbers of tokens `[n]`.

    NaN for an example of one token, or a single attribution. Pairs with uniform weights, which
    have no order, are left out of the mean.
    """
    pairs = itertools.combinations([np.abs(each) for each in weights], 2)
    taus = [kendall(first, second, lengths).taus for first, second in pairs]
    counts = np.sum([~np.isnan(tau) for tau in taus], axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no tau is defined
        return 1 - np.sum([np.zeros(len(lengths)), *map(np.nan_to_num, taus)], axis=0) / counts

"""Asks an exported model about new text."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bilstm_attn.data.tokenisers import tokenise, word_spans
from bilstm_attn.data.vocabulary import START, UNKNOWN, Vocabulary, clip
from bilstm_attn.errors import UserError
from bilstm_attn.inference.exported import load_model
from bilstm_attn.nn.metrics import sigmoid
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.pooling import POOLINGS
from bilstm_attn.runtime.files import decode_utf8

MAX_WORDS = 50_000  # twenty times the longest review there is: more is no review
REVIEWS_AT_ONCE = 32


class Word(NamedTuple):
    """A word that was read: its place in the text, in characters, and its attention weight."""

    start: int
    stop: int
    weight: float


class Prediction(NamedTuple):
    """What the model says about one text."""

    text: str
    probability: float  # of a positive review
    words: list[Word]  # those that were read, in order; none if the model has no attention
    read: int  # words read: the last ones
    given: int  # words in the text

    @property
    def label(self) -> str:
        """`positive` or `negative`."""
        return "positive" if self.probability > 0.5 else "negative"

    def top(self, count: int) -> list[Word]:
        """Returns the `count` words of most weight, the largest first."""
        return sorted(self.words, key=lambda word: -word.weight)[:count]

    def as_json(self, count: int) -> dict[str, Any]:
        """Returns what a JSON line holds, with the `count` words of most weight."""
        words = [
            [self.text[word.start : word.stop], round(word.weight, 4)] for word in self.top(count)
        ]
        return {
            "probability": round(self.probability, 6),
            "label": self.label,
            "attention": words,
            "words_read": self.read,
            "words_given": self.given,
        }


def read_text(text: str, vocabulary: Vocabulary, max_tokens: int) -> np.ndarray:
    """Returns the ids `int32[t]` that a model reads of `text`, at most `max_tokens`.

    Raises:
      UserError: the text has no word, none that the model knows, or too many.
    """
    words = tokenise(text)
    if not words:
        raise UserError("the text is empty; give at least one word")
    if len(words) > MAX_WORDS:
        raise UserError(
            f"the text has {len(words):,} words, the limit is {MAX_WORDS:,}, and only the last "
            f"{max_tokens} are read; give the part that matters"
        )
    ids = vocabulary.encode(words)
    if (ids == UNKNOWN).all():
        raise UserError(
            f"the model knows none of the text's {len(words):,} words; it was trained on "
            "English film reviews: give one"
        )
    return clip(ids, max_tokens)


class Predictor:
    """A model from its one exported file, compiled for each length, for one review and for many."""

    def __init__(self, path: Path):
        """Loads `path`, a `model.safetensors`.

        Raises:
          UserError: it is not one, or is damaged.
        """
        exported = load_model(path)
        self.config, self.vocabulary = exported.config, exported.vocabulary
        self.has_attention = POOLINGS[self.config.model.pooling].uses_attention
        self._params = exported.params
        self._model = jax.jit(Model(self.config.model, self.vocabulary.size).__call__)

    def read(self, text: str) -> np.ndarray:
        """Returns the ids `int32[t]` that the model reads of `text`, as `read_text` does."""
        return read_text(text, self.vocabulary, self.config.data.max_tokens)

    def __call__(self, texts: Iterable[str]) -> list[Prediction]:
        """Returns a prediction a text.

        Raises:
          UserError: a text cannot be judged; says why.
        """
        texts = list(texts)
        reviews = [self.read(text) for text in texts]
        predictions = []
        rows = 1 if len(texts) == 1 else REVIEWS_AT_ONCE
        for start in range(0, len(texts), REVIEWS_AT_ONCE):
            chosen = slice(start, start + REVIEWS_AT_ONCE)
            predictions += self._predict(texts[chosen], reviews[chosen], rows=rows)
        return predictions

    def _predict(self, texts: list[str], reviews: list[np.ndarray], rows: int) -> list[Prediction]:
        longest = max(len(review) for review in reviews)
        edge = next(edge for edge in self.config.data.edges if edge >= longest)
        tokens, lengths = np.zeros((rows, edge), np.int32), np.zeros(rows, np.int32)
        for row, review in enumerate(reviews):
            tokens[row, : len(review)], lengths[row] = review, len(review)
        output = self._model(self._params, tokens, lengths)
        probabilities, weights = sigmoid(np.asarray(output.logits)), np.asarray(output.weights)
        return [
            self._explain(text, review, float(probabilities[row]), weights[row])
            for row, (text, review) in enumerate(zip(texts, reviews, strict=True))
        ]

    def _explain(
        self, text: str, review: np.ndarray, probability: float, weights: np.ndarray
    ) -> Prediction:
        spans = word_spans(text)
        begun = int(review[0] == START)  # the start token stands before the first word
        read = len(review) - begun
        words = [
            Word(start, stop, float(weight))
            for (start, stop), weight in zip(
                spans[len(spans) - read :], weights[begun : len(review)], strict=True
            )
        ]
        return Prediction(text, probability, words if self.has_attention else [], read, len(spans))


def predict_lines(
    predictor: Predictor, lines: Iterable[bytes], top: int, emit: Callable[[dict[str, Any]], None]
) -> int:
    """Calls `emit` with a JSON object a line, in order; returns how many could not be judged.

    A line that cannot be judged gives `{"error": ...}`, and the others go on.
    """
    failed = 0
    for number, chunk in _chunks(lines):
        texts: dict[int, str] = {}
        errors: dict[int, str] = {}
        for at, line in enumerate(chunk, start=number):
            try:
                text = decode_utf8(line.rstrip(b"\r\n"), f"line {at}")
                predictor.read(text)
                texts[at] = text
            except UserError as error:
                errors[at] = str(error)
        found = dict(zip(texts, predictor(texts.values()), strict=True))
        for at in range(number, number + len(chunk)):
            emit({"line": at} | (found[at].as_json(top) if at in found else {"error": errors[at]}))
        failed += len(errors)
    return failed


def _chunks(lines: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Yields the number, from 1, of each chunk's first line, and the chunk."""
    remaining, number = iter(lines), 1
    while chunk := list(islice(remaining, REVIEWS_AT_ONCE)):
        yield number, chunk
        number += len(chunk)

"""Predictions of an exported model for new texts."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bilstm_attn.data.tokenisers import Tokeniser, make_tokeniser, word_spans
from bilstm_attn.data.vocabulary import START, UNKNOWN, Vocabulary, clip
from bilstm_attn.errors import UserError
from bilstm_attn.inference.exported import load_model
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.pooling import POOLINGS
from bilstm_attn.runtime.files import decode_utf8

MAX_WORDS = 50_000  # twenty times the longest IMDB review; longer input is likely a mistake
BATCH_SIZE = 32


class Word(NamedTuple):
    """A word that was read: its span in the text, in characters, and its attention weight."""

    start: int
    stop: int
    weight: float


class Prediction(NamedTuple):
    """The prediction for one text."""

    text: str
    label: str  # the name of the predicted label
    last_label: str  # the name of the label that `probability` is of
    probability: float
    words: list[Word]  # the words that were read, in order; empty if the model has no attention
    read: int  # number of words read, the last ones of the text
    given: int  # number of words in the text

    def top(self, count: int) -> list[Word]:
        """Returns the `count` words of greatest weight, in decreasing order."""
        return sorted(self.words, key=lambda word: -word.weight)[:count]

    def as_json(self, count: int) -> dict[str, Any]:
        """Returns the prediction as plain JSON, with the `count` words of greatest weight."""
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


def read_text(
    text: str, tokeniser: Tokeniser, vocabulary: Vocabulary, max_tokens: int
) -> np.ndarray:
    """Returns the ids `int32[t]` of the part of `text` that a model reads.

    Raises:
      UserError: the text has no word, no word of the vocabulary, or too many words.
    """
    words = tokeniser(text)
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
            f"the model knows none of the text's {len(words):,} words; give a text like those it "
            "was trained on"
        )
    return clip(ids, max_tokens)


class Predictor:
    """A model from its exported file, compiled per padded length, for one text or for many."""

    def __init__(self, path: Path):
        """Loads a `model.safetensors`.

        Raises:
          UserError: the file is no exported model, or is damaged, or needs a plug-in.
        """
        exported = load_model(path)
        self.config, self.vocabulary = exported.config, exported.vocabulary
        self.has_attention = POOLINGS[self.config.model.pooling].uses_attention
        self.task = exported.task
        self._tokeniser = make_tokeniser(self.config.data)
        self._params = exported.params
        self._model = jax.jit(Model(self.config.model, self.vocabulary.size).__call__)

    def read(self, text: str) -> np.ndarray:
        """Returns the ids `int32[t]` that the model reads of `text`; raises as `read_text`."""
        return read_text(text, self._tokeniser, self.vocabulary, self.config.data.max_tokens)

    def __call__(self, texts: Iterable[str]) -> list[Prediction]:
        """Returns a prediction for each text.

        Raises:
          UserError: a text cannot be read.
        """
        texts = list(texts)
        ids = [self.read(text) for text in texts]
        predictions = []
        rows = 1 if len(texts) == 1 else BATCH_SIZE
        for start in range(0, len(texts), BATCH_SIZE):
            chosen = slice(start, start + BATCH_SIZE)
            predictions += self._predict(texts[chosen], ids[chosen], rows=rows)
        return predictions

    def _predict(self, texts: list[str], ids: list[np.ndarray], rows: int) -> list[Prediction]:
        longest = max(map(len, ids))
        edge = next(edge for edge in self.config.data.edges if edge >= longest)
        tokens, lengths = np.zeros((rows, edge), np.int32), np.zeros(rows, np.int32)
        for row, read in enumerate(ids):
            tokens[row, : len(read)], lengths[row] = read, len(read)
        output = self._model(self._params, tokens, lengths)
        logits, weights = np.asarray(output.logits), np.asarray(output.weights)
        labels, probabilities = self.task.predicted(logits), self.task.probabilities(logits)
        names = self.task.label_names
        predictions = []
        for row, text in enumerate(texts):
            words, read, given = self._words(text, ids[row], weights[row])
            label, probability = names[labels[row]], float(probabilities[row, -1])
            predictions.append(Prediction(text, label, names[-1], probability, words, read, given))
        return predictions

    def _words(
        self, text: str, ids: np.ndarray, weights: np.ndarray
    ) -> tuple[list[Word], int, int]:
        """Returns the words with their weights, and the number of words read and given."""
        spans = word_spans(self._tokeniser, text)
        start_tokens = int(ids[0] == START)  # before the first word, unless truncated
        read = len(ids) - start_tokens
        words = [
            Word(start, stop, float(weight))
            for (start, stop), weight in zip(
                spans[len(spans) - read :], weights[start_tokens : len(ids)], strict=True
            )
        ]
        return words if self.has_attention else [], read, len(spans)


def predict_lines(
    predictor: Predictor, lines: Iterable[bytes], top: int, emit: Callable[[dict[str, Any]], None]
) -> int:
    """Calls `emit` with a JSON object for each line, in order; returns the number of errors.

    A line that cannot be read gives `{"error": ...}` and does not affect the others.
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
    while chunk := list(islice(remaining, BATCH_SIZE)):
        yield number, chunk
        number += len(chunk)

"""The vocabulary: words to ids, as in Keras's `imdb` data, and truncation. NumPy only."""

from collections.abc import Sequence

import numpy as np

PADDING, START, UNKNOWN = 0, 1, 2
RESERVED = 4  # smaller ids stand for no word; Keras leaves 3 unused


class Vocabulary:
    """Words and their ids: the word of rank r (from 0) has id `RESERVED + r`."""

    def __init__(self, words: Sequence[str]):
        """Takes the words by decreasing frequency."""
        self.words = tuple(words)
        self._ids = {word: RESERVED + rank for rank, word in enumerate(self.words)}

    @property
    def size(self) -> int:
        """Number of rows of the embedding."""
        return RESERVED + len(self.words)

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """Returns the ids `int32[t]` of `words`, `UNKNOWN` for words outside the vocabulary.

        There is no start token yet: `clip` adds it.
        """
        ids = [self._ids.get(word, UNKNOWN) for word in words]
        return np.asarray(ids, np.int32)


def clip(ids: np.ndarray, max_tokens: int) -> np.ndarray:
    """Prepends the start token, then keeps the last `max_tokens` ids.

    >>> clip(np.array([7, 8, 9]), 3).tolist(), clip(np.array([7]), 3).tolist()
    ([7, 8, 9], [1, 7])
    """
    if len(ids) >= max_tokens:
        return ids[len(ids) - max_tokens :]
    return np.concatenate([np.asarray([START], ids.dtype), ids])

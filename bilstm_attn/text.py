"""Text to ids: normalise, tokenise, vocabulary. NumPy only.

The tokenisation is Keras's: lower case; every character of `SEPARATORS` becomes a space; split on
the space. Apostrophes stay. A review starts with one start token; ids follow Keras's `imdb` data.
"""

import re
from collections.abc import Sequence

import numpy as np

from bilstm_attn.errors import UserError

# Part of the token cache's key: raise it when `tokenise` changes.
TOKENISER_VERSION = 1

SEPARATORS = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'
_TO_SPACE = str.maketrans(SEPARATORS, " " * len(SEPARATORS))
_RAW_WORD = re.compile(f"[^{re.escape(SEPARATORS)} ]+")

PADDING, START, UNKNOWN = 0, 1, 2
RESERVED = 4  # ids below belong to no word; Keras leaves 3 unused


def tokenise(text: str) -> list[str]:
    """Returns the words of `text`, in order.

    >>> tokenise("It's<br />GOOD, really")
    ["it's", 'br', 'good', 'really']
    """
    return [word for word in text.lower().translate(_TO_SPACE).split(" ") if word]


def spans(text: str) -> list[tuple[int, int]]:
    """Returns where each word of `tokenise(text)` stands in `text`: start and end, in characters.

    >>> spans("So, so")
    [(0, 2), (4, 6)]
    """
    return [match.span() for match in _RAW_WORD.finditer(text)]


class Vocabulary:
    """Words and their ids: the word of rank r (from 0) has id `RESERVED + r`."""

    def __init__(self, words: Sequence[str]):
        """Takes the words by falling frequency."""
        self.words = tuple(words)
        self._ids = {word: RESERVED + rank for rank, word in enumerate(self.words)}

    @property
    def size(self) -> int:
        """Rows of the embedding."""
        return RESERVED + len(self.words)

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """Returns the ids `int32[t]` of `words`; a word that is not in the vocabulary is `UNKNOWN`.

        The start token is not part of it: `clip` adds it.
        """
        ids = [self._ids.get(word, UNKNOWN) for word in words]
        return np.asarray(ids, np.int32)


def clip(ids: np.ndarray, max_tokens: int) -> np.ndarray:
    """Returns the last `max_tokens` of the start token and `ids`.

    >>> clip(np.array([7, 8, 9]), 3).tolist(), clip(np.array([7]), 3).tolist()
    ([7, 8, 9], [1, 7])
    """
    if len(ids) >= max_tokens:
        return ids[len(ids) - max_tokens :]
    return np.concatenate([np.asarray([START], ids.dtype), ids])


def decode_utf8(data: bytes, origin: str) -> str:
    """Returns `data` as text; `origin` names it in the error.

    Raises:
      UserError: `data` is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{origin} must be UTF-8, but byte {error.start} is 0x{data[error.start]:02x}; "
            "convert it, for example with iconv -t UTF-8"
        ) from None

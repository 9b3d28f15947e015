"""Tokenisers: text to words.

Keras's tokenisation: lower case; every character of `SEPARATORS` becomes a space; split on the
space. Apostrophes stay.
"""

import re

# Part of the key of the token cache: increase it when `tokenise` changes.
TOKENISER_VERSION = 1

SEPARATORS = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'
_TO_SPACE = str.maketrans(SEPARATORS, " " * len(SEPARATORS))
_RAW_WORD = re.compile(f"[^{re.escape(SEPARATORS)} ]+")


def tokenise(text: str) -> list[str]:
    """Returns the words of `text`, in order.

    >>> tokenise("It's<br />GOOD, really")
    ["it's", 'br', 'good', 'really']
    """
    return [word for word in text.lower().translate(_TO_SPACE).split(" ") if word]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Returns the start and end, in characters, of each word of `tokenise(text)` in `text`.

    >>> word_spans("So, so")
    [(0, 2), (4, 6)]
    """
    return [match.span() for match in _RAW_WORD.finditer(text)]

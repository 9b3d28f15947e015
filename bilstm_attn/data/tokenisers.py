"""Text to words. NumPy-free."""

import re

# Part of the token cache's key: raise it when `tokenise` changes.
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
    """Returns where each word of `tokenise(text)` stands in `text`: start and end, in characters.

    >>> word_spans("So, so")
    [(0, 2), (4, 6)]
    """
    return [match.span() for match in _RAW_WORD.finditer(text)]

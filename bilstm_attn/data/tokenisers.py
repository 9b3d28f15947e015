"""Tokenisers: text to words. A new tokeniser is one class and one line in `TOKENISERS`."""

import abc
import re
from typing import ClassVar, final

from bilstm_attn.config import DataConfig
from bilstm_attn.errors import UserError
from bilstm_attn.registry import make

# The characters that Keras replaces by a space.
SEPARATORS = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'
_TO_SPACE = str.maketrans(SEPARATORS, " " * len(SEPARATORS))
_RAW_WORD = re.compile(f"[^{re.escape(SEPARATORS)} ]+")


class Tokeniser(abc.ABC):
    """Splits a text into words. The constructor takes only options."""

    version: ClassVar[int]
    """Part of the key of the token cache: increase it when the words of any text change."""

    @abc.abstractmethod
    def __call__(self, text: str) -> list[str]:
        """Returns the words of `text` in order, each non-empty and without a line break."""

    @abc.abstractmethod
    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the start and end, in characters, of each word of `text`.

        Spans ascend, do not overlap, and are as many as the words.
        """


@final
class Keras(Tokeniser):
    """The default tokenisation of `keras.preprocessing.text.Tokenizer`.

    The text is put in lower case, every character of `SEPARATORS` becomes a space, and the text is
    split at spaces only. Apostrophes remain part of a word.
    """

    version = 1

    def __call__(self, text: str) -> list[str]:
        """Returns the words of `text` in lower case.

        >>> Keras()("It's<br />GOOD, really")
        ["it's", 'br', 'good', 'really']
        """
        return [word for word in text.lower().translate(_TO_SPACE).split(" ") if word]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the start and end of each word of `text`.

        >>> Keras().spans("So, so")
        [(0, 2), (4, 6)]
        """
        return [match.span() for match in _RAW_WORD.finditer(text)]


def make_tokeniser(config: DataConfig) -> Tokeniser:
    """Constructs the tokeniser named by `data.tokeniser` with `data.tokeniser_options`.

    Raises:
      UserError: no such tokeniser, or it does not take these options.
    """
    return make("tokeniser", TOKENISERS, config.tokeniser, config.tokeniser_options)


def word_spans(tokeniser: Tokeniser, text: str) -> list[tuple[int, int]]:
    """Returns the span of every word of `text`, in characters.

    Raises:
      UserError: the spans are not as many as the words, or overlap, or leave the text.
    """
    spans, words = tokeniser.spans(text), tokeniser(text)
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    if len(spans) != len(words) or edges != sorted(edges):
        raise UserError(
            f"tokeniser {type(tokeniser).__name__} must return one span per word, ascending and "
            f"without overlap, but returned {len(spans)} spans for {len(words)} words; fix its "
            "method `spans`"
        )
    return spans


TOKENISERS: dict[str, type[Tokeniser]] = {"keras": Keras}

"""The default tokeniser against Keras's rules and the tutorial's figures, and the table."""

import numpy as np
import pytest
from tiny_run import error_of, train

from bilstm_attn.config import DataConfig
from bilstm_attn.data.sources import MovieReviews
from bilstm_attn.data.tokenisers import (
    SEPARATORS,
    Keras,
    Tokeniser,
    make_tokeniser,
    word_spans,
)

tokenise = Keras()


def test_real_training_reviews_have_the_tutorials_figures():
    lengths = [len(tokenise(text)) + 1 for text, _ in MovieReviews().read("train")]
    assert len(lengths) == 25_000
    assert max(lengths) == 2494
    assert f"{np.mean(lengths):.5f}" == "238.71364"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's GOOD, really!", ["it's", "good", "really"]),
        ("well-made<br /><br />film", ["well", "made", "br", "br", "film"]),
        ("a\tb\nc  d", ["a", "b", "c", "d"]),
        ("caf\u00e9 \u2014 10/10", ["caf\u00e9", "\u2014", "10", "10"]),
        ("one\u00a0word\rtoo", ["one\u00a0word\rtoo"]),  # Keras splits at the space only
        ("... !!", []),
        ("", []),
    ],
)
def test_words_are_those_of_keras(text, words):
    assert tokenise(text) == words


@pytest.mark.parametrize(
    "text", ["So, so <br />'tis FINE", "\u0130stanbul \u0391\u03a3, \u1e9e", SEPARATORS, " a ", ""]
)
def test_spans_select_the_words_in_the_text(text):
    words = [text[start:stop] for start, stop in tokenise.spans(text)]
    assert len(words) == len(tokenise(text))
    assert [tokenise(word) for word in words] == [[word.lower()] for word in words]


def test_the_default_config_names_the_keras_tokeniser():
    assert isinstance(make_tokeniser(DataConfig()), Keras)


def test_an_unknown_tokeniser_or_option_is_one_line_with_the_choices(untrained):
    message = error_of(train, untrained, data__tokeniser="kears")
    assert message == "unknown tokeniser 'kears'; choose keras (did you mean 'keras'?)"
    config = DataConfig(tokeniser_options={"n": 2})
    message = error_of(make_tokeniser, config)
    assert message == "unknown option 'n' of tokeniser 'keras'; it takes none"


class WithSpans(Tokeniser):
    """Words between spaces, with spans that the test chooses."""

    version = 1

    def __init__(self, spans):
        self.chosen = spans

    def __call__(self, text):
        return text.split(" ")

    def spans(self, text):
        return self.chosen


@pytest.mark.parametrize(
    "spans",
    [[(0, 5)], [(0, 5), (4, 11)], [(6, 11), (0, 5)], [(0, 5), (6, 12)], [(-1, 5), (6, 11)]],
    ids=["too few", "overlapping", "descending", "beyond the text", "before the text"],
)
def test_spans_that_do_not_fit_the_words_are_one_line(spans):
    assert word_spans(WithSpans([(0, 5), (6, 11)]), "filmo actar") == [(0, 5), (6, 11)]
    assert error_of(word_spans, WithSpans(spans), "filmo actar") == (
        "tokeniser WithSpans must return one span per word, ascending and without overlap, but "
        f"returned {len(spans)} spans for 2 words; fix its method `spans`"
    )

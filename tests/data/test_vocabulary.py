"""The tokeniser against Keras's rules and the tutorial's figures, and the vocabulary's ids."""

import numpy as np
import pytest

from bilstm_attn.data.sources import MovieReviews
from bilstm_attn.data.tokenisers import SEPARATORS, tokenise, word_spans
from bilstm_attn.data.vocabulary import RESERVED, START, UNKNOWN, Vocabulary, clip
from bilstm_attn.errors import UserError
from bilstm_attn.runtime.files import decode_utf8


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
        ("one\u00a0word\rtoo", ["one\u00a0word\rtoo"]),  # Keras splits on the space alone
        ("... !!", []),
        ("", []),
    ],
)
def test_words_are_those_of_keras(text, words):
    assert tokenise(text) == words


@pytest.mark.parametrize(
    "text", ["So, so <br />'tis FINE", "\u0130stanbul \u0391\u03a3, \u1e9e", SEPARATORS, " a ", ""]
)
def test_spans_are_where_the_words_stand(text):
    found = [text[start:stop] for start, stop in word_spans(text)]
    assert len(found) == len(tokenise(text))
    assert [tokenise(word) for word in found] == [[word.lower()] for word in found]


def test_ids_start_behind_the_reserved_ones_by_rank():
    vocabulary = Vocabulary(["the", "and"])
    assert vocabulary.size == 6
    ids = vocabulary.encode(["and", "the", "zzz"])
    assert ids.tolist() == [RESERVED + 1, RESERVED, UNKNOWN]
    assert ids.dtype == np.int32


@pytest.mark.parametrize("words", range(7))
def test_clip_keeps_the_last_tokens_and_the_start_token_if_it_fits(words):
    ids = np.arange(10, 10 + words, dtype=np.int32)
    whole = [START, *ids.tolist()]
    assert clip(ids, 4).tolist() == whole[-4:]


def test_bytes_that_are_not_utf8_are_named_with_the_way_out():
    assert decode_utf8("caf\u00e9".encode(), "line 1") == "caf\u00e9"
    with pytest.raises(UserError, match="line 7 must be UTF-8, but byte 3 is 0xe9; convert it"):
        decode_utf8("caf\u00e9".encode("latin-1"), "line 7")

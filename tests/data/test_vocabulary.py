"""The vocabulary's ids, and truncation."""

import numpy as np
import pytest

from bilstm_attn.data.vocabulary import RESERVED, START, UNKNOWN, Vocabulary, clip
from bilstm_attn.errors import UserError
from bilstm_attn.runtime.files import decode_utf8


def test_word_ids_follow_the_reserved_ids_in_order_of_rank():
    vocabulary = Vocabulary(["the", "and"])
    assert vocabulary.size == 6
    ids = vocabulary.encode(["and", "the", "zzz"])
    assert ids.tolist() == [RESERVED + 1, RESERVED, UNKNOWN]
    assert ids.dtype == np.int32


@pytest.mark.parametrize("words", range(7))
def test_clip_returns_the_last_tokens_and_the_start_token_if_it_fits(words):
    ids = np.arange(10, 10 + words, dtype=np.int32)
    whole = [START, *ids.tolist()]
    assert clip(ids, 4).tolist() == whole[-4:]


def test_the_error_on_bytes_that_are_not_utf8_names_the_byte_and_a_remedy():
    assert decode_utf8("caf\u00e9".encode(), "line 1") == "caf\u00e9"
    with pytest.raises(UserError, match="line 7 must be UTF-8, but byte 3 is 0xe9; convert it"):
        decode_utf8("caf\u00e9".encode("latin-1"), "line 7")

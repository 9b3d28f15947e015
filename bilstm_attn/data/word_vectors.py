"""Pretrained word vectors, in the text format of fastText, GloVe and word2vec."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from bilstm_attn.data.vocabulary import RESERVED, Vocabulary
from bilstm_attn.errors import UserError


class WordVectors(NamedTuple):
    """Rows of an embedding, with their ids."""

    ids: np.ndarray  # int32[n]
    vectors: np.ndarray  # float32[n e]


def read_vectors(path: Path, vocabulary: Vocabulary, size: int) -> WordVectors:
    """Reads the vectors of the words in the vocabulary, each of `size` numbers.

    Each line holds a word and its vector, separated by spaces. A first line of two numbers is a
    header. Of several lines for one word, the first is used.

    Raises:
      UserError: the file cannot be read, its vectors have another size or are not finite, or it
        holds no word of the vocabulary.
    """
    ids = {word: RESERVED + rank for rank, word in enumerate(vocabulary.words)}
    vectors: dict[int, np.ndarray] = {}
    width = 0  # size of the first vector
    try:
        # A word may contain a character that Unicode counts as a line break.
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                word, *numbers = line.rstrip(" \r\n").split(" ")
                if number == 1 and len(numbers) == 1:
                    continue
                if len(numbers) < size or (width := width or len(numbers)) != size:
                    raise UserError(
                        f"vectors must have model.embedding_size = {size} numbers, but line "
                        f"{number} of {path} has {len(numbers)}; set model.embedding_size "
                        "to the size of the file's vectors"
                    )
                if len(numbers) > size:  # a word with spaces in it, as in some GloVe files
                    continue
                if word in ids and ids[word] not in vectors:
                    vectors[ids[word]] = _numbers(numbers, path, number)
    except OSError as error:
        raise UserError(f"cannot read the word vectors: {error}; give another path") from None
    if not vectors:
        raise UserError(
            f"{path} must hold vectors of words in the vocabulary, but has none of its "
            f"{len(ids):,} words; give word vectors in text format, of the language of the texts"
        )
    return WordVectors(np.array(list(vectors), np.int32), np.stack(list(vectors.values())))


def _numbers(numbers: list[str], path: Path, line: int) -> np.ndarray:
    try:
        vector = np.array(numbers, np.float32)
    except ValueError:
        vector = np.full(1, np.nan, np.float32)
    if not np.isfinite(vector).all():
        raise UserError(f"line {line} of {path} must hold finite numbers; fix that line")
    return vector

"""Pretrained word vectors, in the text format of fastText, GloVe and word2vec."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from bilstm_attn.data.vocabulary import RESERVED, Vocabulary
from bilstm_attn.errors import UserError


class WordVectors(NamedTuple):
    """Rows of an embedding, and their ids."""

    ids: np.ndarray  # int32[n]
    vectors: np.ndarray  # float32[n e]


def read_vectors(path: Path, vocabulary: Vocabulary, size: int) -> WordVectors:
    """Returns the file's vectors of the words in the vocabulary, each of `size` numbers.

    A line holds a word and its numbers, separated by spaces; a first line of two numbers is a
    header. If a word has several lines, the first one is used.

    Raises:
      UserError: the file cannot be read, its vectors have another size, or it has no known word.
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
                        f"{path} has {len(numbers)} numbers in line {number}, and "
                        f"model.embedding_size is {size}; give the file's size there"
                    )
                if len(numbers) > size:  # a word with spaces in it, as in some GloVe files
                    continue
                if word in ids and ids[word] not in vectors:
                    vectors[ids[word]] = _numbers(numbers, path, number)
    except OSError as error:
        raise UserError(f"cannot read the word vectors: {error}; give another path") from None
    if not vectors:
        raise UserError(f"{path} has none of the {len(ids):,} words; give word vectors as text")
    return WordVectors(np.array(list(vectors), np.int32), np.stack(list(vectors.values())))


def _numbers(numbers: list[str], path: Path, line: int) -> np.ndarray:
    try:
        vector = np.array(numbers, np.float32)
    except ValueError:
        vector = np.full(1, np.nan, np.float32)
    if not np.isfinite(vector).all():
        raise UserError(f"{path} has other than finite numbers in line {line}; fix that line")
    return vector

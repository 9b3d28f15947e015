"""Word vectors that were trained elsewhere, in the text form of fastText, GloVe and word2vec."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from bilstm_attn.data.vocabulary import RESERVED, Vocabulary
from bilstm_attn.errors import UserError
from bilstm_attn.runtime.files import file_sha256


class WordVectors(NamedTuple):
    """Vectors of some words of a vocabulary."""

    ids: np.ndarray  # int32[n]
    vectors: np.ndarray  # float32[n e]


def read_vectors(path: Path, vocabulary: Vocabulary, size: int) -> WordVectors:
    """Returns the vectors of the vocabulary's words that a file has, of `size` numbers each.

    A line is a word and its numbers, with spaces between; a first line of two numbers is a heading.
    Of two lines for a word the first counts.

    Raises:
      UserError: it cannot be read, has other than `size` numbers, or none of the words.
    """
    rows = {word: RESERVED + rank for rank, word in enumerate(vocabulary.words)}
    found: dict[int, np.ndarray] = {}
    width = 0  # of the first word's vector
    try:
        # A word may hold what Unicode takes for the end of a line.
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                word, *numbers = line.rstrip(" \r\n").split(" ")
                if number == 1 and len(numbers) == 1:
                    continue
                if len(numbers) < size or (width := width or len(numbers)) != size:
                    raise UserError(
                        f"{path} has {len(numbers)} numbers in line {number}, and "
                        f"model.embedding_size is {size}; make them the same"
                    )
                if len(numbers) > size:  # a word with spaces in it, as some of GloVe's
                    continue
                if word in rows and rows[word] not in found:
                    found[rows[word]] = _numbers(numbers, path, number)
    except OSError as error:
        raise UserError(f"cannot read the word vectors: {error}; give another path") from None
    if not found:
        raise UserError(f"{path} has none of the {len(rows):,} words; give word vectors as text")
    return WordVectors(np.array(list(found), np.int32), np.stack(list(found.values())))


def _numbers(numbers: list[str], path: Path, line: int) -> np.ndarray:
    try:
        vector = np.array(numbers, np.float32)
    except ValueError:
        vector = np.full(1, np.nan, np.float32)
    if not np.isfinite(vector).all():
        raise UserError(f"{path} has other than finite numbers in line {line}; mend that line")
    return vector


def require_digest(path: Path, recorded: str, folder: Path) -> None:
    """Raises a `UserError` unless the file is the one that the run in `folder` recorded."""
    if digest_of(path) != recorded:
        raise UserError(f"{folder} had other word vectors than {path}; put that file back")


def digest_of(path: Path) -> str:
    """Returns the file's SHA-256.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"cannot read the word vectors: {error}; give another path") from None

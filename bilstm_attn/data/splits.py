"""Which examples belong to which part of a data set, in a run's vocabulary."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bilstm_attn.config import Config, DataConfig
from bilstm_attn.data.token_cache import Split, TokenCache
from bilstm_attn.data.vocabulary import RESERVED, Vocabulary
from bilstm_attn.errors import UserError
from bilstm_attn.registry import unknown
from bilstm_attn.runtime.prng import numpy_generator


class Examples(NamedTuple):
    """Reviews of one part of a data set, in ids of a run's vocabulary."""

    ids: np.ndarray  # int32, the whole split, flat
    starts: np.ndarray  # int64[n]: example i's words are ids[starts[i]:stops[i]]
    stops: np.ndarray
    labels: np.ndarray  # int8[n]
    rows: np.ndarray  # int64[n]: which reviews of the split they are
    lengths: np.ndarray  # int64[n], in tokens, with the start token, after truncation

    @property
    def size(self) -> int:
        """Number of reviews."""
        return len(self.rows)


def read_rows(split: Split, config: DataConfig) -> np.ndarray:
    """Returns the rows of the reviews that the config reads, rising."""
    rows = np.arange(len(split.labels))
    return rows[split.counts + 1 <= config.max_tokens] if config.drop_longer else rows


def draw_parts(rows: np.ndarray, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows are the training and which the validation part, each rising.

    Raises:
      UserError: the config asks for more reviews than there are.
    """
    reviews = len(rows)
    wanted = config.validation_examples + (config.train_examples or 1)
    if wanted > reviews:
        raise UserError(
            f"{config.dataset} has {reviews} training reviews; data.validation_examples "
            f"{config.validation_examples} and data.train_examples {config.train_examples} ask for "
            f"{wanted}; lower one of them"
        )
    order = rows[numpy_generator(seed, "split").permutation(reviews)]
    rest = order[config.validation_examples :]
    return np.sort(rest[: config.train_examples]), np.sort(order[: config.validation_examples])


def count_vocabulary(
    split: Split, rows: np.ndarray, lexicon: Sequence[str], size: int
) -> Vocabulary:
    """Returns the `size - 4` most frequent words of reviews `rows`, ties by word."""
    chosen = np.zeros(len(split.labels), bool)
    chosen[rows] = True
    words = split.words[np.repeat(chosen, split.counts)]
    counts = np.bincount(words, minlength=len(lexicon))
    # The lexicon is alphabetical, so a stable sort breaks ties by word.
    ranked = np.argsort(-counts, kind="stable")[: size - RESERVED]
    return Vocabulary([lexicon[int(word)] for word in ranked if counts[word] > 0])


def select_examples(
    split: Split,
    rows: np.ndarray,
    vocabulary: Vocabulary,
    lexicon: Sequence[str],
    max_tokens: int,
) -> Examples:
    """Returns reviews `rows` of `split` in ids of `vocabulary`."""
    starts, stops = split.offsets[:-1][rows], split.offsets[1:][rows]
    return Examples(
        ids=vocabulary.encode(lexicon)[split.words],
        starts=starts,
        stops=stops,
        labels=split.labels[rows],
        rows=rows,
        lengths=np.minimum(stops - starts + 1, max_tokens),
    )


def split_examples(
    tokens: TokenCache, split: str, vocabulary: Vocabulary, config: Config
) -> Examples:
    """Returns the reviews of a split, or of `validation`: those held out from training by seed.

    Raises:
      UserError: the data set has no such split, or nothing was held out.
    """
    if split not in (*tokens.splits, "validation"):
        raise unknown(f"split of {config.data.dataset}", split, (*tokens.splits, "validation"))
    if split != "validation":
        rows = read_rows(tokens.split(split), config.data)
        return examples_of_rows(tokens, split, rows, vocabulary, config)
    _, rows = draw_parts(read_rows(tokens.split("train"), config.data), config.data, config.seed)
    if len(rows) == 0:
        raise UserError("this run held out no validation reviews; give --split test")
    return examples_of_rows(tokens, "train", rows, vocabulary, config)


def examples_of_rows(
    tokens: TokenCache, split: str, rows: np.ndarray, vocabulary: Vocabulary, config: Config
) -> Examples:
    """Returns the examples at `rows` of a split, truncated as the config says."""
    return select_examples(
        tokens.split(split), rows, vocabulary, tokens.lexicon(), config.data.max_tokens
    )

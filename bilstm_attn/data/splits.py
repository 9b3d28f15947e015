"""Splits: the training, validation and test examples of a run, in its vocabulary."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bilstm_attn.config import Config, DataConfig
from bilstm_attn.data.token_cache import Split, TokenCache
from bilstm_attn.data.vocabulary import RESERVED, Vocabulary
from bilstm_attn.errors import UserError
from bilstm_attn.registry import unknown
from bilstm_attn.runtime.prng import numpy_generator


class Examples(NamedTuple):
    """Examples of one split, as ids of a run's vocabulary."""

    ids: np.ndarray  # int32, the whole split, flat
    starts: np.ndarray  # int64[n]: example i's words are ids[starts[i]:stops[i]]
    stops: np.ndarray
    labels: np.ndarray  # int8[n]
    rows: np.ndarray  # int64[n]: their rows in the split
    lengths: np.ndarray  # int64[n], in tokens, with the start token, after truncation
    extras: Mapping[str, np.ndarray] = MappingProxyType({})
    """Arrays `[n]` or `[n max_tokens]` that `read_batch` copies into `Batch.extras`."""

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.rows)

    def take(self, indices: np.ndarray) -> "Examples":
        """Returns the examples at the given indices."""
        return self._replace(
            starts=self.starts[indices],
            stops=self.stops[indices],
            labels=self.labels[indices],
            rows=self.rows[indices],
            lengths=self.lengths[indices],
            extras={name: array[indices] for name, array in self.extras.items()},
        )


def concatenate(first: Examples, second: Examples) -> Examples:
    """Returns the examples of both, in order, without extras."""
    return Examples(
        ids=np.concatenate([first.ids, second.ids]),
        starts=np.concatenate([first.starts, len(first.ids) + second.starts]),
        stops=np.concatenate([first.stops, len(first.ids) + second.stops]),
        labels=np.concatenate([first.labels, second.labels]),
        rows=np.concatenate([first.rows, second.rows]),
        lengths=np.concatenate([first.lengths, second.lengths]),
    )


def read_rows(split: Split, config: DataConfig) -> np.ndarray:
    """Returns the rows that the config reads, ascending: all, or those short enough."""
    rows = np.arange(len(split.labels))
    return rows[split.counts + 1 <= config.max_tokens] if config.drop_longer else rows


def draw_parts(rows: np.ndarray, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the training and of the validation part, each ascending.

    Raises:
      UserError: the config needs more examples than there are.
    """
    size = len(rows)
    required = config.validation_examples + (config.train_examples or 1)
    if required > size:
        raise UserError(
            f"{config.dataset} has {size} training examples; data.validation_examples "
            f"{config.validation_examples} and data.train_examples {config.train_examples} require "
            f"{required}; lower one of them"
        )
    order = rows[numpy_generator(seed, "split").permutation(size)]
    rest = order[config.validation_examples :]
    return np.sort(rest[: config.train_examples]), np.sort(order[: config.validation_examples])


def count_vocabulary(
    split: Split, rows: np.ndarray, lexicon: Sequence[str], size: int
) -> Vocabulary:
    """Returns the `size - 4` most frequent words of the examples `rows`, ties in word order."""
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
    """Returns the examples `rows` of `split` as ids of `vocabulary`."""
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
    """Returns the examples of a split; `validation` are those held out from training by seed.

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
        raise UserError("this run held out no validation examples; give --split test")
    return examples_of_rows(tokens, "train", rows, vocabulary, config)


def examples_of_rows(
    tokens: TokenCache, split: str, rows: np.ndarray, vocabulary: Vocabulary, config: Config
) -> Examples:
    """Returns the examples at `rows` of a split, truncated to `data.max_tokens`."""
    return select_examples(
        tokens.split(split), rows, vocabulary, tokens.lexicon(), config.data.max_tokens
    )


def unlabelled_examples(tokens: TokenCache, vocabulary: Vocabulary, config: Config) -> Examples:
    """Returns the examples of the unlabelled split.

    Raises:
      UserError: the data set has no unlabelled texts.
    """
    if "unlabelled" not in tokens.splits:
        raise UserError(
            f"data.unlabelled_batch_size must be 0 for {config.data.dataset}, which has no "
            f"unlabelled texts, but is {config.data.unlabelled_batch_size}; set it to 0, or choose "
            "another data set"
        )
    rows = read_rows(tokens.split("unlabelled"), config.data)
    return examples_of_rows(tokens, "unlabelled", rows, vocabulary, config)

"""Which reviews make which batch: pure functions of config, seed, epoch and step."""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bilstm_attn.config import DataConfig
from bilstm_attn.data.cache import Split, TokenCache
from bilstm_attn.errors import UserError
from bilstm_attn.text import PADDING, RESERVED, Vocabulary, clip
from bilstm_attn.types import Batch


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


class BatchPlan(NamedTuple):
    """One batch before it is read: which examples, and the length it is padded to."""

    examples: np.ndarray  # int64, at most batch_size
    edge: int


def random_numbers(seed: int, stream: str, *more: int) -> np.random.Generator:
    """Returns the generator of the named stream under `seed`."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), *more])


def draw_parts(reviews: int, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the training and of the validation part, each rising.

    Raises:
      UserError: the config asks for more reviews than there are.
    """
    wanted = config.validation_reviews + (config.train_reviews or 1)
    if wanted > reviews:
        raise UserError(
            f"{config.dataset} has {reviews} training reviews; data.validation_reviews "
            f"{config.validation_reviews} and data.train_reviews {config.train_reviews} ask for "
            f"{wanted}; lower one of them"
        )
    order = random_numbers(seed, "split").permutation(reviews)
    rest = order[config.validation_reviews :]
    return np.sort(rest[: config.train_reviews]), np.sort(order[: config.validation_reviews])


def count_vocabulary(cache: TokenCache, rows: np.ndarray, size: int) -> Vocabulary:
    """Returns the `size - 4` most frequent words of training reviews `rows`, ties by word."""
    split = cache.split("train")
    chosen = np.zeros(len(split.labels), bool)
    chosen[rows] = True
    lexicon = cache.lexicon()
    words = split.words[np.repeat(chosen, split.counts)]
    counts = np.bincount(words, minlength=len(lexicon))
    # The lexicon is alphabetical, so a stable sort breaks ties by word.
    ranked = np.argsort(-counts, kind="stable")[: size - RESERVED]
    return Vocabulary([lexicon[word] for word in ranked if counts[word] > 0])


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


def plan_epoch(lengths: np.ndarray, config: DataConfig, seed: int, epoch: int) -> list[BatchPlan]:
    """Returns the batches of a training epoch.

    Reviews are shuffled; windows of `window_batches` batches are each sorted by length and cut; the
    batches are shuffled again. So a batch holds reviews of similar length, and which ones changes
    from epoch to epoch. Every review comes once.
    """
    numbers = random_numbers(seed, "order", epoch)
    order = numbers.permutation(len(lengths))
    window = config.window_batches * config.batch_size
    plans = []
    for start in range(0, len(order), window):
        members = order[start : start + window]
        plans += plan_by_length(lengths, config, members)
    return [plans[index] for index in numbers.permutation(len(plans))]


def plan_by_length(
    lengths: np.ndarray, config: DataConfig, members: np.ndarray | None = None
) -> list[BatchPlan]:
    """Returns batches of `members` (default all) by rising length; only the last may be short."""
    if members is None:
        members = np.arange(len(lengths))
    members = members[np.argsort(lengths[members], kind="stable")]
    plans = []
    for start in range(0, len(members), config.batch_size):
        chosen = members[start : start + config.batch_size]
        longest = lengths[chosen].max()
        plans.append(BatchPlan(chosen, next(edge for edge in config.edges if edge >= longest)))
    return plans


def read_batch(examples: Examples, plan: BatchPlan, config: DataConfig) -> Batch:
    """Returns the batch of `plan`; rows beyond its examples are filler of weight 0."""
    size = config.batch_size
    tokens = np.full((size, plan.edge), PADDING, np.int32)
    length, label = np.zeros(size, np.int32), np.zeros(size, np.int32)
    weight = np.zeros(size, np.float32)
    for row, example in enumerate(plan.examples):
        words = examples.ids[examples.starts[example] : examples.stops[example]]
        review = clip(words, config.max_tokens)
        tokens[row, : len(review)] = review
        length[row] = len(review)
    filled = len(plan.examples)
    label[:filled] = examples.labels[plan.examples]
    weight[:filled] = 1
    on_host: dict[str, Any] = {"tokens": tokens, "length": length, "label": label, "weight": weight}
    return Batch(**on_host)

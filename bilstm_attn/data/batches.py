"""Which reviews make which batch: pure functions of config, seed, epoch and step."""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bilstm_attn.config import DataConfig
from bilstm_attn.data.cache import Split
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
    """One batch before it is read: which example in which row, and how far rows are padded."""

    slots: np.ndarray  # int64[batch_size], an example, or -1 for filler; group after group
    edges: tuple[int, ...]  # what each of the equal groups is padded to

    @property
    def size(self) -> int:
        """Number of examples."""
        return int((self.slots >= 0).sum())


class Part(NamedTuple):
    """One of equal parts of a batch's rows, group by group: those of one process."""

    number: int  # from 0
    parts: int


ALL_ROWS = Part(0, 1)


def random_numbers(seed: int, stream: str, *more: int) -> np.random.Generator:
    """Returns the generator of the named stream under `seed`."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), *more])


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
    wanted = config.validation_reviews + (config.train_reviews or 1)
    if wanted > reviews:
        raise UserError(
            f"{config.dataset} has {reviews} training reviews; data.validation_reviews "
            f"{config.validation_reviews} and data.train_reviews {config.train_reviews} ask for "
            f"{wanted}; lower one of them"
        )
    order = rows[random_numbers(seed, "split").permutation(reviews)]
    rest = order[config.validation_reviews :]
    return np.sort(rest[: config.train_reviews]), np.sort(order[: config.validation_reviews])


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


def plan_epoch(lengths: np.ndarray, config: DataConfig, seed: int, epoch: int) -> list[BatchPlan]:
    """Returns the batches of a training epoch: every example once, in an order drawn by seed.

    A batch is a random sample, as in the tutorial, but sorted by length and cut into equal groups,
    group g padded to `edges[g]`. The rare batch that does not fit is padded to `max_tokens` whole,
    so that there are at most two layouts to compile for. A group's rows are in an order that gives
    devices, which take so many rows each, reviews of like lengths.

    Deviation from batches of one length each, which waste less: those trained a worse model
    (README, Results).
    """
    order = random_numbers(seed, "order", epoch).permutation(len(lengths))
    plans = []
    for start in range(0, len(order), config.batch_size):
        chosen = order[start : start + config.batch_size]
        slots = _sort_by_length(chosen, lengths, config.batch_size)
        groups = slots.reshape(len(config.edges), -1)
        tops = np.where(groups[:, -1] < 0, 0, lengths[groups[:, -1]])
        fits = bool((tops <= config.edges).all())
        edges = config.edges if fits else (config.max_tokens,) * len(config.edges)
        plans.append(BatchPlan(groups[:, _interleaved(config.group_size)].reshape(-1), edges))
    return plans


def plan_by_length(lengths: np.ndarray, config: DataConfig) -> list[BatchPlan]:
    """Returns batches of one group each, of all examples by rising length, to measure with."""
    order = np.argsort(lengths, kind="stable")
    plans = []
    for start in range(0, len(order), config.batch_size):
        slots = _sort_by_length(
            order[start : start + config.batch_size], lengths, config.batch_size
        )
        edge = next(edge for edge in config.edges if edge >= lengths[slots[-1]])
        plans.append(BatchPlan(slots[_interleaved(config.batch_size)], (edge,)))
    return plans


def _sort_by_length(chosen: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Returns the chosen examples by rising length, after so much filler that there are `size`."""
    ordered = chosen[np.argsort(lengths[chosen], kind="stable")]
    return np.concatenate([np.full(size - len(chosen), -1), ordered])


def _interleaved(size: int) -> np.ndarray:
    """Returns an order of sorted rows of which every equal part is a fair sample.

    It is that of the bit-reversed row numbers (van der Corput): halves are the even and the odd
    rows, and so on.
    """
    bits = max(size - 1, 1).bit_length()
    turned = [int(f"{row:0{bits}b}"[::-1], 2) for row in range(size)]
    return np.argsort(turned)


def read_batch(
    examples: Examples, plan: BatchPlan, config: DataConfig, part: Part = ALL_ROWS
) -> tuple[Batch, ...]:
    """Returns the part's rows of the batch of `plan`, a `Batch` a group."""
    groups = np.split(plan.slots, len(plan.edges))
    return tuple(
        _read_group(examples, np.split(slots, part.parts)[part.number], edge, config.max_tokens)
        for slots, edge in zip(groups, plan.edges, strict=True)
    )


def _read_group(examples: Examples, slots: np.ndarray, edge: int, max_tokens: int) -> Batch:
    """Returns the examples in `slots`, padded to `edge`; -1 is filler, weight 0, length 0."""
    tokens = np.full((len(slots), edge), PADDING, np.int32)
    length = np.where(slots < 0, 0, examples.lengths[slots]).astype(np.int32)
    for row, example in enumerate(slots):
        if example >= 0:
            words = examples.ids[examples.starts[example] : examples.stops[example]]
            tokens[row, : length[row]] = clip(words, max_tokens)
    on_host: dict[str, Any] = {
        "tokens": tokens,
        "length": length,
        "label": np.where(slots < 0, -1, examples.labels[slots]).astype(np.int32),
        "weight": (slots >= 0).astype(np.float32),
    }
    return Batch(**on_host)

"""Batches: which examples are in which batch, as pure functions of config, seed and epoch.

The rows of a batch come from one or more streams, each with a quota of rows and a random order of
its own: labelled examples, of which an epoch is one pass, and unlabelled ones.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bilstm_attn.config import DataConfig
from bilstm_attn.data.splits import Examples
from bilstm_attn.data.vocabulary import PADDING, clip
from bilstm_attn.runtime.devices import ALL_ROWS, Part
from bilstm_attn.runtime.prng import numpy_generator
from bilstm_attn.types import Batch


class BatchPlan(NamedTuple):
    """A batch before its tokens are read: the example of every row, and the padded lengths."""

    slots: np.ndarray  # int64[batch_size]: index of an example, -1 for filler; group by group
    edges: tuple[int, ...]  # the padded length of each of the equal groups

    @property
    def size(self) -> int:
        """Number of examples."""
        return int((self.slots >= 0).sum())


class Stream(NamedTuple):
    """Examples that fill a fixed number of rows of every batch, pass after pass."""

    name: str  # of the random order: a key of its own, whatever other streams do
    examples: range  # indices of the stream's examples
    quota: int  # rows per batch

    def draw(self, seed: int, first_step: int, steps: int) -> np.ndarray:
        """Returns the examples `[steps quota]` of some steps, counted over all epochs.

        Every pass over the stream has a new order. A batch may span two passes.
        """
        size, start = len(self.examples), first_step * self.quota
        passes, positions = np.divmod(np.arange(start, start + steps * self.quota), size)
        drawn = np.empty(len(positions), np.int64)
        for number in np.unique(passes):
            order = numpy_generator(seed, f"{self.name} order", int(number)).permutation(size)
            drawn[passes == number] = order[positions[passes == number]]
        return self.examples.start + drawn.reshape(steps, self.quota)


def steps_per_epoch(examples: int, config: DataConfig) -> int:
    """Returns the number of batches of one pass over the labelled examples."""
    return -(-examples // config.batch_size)


def plan_epoch(
    lengths: np.ndarray,
    config: DataConfig,
    seed: int,
    epoch: int,
    streams: Sequence[Stream] = (),
) -> list[BatchPlan]:
    """Returns the batches of a training epoch: every labelled example once, in random order.

    A batch is a random sample, as in the tutorial, sorted by length and cut into equal groups;
    group g is padded to `edges[g]`. The rare batch that does not fit is padded to `max_tokens` as a
    whole, so there are at most two layouts to compile. The rows of a group are ordered so that
    every device gets examples of similar lengths.

    Deviation from batches of equal lengths, which waste less: those trained a worse model
    (docs/results.md).

    Args:
      lengths: int64[n], of the labelled examples, then of those of the streams.
      config: sizes of batches and groups.
      seed: the seed of every random order.
      epoch: the number of the epoch, from 0.
      streams: further sources of rows, `config.unlabelled_batch_size` rows in all.
    """
    labelled = len(lengths) - sum(len(stream.examples) for stream in streams)
    order = numpy_generator(seed, "order", epoch).permutation(labelled)
    steps = steps_per_epoch(labelled, config)
    others = [stream.draw(seed, epoch * steps, steps) for stream in streams]
    plans = []
    for step in range(steps):
        chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
        chosen = np.concatenate([chosen, *(rows[step] for rows in others)])
        slots = _sort_by_length(chosen, lengths, config.rows_per_step)
        groups = slots.reshape(len(config.edges), -1)
        tops = np.where(groups[:, -1] < 0, 0, lengths[groups[:, -1]])
        fits = bool((tops <= config.edges).all())
        edges = config.edges if fits else (config.max_tokens,) * len(config.edges)
        plans.append(BatchPlan(groups[:, _interleaved(config.group_size)].reshape(-1), edges))
    return plans


def plan_by_length(lengths: np.ndarray, config: DataConfig) -> list[BatchPlan]:
    """Returns batches of one group each, of all examples by increasing length, for evaluation."""
    order = np.argsort(lengths, kind="stable")
    plans = []
    rows = config.rows_per_step
    for start in range(0, len(order), rows):
        slots = _sort_by_length(order[start : start + rows], lengths, rows)
        edge = next(edge for edge in config.edges if edge >= lengths[slots[-1]])
        plans.append(BatchPlan(slots[_interleaved(rows)], (edge,)))
    return plans


def _sort_by_length(chosen: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Returns the chosen examples by increasing length, after filler up to `size` rows."""
    ordered = chosen[np.argsort(lengths[chosen], kind="stable")]
    return np.concatenate([np.full(size - len(chosen), -1), ordered])


def _interleaved(size: int) -> np.ndarray:
    """Returns an order of sorted rows in which every equal part is a representative sample.

    It sorts by bit-reversed row numbers (van der Corput): the halves are the even and the odd
    rows, and so on.
    """
    bits = max(size - 1, 1).bit_length()
    reversed_bits = [int(f"{row:0{bits}b}"[::-1], 2) for row in range(size)]
    return np.argsort(reversed_bits)


def read_batch(
    examples: Examples, plan: BatchPlan, config: DataConfig, part: Part = ALL_ROWS
) -> tuple[Batch, ...]:
    """Returns the rows of one process of the planned batch, one `Batch` per group."""
    groups = np.split(plan.slots, len(plan.edges))
    return tuple(
        _read_group(examples, np.split(slots, part.parts)[part.number], edge, config.max_tokens)
        for slots, edge in zip(groups, plan.edges, strict=True)
    )


def _read_group(examples: Examples, slots: np.ndarray, edge: int, max_tokens: int) -> Batch:
    """Returns the examples in `slots`, padded to `edge`; -1 is a filler row of weight 0."""
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
        "extras": {
            name: _extra_rows(array, slots, edge) for name, array in examples.extras.items()
        },
    }
    return Batch(**on_host)


def _extra_rows(array: np.ndarray, slots: np.ndarray, edge: int) -> np.ndarray:
    """Returns the rows of an extra `[n]` or `[n max_tokens]`, zero at filler, cut to `edge`."""
    rows = array[slots] if array.ndim == 1 else array[slots, :edge]
    rows[slots < 0] = 0
    return rows

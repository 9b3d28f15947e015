"""Which reviews make which batch: pure functions of config, seed, epoch and step."""

from typing import Any, NamedTuple

import numpy as np

from bilstm_attn.config import DataConfig
from bilstm_attn.data.splits import Examples
from bilstm_attn.data.vocabulary import PADDING, clip
from bilstm_attn.runtime.devices import ALL_ROWS, Part
from bilstm_attn.runtime.prng import numpy_generator
from bilstm_attn.types import Batch


class BatchPlan(NamedTuple):
    """One batch before it is read: which example in which row, and how far rows are padded."""

    slots: np.ndarray  # int64[batch_size], an example, or -1 for filler; group after group
    edges: tuple[int, ...]  # what each of the equal groups is padded to

    @property
    def size(self) -> int:
        """Number of examples."""
        return int((self.slots >= 0).sum())


def plan_epoch(lengths: np.ndarray, config: DataConfig, seed: int, epoch: int) -> list[BatchPlan]:
    """Returns the batches of a training epoch: every example once, in an order drawn by seed.

    A batch is a random sample, as in the tutorial, but sorted by length and cut into equal groups,
    group g padded to `edges[g]`. The rare batch that does not fit is padded to `max_tokens` whole,
    so that there are at most two layouts to compile for. A group's rows are in an order that gives
    devices, which take so many rows each, reviews of like lengths.

    Deviation from batches of one length each, which waste less: those trained a worse model
    (README, Results).
    """
    order = numpy_generator(seed, "order", epoch).permutation(len(lengths))
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

"""What every implementation computes: the same batches of real texts, with the same parameters."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bilstm_attn.benchmark.benchmark_options import BenchmarkOptions
from bilstm_attn.benchmark.peer import VOCABULARY
from bilstm_attn.config import DataConfig, ModelConfig, require
from bilstm_attn.data.batches import BatchPlan, plan_epoch, read_batch
from bilstm_attn.data.splits import count_vocabulary, select_examples
from bilstm_attn.data.token_cache import TokenCache
from bilstm_attn.nn.model import Model
from bilstm_attn.types import Batch, Params

ARRAYS = ("tokens", "length", "label", "weight")  # the fields of a batch that are saved


class Workload(NamedTuple):
    """The batches of one measurement."""

    batch: Batch  # for a training step, and for inference
    single: Batch  # one text without padding
    epoch: list[tuple[Batch, ...]]  # the first batches of an epoch, each in its length groups

    @property
    def rows(self) -> int:
        """The greatest common divisor of the number of rows of every batch but `single`."""
        groups = [group for groups in self.epoch for group in groups]
        return int(np.gcd.reduce([len(batch.length) for batch in (self.batch, *groups)]))


class TrainingTexts:
    """The training texts of a data set in a vocabulary of `VOCABULARY` words."""

    def __init__(self, tokens: TokenCache, options: BenchmarkOptions):
        self._options, self._lexicon = options, tokens.lexicon()
        self._split = tokens.split("train")
        every_row = np.arange(len(self._split.labels))
        self._vocabulary = count_vocabulary(self._split, every_row, self._lexicon, VOCABULARY)

    def rows(self, steps: int) -> np.ndarray:
        """Returns the rows to draw from: all, or with `--lengths full` those of `steps` tokens."""
        is_long = self._split.counts + 1 >= steps  # the start token is one more
        return np.flatnonzero(is_long | (self._options.lengths == "all"))

    def make_workload(self, batch_size: int, steps: int, epoch_steps: int = 0) -> Workload:
        """Returns batches of `batch_size` texts padded to `steps` tokens; an epoch is grouped.

        Raises:
          UserError: the data set has fewer texts than a batch.
        """
        rows = self.rows(steps)
        require(
            batch_size <= len(rows),
            f"a batch of {batch_size} needs as many texts, but {self._options.dataset} has only "
            f"{len(rows)}; choose another --dataset or a smaller --batch-size",
        )
        examples = select_examples(self._split, rows, self._vocabulary, self._lexicon, steps)
        padded = DataConfig(batch_size=batch_size, max_tokens=steps, bucket_edges=())
        (batch,) = read_batch(examples, plan_epoch(examples.lengths, padded, 0, 0)[0], padded)
        median = np.argsort(examples.lengths, kind="stable")[len(rows) // 2]
        length = int(examples.lengths[median])
        unpadded = DataConfig(batch_size=1, max_tokens=length, bucket_edges=())
        (single,) = read_batch(examples, BatchPlan(np.array([median]), (length,)), unpadded)
        if epoch_steps == 0:
            return Workload(batch, single, [])
        grouped = DataConfig(batch_size=batch_size, max_tokens=steps)
        plans = plan_epoch(examples.lengths, grouped, 0, 0)[:epoch_steps]
        return Workload(batch, single, [read_batch(examples, plan, grouped) for plan in plans])


def save_workload(path: Path, workload: Workload) -> None:
    """Writes a workload as an .npz file."""
    batches = {"batch": workload.batch, "single": workload.single} | {
        f"epoch {step} {group}": batch
        for step, groups in enumerate(workload.epoch)
        for group, batch in enumerate(groups)
    }
    arrays: dict[str, Any] = {
        f"{name}.{field}": np.asarray(getattr(batch, field))
        for name, batch in batches.items()
        for field in ARRAYS
    }
    np.savez(path, **arrays)


def load_workload(path: Path) -> Workload:
    """Reads a file of `save_workload`."""
    with np.load(path) as arrays:
        names = dict.fromkeys(name.split(".")[0] for name in arrays)
        batches = {
            name: Batch(**{field: arrays[f"{name}.{field}"] for field in ARRAYS}) for name in names
        }
    steps: dict[str, list[Batch]] = {}
    for name, batch in batches.items():
        if name.startswith("epoch"):
            steps.setdefault(name.split()[1], []).append(batch)
    epoch = [tuple(groups) for groups in steps.values()]
    return Workload(batches["batch"], batches["single"], epoch)


def make_params(config: ModelConfig) -> Params:
    """Returns the shared parameters, scaled so that logits are of order 1.

    Drawn with NumPy: the first JAX computation would fix the number of CPU devices.
    """
    model, numbers = Model(config, VOCABULARY), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return jax.tree.map(lambda leaf: numbers.normal(0, 0.4, leaf.shape).astype(np.float32), shapes)

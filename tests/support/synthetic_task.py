"""A synthetic task: texts of random words in which a single informative word gives the label.

A quarter of the training texts lack the informative word and have random labels, so that a model
cannot learn one label from a word and the other label from the absence of that word.
"""

from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bilstm_attn.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bilstm_attn.data.splits import Examples
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import make_mesh
from bilstm_attn.training.in_memory_run import InMemoryRun
from bilstm_attn.training.loop import train
from bilstm_attn.training.train_program import make_program

STEPS, TEXTS, UNINFORMATIVE, HELD_OUT, WORDS = 12, 700, 150, 100, 20
FIRST_INFORMATIVE = 4  # id of the word of label 0; 5 is the word of label 1
QUIET = Console(quiet=True)
CONFIG = Config(
    data=DataConfig(max_tokens=STEPS, batch_size=48, bucket_edges=()),
    model=ModelConfig(
        embedding_size=8,
        hidden_size=6,
        layers=1,
        attention="additive_keys",
        attention_size=5,
        dense_size=8,
        input_dropout=0.0,
        head_dropout=0.0,
    ),
    optim=OptimConfig(learning_rate=0.02),
    train=TrainConfig(epochs=12),
)


class SyntheticTask(NamedTuple):
    """A trained model, its data, and the positions of the informative words."""

    model: Model
    params: dict
    training: Examples
    held_out: Examples
    tokens: np.ndarray  # held-out texts, [n t]
    positions: np.ndarray  # of the informative words of the held-out texts, [n]
    mesh: Mesh


@cache
def synthetic_task() -> SyntheticTask:
    """Returns the task with a model trained on it."""
    generator = np.random.default_rng(0)
    counts = generator.integers(5, STEPS, TEXTS)  # words, without the start token
    labels = generator.integers(0, 2, TEXTS)
    positions = (generator.random(TEXTS) * counts).astype(int)
    stops = np.cumsum(counts)
    ids = generator.integers(FIRST_INFORMATIVE + 2, WORDS, stops[-1]).astype(np.int32)
    rows = np.arange(TEXTS)
    informative = rows[UNINFORMATIVE:]
    word_positions = (stops - counts + positions)[informative]
    ids[word_positions] = FIRST_INFORMATIVE + labels[informative]

    def examples(rows: np.ndarray) -> Examples:
        starts = (stops - counts)[rows]
        return Examples(
            ids, starts, stops[rows], labels[rows].astype(np.int8), rows, counts[rows] + 1
        )

    training, held_out = examples(rows[:-HELD_OUT]), examples(rows[-HELD_OUT:])
    tokens = np.zeros((HELD_OUT, STEPS), np.int32)
    for row, (start, stop) in enumerate(zip(held_out.starts, held_out.stops, strict=True)):
        tokens[row, : stop - start + 1] = [1, *ids[start:stop]]
    model, mesh = Model(CONFIG.model, WORDS), make_mesh(CONFIG.data.batch_size, 2)
    run, program = InMemoryRun(CONFIG, training), make_program(CONFIG, model, training.size, mesh)
    train(run, program, console=QUIET)
    params = jax.device_put(run.params)
    return SyntheticTask(model, params, training, held_out, tokens, positions[-HELD_OUT:] + 1, mesh)


def keys_of(examples: int) -> jax.Array:
    """Returns one key per example."""
    return jax.random.split(jax.random.key(0), examples)

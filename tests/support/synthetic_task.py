"""Reviews of noise in which one word says which of the two answers is right, and who learns it.

A quarter of those to learn from say nothing, whatever their label: who took either answer for given
where the other's word is missing would need one of the words alone.
"""

from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bilstm_attn.config import Config, DataConfig, ModelConfig, OptimConfig
from bilstm_attn.data.splits import Examples
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import make_mesh
from bilstm_attn.studies.attention_as_explanation.wiegreffe_pinter import Labels, fit

STEPS, REVIEWS, SILENT, WORDS = 12, 700, 150, 20
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
)


class Planted(NamedTuple):
    """A trained model, reviews it has not seen, and where each one's evidence is."""

    model: Model
    params: dict
    training: Examples
    held_out: Examples
    tokens: np.ndarray  # of those held out
    positions: np.ndarray
    mesh: Mesh


@cache
def planted() -> Planted:
    numbers = np.random.default_rng(0)
    counts = numbers.integers(5, STEPS, REVIEWS)  # words, without the start token
    labels = numbers.integers(0, 2, REVIEWS)
    positions = (numbers.random(REVIEWS) * counts).astype(int)
    stops = np.cumsum(counts)
    ids = numbers.integers(6, WORDS, stops[-1]).astype(np.int32)
    rows = np.arange(REVIEWS)
    telling = rows[SILENT:]
    ids[(stops - counts + positions)[telling]] = 4 + labels[telling]  # word 4 or word 5

    def examples(chosen: np.ndarray) -> Examples:
        starts = (stops - counts)[chosen]
        return Examples(
            ids, starts, stops[chosen], labels[chosen].astype(np.int8), chosen, counts[chosen] + 1
        )

    training, held_out = examples(rows[:-100]), examples(rows[-100:])
    tokens = np.zeros((100, STEPS), np.int32)
    for row, (start, stop) in enumerate(zip(held_out.starts, held_out.stops, strict=True)):
        tokens[row, : stop - start + 1] = [1, *ids[start:stop]]
    model, mesh = Model(CONFIG.model, WORDS), make_mesh(CONFIG.data.batch_size, 2)
    params = fit(Labels(), model, training, CONFIG, mesh, QUIET, epochs=12)
    return Planted(model, params, training, held_out, tokens, positions[-100:] + 1, mesh)


def keys_of(reviews: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), reviews)

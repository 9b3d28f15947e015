"""A small model for every cell, encoder, attention, pooling and backend."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest

from bilstm_attn.config import ModelConfig
from bilstm_attn.nn.attention import ATTENTIONS
from bilstm_attn.nn.backend import prepare_native
from bilstm_attn.nn.cells import CELLS
from bilstm_attn.nn.encoder import ENCODERS
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.pooling import POOLINGS

VOCABULARY = 11
SMALL = {"embedding_size": 4, "hidden_size": 3, "attention_size": 5, "dense_size": 2}
DEFAULT = ModelConfig(**SMALL)
CONFIGS = {"cell-lstm": DEFAULT}  # also tests attention additive and pooling attention
# (entries, layers): cells are tested with two layers; one layer compiles faster.
TABLES = {
    "cell": (CELLS, 2),
    "encoder": (ENCODERS, 1),
    "attention": (ATTENTIONS, 1),
    "pooling": (POOLINGS, 1),
}
CONFIGS |= {
    f"{field}-{name}": dataclasses.replace(DEFAULT, layers=layers, **{field: name})
    for field, (table, layers) in TABLES.items()
    for name in table
    if getattr(DEFAULT, field) != name
}
CONFIGS["head-without-dense"] = dataclasses.replace(DEFAULT, layers=1, dense_size=0)
prepare_native()
BACKENDS = {"backend-native": "native", "backend-plain": "plain"}  # other variants: scan
CONFIGS |= dict.fromkeys(BACKENDS, DEFAULT)
every_variant = pytest.mark.parametrize("name", CONFIGS)


@cache
def make_model(name):
    """Returns the model of a variant, and parameters that give logits of order 1."""
    model = Model(CONFIGS[name], VOCABULARY, BACKENDS.get(name, "scan"))
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + np.float32(0.3) * generator.normal(size=leaf.shape).astype(np.float32),
        jax.device_get(initial(name, 0)),
    )
    if "dense" in params:
        params["dense"]["bias"] += 3  # the ReLU is active for every example
    return model, jax.device_put(params)


@cache
def jitted_init(name):
    return jax.jit(Model(CONFIGS[name], VOCABULARY, BACKENDS.get(name, "scan")).init)


def initial(name, seed):
    """Returns the initial parameters of a variant."""
    return jitted_init(name)(jax.random.key(seed))

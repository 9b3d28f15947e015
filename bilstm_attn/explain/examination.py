"""What `scripts/examine.py` does: puts runs through everything, and writes the report.

What was found about a run is kept beside it, piece by piece, so that an examination that was
stopped goes on where it was.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bilstm_attn.backend import choose_backend, keep_compiled
from bilstm_attn.checkpoint import Exported, load_model, write_file
from bilstm_attn.config import BackendChoice, Config, require
from bilstm_attn.data.batches import Examples, random_numbers
from bilstm_attn.data.cache import DataPlaces, TokenCache, prepare_tokens
from bilstm_attn.errors import UserError
from bilstm_attn.explain.attribution import ATTRIBUTIONS
from bilstm_attn.explain.examine import (
    Attributions,
    Examiner,
    JainWallace,
    examine_attention,
    examine_attributions,
    logits_and_attention,
)
from bilstm_attn.explain.jain_wallace import jensen_shannon
from bilstm_attn.explain.naive import time_naive
from bilstm_attn.explain.report import Examined, Trained, write_report
from bilstm_attn.explain.reviews import batches_of
from bilstm_attn.explain.wiegreffe_pinter import Adversary, Labels, fit, logits_under
from bilstm_attn.member import Member
from bilstm_attn.metrics import accuracy, sigmoid
from bilstm_attn.model import Model
from bilstm_attn.objectives import Objective
from bilstm_attn.pooling import POOLINGS
from bilstm_attn.run import Run
from bilstm_attn.session import make_member, split_examples
from bilstm_attn.sharding import make_mesh
from bilstm_attn.terminal import Show
from bilstm_attn.text import clip
from bilstm_attn.types import Keys, Lengths, Logits, Params, Tokens

Analysis = Callable[..., Any]  # of model, parameters, tokens, lengths and keys
SAMPLE = 4  # reviews for which naive loops are timed


class Kept:
    """Pieces of plain JSON in a folder: each is made once."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns the piece called `name`, which `make` makes if it is not there yet."""
        path = self.folder / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            write_file(path, json.dumps(make()).encode())
        return json.loads(path.read_bytes())


def take(examples: Examples, chosen: np.ndarray) -> Examples:
    """Returns some of the examples."""
    each = {name: getattr(examples, name)[chosen] for name in Examples._fields if name != "ids"}
    return examples._replace(**each)


def run_examination(
    folders: Sequence[Path],
    *,
    out: Path,
    limit: int,
    few: int,
    seed: int,
    strengths: Sequence[float],
    epochs: int | None,
    places: DataPlaces,
    devices: int | None,
    backend: BackendChoice,
) -> int:
    """Examines runs on the test split and writes the report; returns the exit status.

    Raises:
      UserError: a run has no attention, or is none; says what to do.
    """
    require(bool(folders), "give at least one run's folder")
    require(limit > 0, f"--limit must be above 0, got {limit}")
    require(few > 0, f"--few must be above 0, got {few}")
    require(epochs is None or epochs > 0, f"--epochs must be above 0, got {epochs}")
    for one in strengths:
        require(0 <= one < math.inf, f"--strengths must be finite and at least 0, got {one}")
    show = Show()
    runs = [Run(folder) for folder in folders]
    loaded = [load_model(run.exported()) for run in runs]
    for run, exported in zip(runs, loaded, strict=True):
        pooling = exported.config.model.pooling
        require(
            POOLINGS[pooling].uses_attention,
            f"{run.folder} has no attention to examine: its pooling is {pooling!r}; give a run "
            "whose pooling is 'attention'",
        )
    names = [exported.config.name for exported in loaded]
    require(
        len(set(names)) == len(names),
        f"the runs must have names of their own, got {', '.join(names)}; other seeds beside a run "
        "are compared with it",
    )
    rows = [batches_of(exported.config.data, limit).batch_size for exported in loaded]
    groups = [exported.config.data.group_size for exported in loaded]
    mesh = make_mesh(int(np.gcd.reduce([*rows, *groups])), devices)
    keep_compiled(show)
    found = []
    for run, exported in zip(runs, loaded, strict=True):
        tokens = prepare_tokens(exported.config.data.dataset, places, show)
        model = Model(
            exported.config.model,
            exported.vocabulary.size,
            choose_backend(backend, exported.config, show),
        )
        whole = split_examples(tokens, "test", exported.vocabulary, exported.config)
        drawn = np.sort(random_numbers(seed, "examine").permutation(whole.size)[:limit])
        number = epochs or exported.config.train.epochs
        digest = hashlib.sha256(run.model.read_bytes()).hexdigest()[:12]
        setting = f"{digest}-{len(drawn)}-reviews-seed{seed}-{number}-epochs"
        subject = Subject(
            run,
            exported,
            tokens,
            model,
            take(whole, drawn),
            np.sort(random_numbers(seed, "few").permutation(len(drawn))[:few]),
            mesh,
            show,
            number,
            Kept(run.folder / "examination" / setting),
        )
        about = (
            f"seed {exported.config.seed}, on {len(drawn):,} test reviews of "
            f"{exported.config.data.dataset}, drawn with seed {seed}"
        )
        found.append(subject.examine(strengths, about))
    write_report(found, out)
    show.say(f"wrote {out / 'report.md'}, {out / 'report.html'} and the figures beside them")
    return 0


@dataclasses.dataclass
class Subject:
    """A run that is examined, on some test reviews."""

    run: Run
    exported: Exported
    tokens: TokenCache
    model: Model
    examples: Examples
    few: np.ndarray  # those of them about which everything is asked of every attribution
    mesh: Mesh
    show: Show
    epochs: int  # of what is trained beside it
    kept: Kept

    @property
    def config(self) -> Config:
        """The run's."""
        return self.exported.config

    def ask(self, what: str, model: Model, params: Params, analysis: Analysis) -> Any:
        """Returns what an analysis says of every review."""
        return self.examiner(model, params).ask(what, analysis)

    def examiner(self, model: Model, params: Params) -> Examiner:
        """Returns who asks a model about these reviews."""
        return Examiner(model, params, self.examples, self.config.data, self.mesh, self.show)

    def examine(self, strengths: Sequence[float], about: str) -> Examined:
        """Returns everything, what is kept from there."""
        base = self.examiner(self.model, self.exported.params)
        attention = JainWallace.from_json(
            self.kept("attention", lambda: examine_attention(base).as_json())
        )
        some = dataclasses.replace(base, examples=take(self.examples, self.few), seconds={})
        everyone = {name: make() for name, make in ATTRIBUTIONS.items()}
        attributions = Attributions.from_json(
            self.kept(
                f"attributions {len(self.few)}",
                lambda: examine_attributions(some, everyone),
            )
        )
        naive = self.kept("naive", self._naive)
        trained = [Trained(*self.kept(name, make)) for name, make in self._trainings().items()]
        trade_off = [
            (strength, Trained(*self.kept(f"adversary {strength:g}", self._adversary(strength))))
            for strength in sorted(strengths)
        ]
        name, labels = self.config.name, self.examples.labels
        return Examined(name, about, labels, attention, attributions, naive, trained, trade_off)

    def _naive(self) -> dict[str, float]:
        """Returns the seconds that loops over words and draws take for one of the reviews."""
        examples, most = self.examples, self.config.data.max_tokens
        bounds = zip(examples.starts, examples.stops, strict=True)
        reviews = [clip(examples.ids[slice(*each)], most) for each in islice(bounds, SAMPLE)]
        self.show.say(f"{self.config.name}: timing naive loops over {len(reviews)} reviews")
        return time_naive(self.model, self.exported.params, most, reviews)

    # What is trained beside it

    @cached_property
    def _member(self) -> Member:
        """The reviews and words that the run was trained on."""
        member = make_member(self.tokens, self.config, self.run)
        if member.vocabulary.words != self.exported.vocabulary.words:
            raise UserError(
                f"{self.run.folder} was trained on other data than {self.tokens.folder}; give the "
                "--cache it had"
            )
        return member

    @cached_property
    def _base(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and attention of the run's own model."""
        return self.ask("base", self.model, self.exported.params, logits_and_attention)

    def _judge(self, name: str, logits: np.ndarray, attention: np.ndarray | None) -> list[Any]:
        """Returns the fields of a `Trained`."""
        own, weights = self._base
        change = float(np.abs(sigmoid(logits) - sigmoid(own)).mean())
        apart = None
        if attention is not None:
            apart = float(jensen_shannon(jnp.asarray(attention), jnp.asarray(weights), 1).mean())
        return [name, accuracy(logits, self.examples.labels), apart, change]

    def _fit(self, name: str, objective: Objective, model: Model, frozen: tuple = ()) -> Params:
        self.show.say(f"{self.config.name}: training {name}")
        return fit(
            objective,
            model,
            self.exported.params,
            self._member.training,
            self.config,
            self.mesh,
            lambda what, total: self.show.bar(what, total, 0),
            epochs=self.epochs,
            frozen=frozen,
            vectors=self._member.vectors(),
        )

    def _trainings(self) -> dict[str, Callable[[], list[Any]]]:
        """Returns what makes each model that is trained beside the run's, by its name."""
        seeds = {
            f"{folder.name} of the recipe": partial(self._other_seed, folder)
            for folder in sorted(self.run.folder.parent.glob("seed*"))
            if folder.resolve() != self.run.folder.resolve() and Run(folder).model.is_file()
        }
        return seeds | {
            "even attention": partial(self._even, "even attention"),
            "frozen attention": partial(self._frozen, "frozen attention"),
            "perceptron, even attention": partial(self._perceptron, "uniform", guided=False),
            "perceptron, its own attention": partial(self._perceptron, None, guided=False),
            "perceptron, the base's attention": partial(self._perceptron, None, guided=True),
        }

    def _other_seed(self, folder: Path) -> list[Any]:
        """Judges the same recipe with another seed, which has words of its own."""
        other = load_model(Run(folder).exported())
        rows, config = self.examples.rows, other.config
        examples = split_examples(self.tokens, "test", other.vocabulary, config)
        model = Model(config.model, other.vocabulary.size, self.model.backend)
        chosen = take(examples, np.searchsorted(examples.rows, rows))
        examiner = Examiner(model, other.params, chosen, config.data, self.mesh, self.show)
        return self._judge(
            f"{folder.name} of the recipe", *examiner.ask(folder.name, logits_and_attention)
        )

    def _even(self, name: str) -> list[Any]:
        model = self._like(attention="uniform")
        params = self._fit(name, Labels(), model)
        return self._judge(name, *self.ask(name, model, params, logits_and_attention))

    def _frozen(self, name: str) -> list[Any]:
        params = self._fit(name, Labels(), self.model, frozen=("attention",))
        return self._judge(name, *self.ask(name, self.model, params, logits_and_attention))

    def _perceptron(self, attention: str | None, *, guided: bool) -> list[Any]:
        whose = "the base's" if guided else "even" if attention else "its own"
        name = f"perceptron, {whose} attention"
        changed = {"attention": attention} if attention else {}
        model = self._like(encoder="token_wise", **changed)
        params = self._fit(name, Labels(self.model if guided else None), model)
        if not guided:
            return self._judge(name, *self.ask(name, model, params, logits_and_attention))

        def logits_guided(
            model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
        ) -> Logits:
            del keys
            imposed = self.model(params["base"], tokens, lengths).weights.T
            return logits_under(model, params["own"], tokens, lengths, imposed)

        both = {"own": params, "base": self.exported.params}
        return self._judge(name, self.ask(name, model, both, logits_guided), None)

    def _adversary(self, strength: float) -> Callable[[], list[Any]]:
        name = f"adversary, λ {strength:g}"

        def make() -> list[Any]:
            params = self._fit(name, Adversary(strength), self.model)
            return self._judge(name, *self.ask(name, self.model, params, logits_and_attention))

        return make

    def _like(self, **changed: Any) -> Model:
        """Returns the model with another config."""
        return dataclasses.replace(
            self.model, config=dataclasses.replace(self.model.config, **changed)
        )

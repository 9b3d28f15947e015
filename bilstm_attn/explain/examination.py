"""What `scripts/examine.py` does: puts runs through everything, and writes the report.

What was found about a run is kept beside it, piece by piece, so that an examination that was
stopped goes on where it was.
"""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bilstm_attn.backend import choose_backend, keep_compiled
from bilstm_attn.checkpoint import Exported, export_model, load_model
from bilstm_attn.config import BackendChoice, Config, differences, require, require_seed
from bilstm_attn.data.batches import Examples, random_numbers
from bilstm_attn.data.cache import DataPlaces, TokenCache, prepare_tokens
from bilstm_attn.errors import UserError
from bilstm_attn.evaluate import require_finite
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
from bilstm_attn.explain.kept import Kept
from bilstm_attn.explain.naive import time_naive
from bilstm_attn.explain.report import EVEN, Examined, Trained, write_report
from bilstm_attn.explain.reviews import FEWEST_AT_ONCE
from bilstm_attn.explain.wiegreffe_pinter import Adversary, Base, Labels, fit, logits_under
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
from bilstm_attn.vectors import require_digest

Analysis = Callable[..., Any]  # of model, parameters, tokens, lengths and keys
SAMPLE = 4  # reviews for which naive loops are timed
FORM = 3  # of what is kept; one more where an experiment changes its numbers


def _digest(run: Run) -> str:
    return hashlib.sha256(run.model.read_bytes()).hexdigest()[:12]


def take(examples: Examples, chosen: np.ndarray) -> Examples:
    """Returns some of the examples."""
    each = {name: getattr(examples, name)[chosen] for name in Examples._fields if name != "ids"}
    return examples._replace(**each)


def furthest(trade_off: Sequence[tuple[float, Trained]], within: float) -> float:
    """Returns the strength of the adversary whose attention is furthest from the base's.

    Of those whose answers are within a mean change of probability of the base's; if none is, of the
    one whose answers are nearest.
    """
    near = [
        (one.divergence or 0.0, strength) for strength, one in trade_off if one.change <= within
    ]
    return max(near)[1] if near else min((one.change, strength) for strength, one in trade_off)[1]


def run_examination(
    folders: Sequence[Path],
    *,
    out: Path,
    limit: int,
    few: int,
    seed: int,
    strengths: Sequence[float],
    epochs: int | None,
    adversary_epochs: int | None,
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
    require_seed(seed)
    require(few > 0, f"--few must be above 0, got {few}")
    require(epochs is None or epochs >= 0, f"--epochs must be at least 0, got {epochs}")
    require(
        adversary_epochs is None or adversary_epochs > 0,
        f"--adversary-epochs must be above 0, got {adversary_epochs}",
    )
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
    groups = [exported.config.data.group_size for exported in loaded]
    mesh = make_mesh(int(np.gcd.reduce([FEWEST_AT_ONCE, *groups])), devices)
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
        number = exported.config.train.epochs if epochs is None else epochs
        of_adversary = adversary_epochs or number
        of_what = f"{_digest(run)}-{tokens.meta['sha256'][:12]}-form{FORM}"
        setting = f"{of_what}-{len(drawn)}-reviews-seed{seed}"
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
            of_adversary,
            Kept(run.folder / "examination" / setting),
        )
        about = (
            f"seed {exported.config.seed}, on {len(drawn):,} test reviews of "
            f"{exported.config.data.dataset}, drawn with seed {seed}"
        )
        if number:
            about += f"; epochs of models beside it: {number}, of adversaries: {of_adversary}"
        found.append(subject.examine(strengths if number else (), about))
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
    epochs: int  # of what is trained beside it; with 0 nothing is
    adversary_epochs: int
    kept: Kept

    @property
    def config(self) -> Config:
        """The run's."""
        return self.exported.config

    def ask(self, what: str, model: Model, params: Params, analysis: Analysis) -> Any:
        """Returns what an analysis says of every review."""
        return self.examiner(model, params, self.examples).ask(what, analysis)

    def examiner(self, model: Model, params: Params, examples: Examples) -> Examiner:
        """Returns who asks a model about some reviews."""
        return Examiner(model, params, examples, self.config.data, self.mesh, self.show)

    def examine(self, strengths: Sequence[float], about: str) -> Examined:
        """Returns everything, what is kept from there."""
        base = self.examiner(self.model, self.exported.params, self.examples)
        attention = JainWallace.from_json(
            self.kept("attention", lambda: examine_attention(base).as_json())
        )
        some = self.examiner(self.model, self.exported.params, take(self.examples, self.few))
        everyone = {name: make() for name, make in ATTRIBUTIONS.items()}
        attributions = Attributions.from_json(
            self.kept(
                f"attributions {len(self.few)}",
                lambda: examine_attributions(some, everyone),
            )
        )
        naive = self.kept("naive", self._naive)
        beside = itertools.chain(self._other_seeds(), self._companions())
        trained = [Trained(*self.kept(*each)) for each in beside]
        trade_off = [
            (at, Trained(*self.kept(self._of_adversary(at), partial(self._far, at))))
            for at in sorted(strengths)
        ]
        if strengths:
            even = next(one for one in trained if one.name == EVEN)
            strength = furthest(trade_off, within=even.change)
            name = f"perceptron, attention of adversary λ {strength:g}"
            kept = f"perceptron of {self._of_adversary(strength)} {self.epochs} epochs"
            trained.append(Trained(*self.kept(kept, partial(self._misled, name, strength))))
        return Examined(
            self.config.name,
            about,
            self.examples.labels,
            attention,
            attributions,
            naive,
            trained,
            trade_off,
            self.kept.seconds,
        )

    def _naive(self) -> dict[str, float]:
        """Returns the mean seconds that loops over words and draws take for a review."""
        most = self.config.data.max_tokens
        sample = take(self.examples, np.linspace(0, self.examples.size - 1, SAMPLE).astype(int))
        bounds = zip(sample.starts, sample.stops, strict=True)
        reviews = [clip(sample.ids[slice(*each)], most) for each in bounds]
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
        if vectors := self.config.model.vectors:
            recorded = self.run.environment()["vectors_sha256"]
            require_digest(Path(vectors), recorded, self.run.folder)
        return member

    @cached_property
    def _base(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and attention of the run's own model."""
        return self.ask("base", self.model, self.exported.params, logits_and_attention)

    @cached_property
    def _answers(self) -> Base:
        """What the run's own model says of the reviews it was trained on."""
        return self._said(self.exported.params)

    def _judge(self, name: str, logits: np.ndarray, attention: np.ndarray | None) -> list[Any]:
        """Returns the fields of a `Trained`."""
        require_finite(logits, f"these reviews ({name})")
        own, weights = self._base
        change = float(np.abs(sigmoid(logits) - sigmoid(own)).mean())
        right, apart = accuracy(logits, self.examples.labels), None
        if attention is not None:
            apart = jensen_shannon(jnp.asarray(attention), jnp.asarray(weights), 1).tolist()
        return [name, right, change, apart]

    def _fit(
        self,
        name: str,
        objective: Objective,
        model: Model,
        **how: Any,
    ) -> Params:
        """Returns the parameters of a model trained as the run was, from a seed of its own."""
        self.show.say(f"{self.config.name}: training {name}")
        return fit(
            objective,
            model,
            self._member.training,
            dataclasses.replace(self.config, seed=(self.config.seed + 1) % 2**32),
            self.mesh,
            lambda what, total: self.show.bar(what, total, 0),
            **{"epochs": self.epochs, "vectors": self._member.vectors()} | how,
        )

    def _said(self, params: Params) -> Base:
        """Returns what the model with these parameters says of the reviews trained on."""
        examiner = self.examiner(self.model, params, self._member.training)
        return Base(*examiner.ask("its answers", logits_and_attention))

    def _other_seeds(self) -> Iterator[tuple[str, Callable[[], list[Any]]]]:
        """Yields the name of each finished run of another seed, and what judges it."""
        for folder in sorted(self.run.folder.resolve().parent.glob("seed*")):
            other = Run(folder)
            if folder != self.run.folder.resolve() and other.model.is_file():
                yield from self._other_seed(other)

    def _companions(self) -> Iterator[tuple[str, Callable[[], list[Any]]]]:
        """Yields the name of each model to train beside the run's, and what judges it."""
        if not self.epochs:
            return
        even = {"attention": "uniform", "attention_options": {}}
        learned: list[tuple[str, Model, tuple[str, ...]]] = [(EVEN, self._like(**even), ())]
        if self.exported.params.get("attention"):
            learned.append(("frozen attention", self.model, ("attention",)))
        learned += [
            ("perceptron, even attention", self._like(encoder="token_wise", **even), ()),
            ("perceptron, its own attention", self._like(encoder="token_wise"), ()),
        ]
        for one in learned:
            yield f"{one[0]} {self.epochs} epochs", partial(self._learn, *one)
        name = "perceptron, the base's attention"
        yield f"{name} {self.epochs} epochs", partial(self._guided, name, self.exported.params)

    def _other_seed(self, run: Run) -> Iterator[tuple[str, Callable[[], list[Any]]]]:
        """Yields the same recipe with another seed, which has words of its own."""
        name, other = run.folder.name, load_model(run.model)
        alike = dataclasses.replace(other.config, seed=self.config.seed)
        if differing := differences(alike, self.config):
            self.show.say(f"{run.folder} is left out, of another config ({differing[0]})")
            return

        def judge() -> list[Any]:
            examples = split_examples(self.tokens, "test", other.vocabulary, other.config)
            chosen = take(examples, np.searchsorted(examples.rows, self.examples.rows))
            model = Model(other.config.model, other.vocabulary.size, self.model.backend)
            found = self.examiner(model, other.params, chosen).ask(name, logits_and_attention)
            return self._judge(f"the recipe's {name}", *found)

        yield f"the recipe's {name} {_digest(run)}", judge

    def _learn(self, name: str, model: Model, frozen: tuple[str, ...]) -> list[Any]:
        params = self._fit(name, Labels(), model, frozen=frozen)
        return self._judge(name, *self.ask(name, model, params, logits_and_attention))

    def _guided(self, name: str, guide: Params) -> list[Any]:
        """Judges a perceptron under the attention of the model with the parameters `guide`."""
        perceptron = self._like(encoder="token_wise")

        def logits_guided(
            model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
        ) -> Logits:
            del keys
            imposed = self.model(params["base"], tokens, lengths).weights.T
            return logits_under(model, params["own"], tokens, lengths, imposed)

        own = self._fit(name, Labels(guided=True), perceptron, base=self._said(guide))
        both = {"own": own, "base": guide}
        return self._judge(name, self.ask(name, perceptron, both, logits_guided), None)

    def _adversary(self, strength: float) -> Params:
        """Returns the adversary's parameters, trained once; it is kept as an exported model."""
        name = f"adversary, λ {strength:g}"
        path = self.kept.path(self._of_adversary(strength)).with_suffix(".safetensors")
        if not path.exists():
            params = self._fit(
                name,
                Adversary(strength),
                self.model,
                base=self._answers,
                epochs=self.adversary_epochs,
                select="least_loss",
            )
            config = dataclasses.replace(self.config, name=f"{self.config.name}-{path.stem}")
            export_model(path, params, config, self.exported.vocabulary)
        return load_model(path).params

    def _of_adversary(self, strength: float) -> str:
        return f"adversary {strength:g} {self.adversary_epochs} epochs"

    def _far(self, strength: float) -> list[Any]:
        name, params = f"adversary, λ {strength:g}", self._adversary(strength)
        return self._judge(name, *self.ask(name, self.model, params, logits_and_attention))

    def _misled(self, name: str, strength: float) -> list[Any]:
        return self._guided(name, self._adversary(strength))

    def _like(self, **changed: Any) -> Model:
        """Returns the model with another config."""
        return dataclasses.replace(
            self.model, config=dataclasses.replace(self.model.config, **changed)
        )

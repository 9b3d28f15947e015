"""Models beside one that is examined: of other seeds, and trained to see what its attention is for.

Wiegreffe and Pinter, 2019, arXiv:1908.04626, sections 3 and 4. Each is judged once; what was found
is kept beside the run.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from bilstm_attn.config import differences
from bilstm_attn.data.vocabulary import RESERVED
from bilstm_attn.data.word_vectors import require_digest
from bilstm_attn.errors import UserError
from bilstm_attn.explain.attribution import Attributed
from bilstm_attn.inference.exported import Exported, export_model, load_model
from bilstm_attn.nn.model import Model
from bilstm_attn.studies.attention_as_explanation.measurements import logits_and_attention
from bilstm_attn.studies.attention_as_explanation.study_result import EVEN, TradeOff, Trained
from bilstm_attn.studies.attention_as_explanation.study_run import Subject, digest_of_model
from bilstm_attn.studies.attention_as_explanation.wiegreffe_pinter import (
    Adversary,
    Base,
    Labels,
    fit,
    logits_under,
)
from bilstm_attn.training.commands import make_replica
from bilstm_attn.training.objectives import Objective
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.training.seed_replica import SeedReplica
from bilstm_attn.types import Keys, Lengths, Logits, Params, Tokens

AdversaryStart = Literal["base", "random"]


def furthest(trade_off: TradeOff, within: float) -> float:
    """Returns the strength of the adversary whose attention is furthest from the base's.

    Of those whose answers are within a mean change of probability of the base's; if none is, of the
    one whose answers are nearest.
    """
    near = [
        (one.divergence or 0.0, strength) for strength, one in trade_off if one.change <= within
    ]
    return max(near)[1] if near else min((one.change, strength) for strength, one in trade_off)[1]


def other_seeds(subject: Subject) -> list[Trained]:
    """Returns each finished run of the same recipe with another seed.

    Raises:
      UserError: a run's model is damaged, or its answers are not finite.
    """
    own, others = subject.run.folder.resolve(), {}
    for folder in sorted(own.parent.glob("seed*")):
        run = RunDir(folder)
        if folder == own or not run.model.is_file():
            continue
        other = load_model(run.model)
        alike = dataclasses.replace(other.config, seed=subject.config.seed)
        if differing := differences(alike, subject.config):
            subject.console.print(f"{folder} is left out, of another config ({differing[0]})")
            continue
        others[f"the recipe's {folder.name} {digest_of_model(run)}"] = other
    ask = cache(partial(ask_together, subject, others))

    def judge(kept: str) -> list[Any]:
        return subject.judge(kept.rpartition(" ")[0], *ask()[kept])

    return [Trained(*subject.kept(name, partial(judge, name))) for name in others]


def ask_together(
    subject: Subject, others: Mapping[str, Exported]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns what other models of the subject's kind say of its reviews: logits and attention.

    One pass asks all of them, of the lexicon's words: each model has a table that makes them ids of
    its own, and an embedding with as many rows as the largest.
    """
    lexicon = subject.tokens.lexicon()
    rows = max(one.vocabulary.size for one in others.values())

    def with_table(one: Exported) -> Params:
        embedding = np.asarray(one.params["embedding"])
        padded = np.pad(embedding, ((0, rows - len(embedding)), (0, 0)))
        ids = np.concatenate([np.arange(RESERVED, dtype=np.int32), one.vocabulary.encode(lexicon)])
        return {"model": one.params | {"embedding": padded}, "ids": ids}

    def of_each(
        model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> list[tuple[Logits, Attributed]]:
        def of_one(one: Params) -> tuple[Logits, Attributed]:
            return logits_and_attention(model, one["model"], one["ids"][tokens], lengths, keys)

        return list(zip(*jax.vmap(of_one)(params), strict=True))

    every = [with_table(one) for one in others.values()]
    asking = subject.asking(
        params=jax.tree.map(lambda *leaves: np.stack(leaves), *every),
        examples=subject.examples._replace(ids=RESERVED + subject.tokens.split("test").words),
    )
    return dict(zip(others, asking.ask("other seeds", of_each), strict=True))


@dataclasses.dataclass
class Companions:
    """Models trained on the reviews that the subject was trained on.

    Its methods raise a `UserError` where the data or the word vectors are not those of the run, or
    training ends in answers that are not finite.
    """

    subject: Subject
    epochs: int
    adversary_epochs: int
    adversary_start: AdversaryStart

    def labelled(self) -> list[Trained]:
        """Returns models trained on the labels: with other attention, or without a recurrence."""
        subject = self.subject
        even, words = {"attention": "uniform", "attention_options": {}}, {"encoder": "token_wise"}
        found = [self._learned(EVEN, even)]
        if subject.exported.params.get("attention"):
            found.append(self._learned("frozen attention", {}, frozen=("attention",)))
        return [
            *found,
            self._learned("perceptron, even attention", words | even),
            self._learned("perceptron, its own attention", words),
            self._guided("perceptron, the base's attention", lambda: subject.exported.params),
        ]

    def adversaries(self, strengths: Sequence[float]) -> TradeOff:
        """Returns adversaries of each strength."""
        return [(strength, self._adversary(strength)) for strength in sorted(strengths)]

    def misled(self, strength: float) -> Trained:
        """Returns a perceptron under an adversary's attention."""
        name = f"perceptron, attention of adversary λ {strength:g}"
        kept = f"perceptron of {self._name(strength)}"
        return self._guided(name, partial(self._adversarys_params, strength), kept)

    def _learned(self, name: str, changed: dict[str, Any], frozen: tuple[str, ...] = ()) -> Trained:
        model = self._like(changed)

        def judge() -> list[Any]:
            params = self._fit(name, Labels(), model, frozen=frozen)
            found = self.subject.asking(model, params).ask(name, logits_and_attention)
            return self.subject.judge(name, *found)

        return self._kept(name, judge)

    def _guided(self, name: str, guide: Callable[[], Params], kept: str | None = None) -> Trained:
        """Returns a perceptron under the attention of the model with the parameters of `guide`."""
        perceptron, leader = self._like({"encoder": "token_wise"}), self.subject.model

        def logits_guided(
            model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
        ) -> Logits:
            del keys
            imposed = leader(params["guide"], tokens, lengths).weights.T
            return logits_under(model, params["own"], tokens, lengths, imposed)

        def judge() -> list[Any]:
            params = guide()
            own = self._fit(name, Labels(guided=True), perceptron, base=self._said(params))
            both = {"own": own, "guide": params}
            logits = self.subject.asking(perceptron, both).ask(name, logits_guided)
            return self.subject.judge(name, logits, None)

        return self._kept(kept or name, judge)

    def _adversary(self, strength: float) -> Trained:
        name = f"adversary, λ {strength:g}"

        def judge() -> list[Any]:
            params = self._adversarys_params(strength)
            found = self.subject.asking(params=params).ask(name, logits_and_attention)
            return self.subject.judge(name, *found)

        return Trained(*self.subject.kept(self._name(strength), judge))

    def _adversarys_params(self, strength: float) -> Params:
        """Returns the adversary's parameters, trained once; it is kept as an exported model."""
        subject = self.subject
        path = subject.kept.path(self._name(strength)).with_suffix(".safetensors")
        if not path.exists():
            params = self._fit(
                f"adversary, λ {strength:g}",
                Adversary(strength),
                subject.model,
                start=self._start(),
                base=self._answers,
                epochs=self.adversary_epochs,
                select="least_loss",
            )
            config = dataclasses.replace(subject.config, name=f"{subject.config.name}-{path.stem}")
            export_model(path, params, config, subject.exported.vocabulary)
        return load_model(path).params

    def _start(self) -> Params:
        """Returns what adversaries begin with: nothing, or the base's but for its attention.

        Deviation from Wiegreffe and Pinter, whose adversaries begin at random and train for up to
        80 epochs: where the answers are wrong and certain, their loss has next to no gradient, and
        few epochs may end there (README). Attention without parameters could not begin anew, and
        at the base itself the loss has no gradient at all.
        """
        params = self.subject.exported.params
        if self.adversary_start == "random" or not params.get("attention"):
            return {}
        return {name: part for name, part in params.items() if name != "attention"}

    def _name(self, strength: float) -> str:
        begun = f"from {self.adversary_start} {self.adversary_epochs} epochs"
        return f"adversary {strength:g} {begun}"

    def _kept(self, name: str, judge: Callable[[], list[Any]]) -> Trained:
        return Trained(*self.subject.kept(f"{name} {self.epochs} epochs", judge))

    def _like(self, changed: dict[str, Any]) -> Model:
        """Returns the subject's model with another config."""
        model = self.subject.model
        return dataclasses.replace(model, config=dataclasses.replace(model.config, **changed))

    def _fit(self, name: str, objective: Objective, model: Model, **how: Any) -> Params:
        """Returns the parameters of a model trained as the run was, from a seed of its own."""
        subject = self.subject
        subject.console.print(f"{subject.config.name}: training {name}")
        return fit(
            objective,
            model,
            self._member.training,
            dataclasses.replace(subject.config, seed=(subject.config.seed + 1) % 2**32),
            subject.mesh,
            subject.console,
            **{"epochs": self.epochs, "vectors": self._member.vectors()} | how,
        )

    def _said(self, params: Params) -> Base:
        """Returns what the model with these parameters says of the reviews trained on."""
        asking = self.subject.asking(params=params, examples=self._member.training)
        return Base(*asking.ask("its answers", logits_and_attention))

    @cached_property
    def _answers(self) -> Base:
        """What the run's own model says of the reviews it was trained on."""
        return self._said(self.subject.exported.params)

    @cached_property
    def _member(self) -> SeedReplica:
        """The reviews and words that the run was trained on."""
        subject = self.subject
        replica = make_replica(subject.tokens, subject.config, subject.run)
        if replica.vocabulary.words != subject.exported.vocabulary.words:
            raise UserError(
                f"{subject.run.folder} was trained on other data than {subject.tokens.folder}; "
                "give the --cache it had"
            )
        if vectors := subject.config.model.vectors:
            recorded = subject.run.environment()["vectors_sha256"]
            require_digest(Path(vectors), recorded, subject.run.folder)
        return replica

"""Auxiliary models for comparison: other seeds, ablated attention, perceptrons, adversaries.

Wiegreffe and Pinter, 2019, arXiv:1908.04626, sections 3 and 4. Comparisons are cached in the run
folder.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Literal

import jax
import numpy as np

from bilstm_attn.config import differences
from bilstm_attn.data.vocabulary import RESERVED
from bilstm_attn.errors import UserError
from bilstm_attn.explain.attribution import TokenWeights
from bilstm_attn.inference.exported import Exported, export_model, load_model
from bilstm_attn.nn.model import Model
from bilstm_attn.studies.attention_as_explanation.measurements import logits_and_attention
from bilstm_attn.studies.attention_as_explanation.study_result import (
    OTHER_SEED,
    UNIFORM,
    ModelComparison,
    TradeOff,
)
from bilstm_attn.studies.attention_as_explanation.study_run import StudyRun, model_digest
from bilstm_attn.studies.attention_as_explanation.wiegreffe_pinter import (
    Adversary,
    Extras,
    GuidedCrossEntropy,
    base_extras,
    logits_under,
)
from bilstm_attn.training.in_memory_run import InMemoryRun
from bilstm_attn.training.initial import require_recorded
from bilstm_attn.training.loop import train
from bilstm_attn.training.objectives import CrossEntropy, Objective
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.training.seed_replica import SeedReplica, make_replica
from bilstm_attn.training.train_program import make_program
from bilstm_attn.types import Keys, Lengths, Logits, Params, Tokens

AdversaryStart = Literal["base", "random"]


def auxiliary_divergence(step: int, epoch: int) -> UserError:
    """Returns the error of an auxiliary model whose training diverges."""
    return UserError(
        f"the loss of an auxiliary model is not finite at step {step} (epoch {epoch}); give "
        "--epochs 0, or a run with a lower --optim.learning-rate"
    )


def furthest_adversary(trade_off: TradeOff, within: float) -> float:
    """Returns the strength of the adversary whose attention diverges most from the base model's.

    Considers adversaries whose mean probability change is at most `within`; if there is none,
    returns the one with the smallest change.
    """
    near = [
        (model.divergence or 0.0, strength)
        for strength, model in trade_off
        if model.probability_change <= within
    ]
    if near:
        return max(near)[1]
    return min((model.probability_change, strength) for strength, model in trade_off)[1]


def compare_other_seeds(study_run: StudyRun) -> list[ModelComparison]:
    """Compares every finished run of the same recipe with another seed.

    Runs with another config are skipped, with a printed line.

    Raises:
      UserError: an exported model is damaged, or its logits are not finite.
    """
    base_folder, others = study_run.run_dir.folder.resolve(), {}
    for folder in sorted(base_folder.parent.glob("seed*")):
        run_dir = RunDir(folder)
        if folder == base_folder or not run_dir.model.is_file():
            continue
        exported = load_model(run_dir.model)
        same_seed = dataclasses.replace(exported.config, seed=study_run.config.seed)
        if differing := differences(same_seed, study_run.config):
            study_run.console.print(f"skipping {folder}: its config differs ({differing[0]})")
            continue
        others[f"{OTHER_SEED}, {folder.name} {model_digest(run_dir)}"] = exported
    evaluate = functools.cache(partial(evaluate_together, study_run, others))

    def compare(key: str) -> list[Any]:
        name = key.rpartition(" ")[0]  # without the digest
        return study_run.compare(name, *evaluate()[key])

    return [ModelComparison(*study_run.cache.get(key, partial(compare, key))) for key in others]


def evaluate_together(
    study_run: StudyRun, others: Mapping[str, Exported]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns logits `[n]` and attention `[n t]` of several models of the run's architecture.

    One vmapped pass evaluates all of them on ids of the lexicon, the data set's whole word list.
    A table per model maps these to ids of its own vocabulary; embeddings are padded to the largest
    vocabulary.
    """
    lexicon = study_run.tokens.lexicon()
    rows = max(exported.vocabulary.size for exported in others.values())

    def with_table(exported: Exported) -> Params:
        embedding = np.asarray(exported.params["embedding"])
        padded = np.pad(embedding, ((0, rows - len(embedding)), (0, 0)))
        reserved = np.arange(RESERVED, dtype=np.int32)
        ids = np.concatenate([reserved, exported.vocabulary.encode(lexicon)])
        return {"model": exported.params | {"embedding": padded}, "ids": ids}

    def of_all(
        model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
    ) -> list[tuple[Logits, TokenWeights]]:
        def of_one(params: Params) -> tuple[Logits, TokenWeights]:
            ids = params["ids"][tokens]
            return logits_and_attention(model, params["model"], ids, lengths, keys)

        return list(zip(*jax.vmap(of_one)(params), strict=True))

    params = [with_table(exported) for exported in others.values()]
    evaluator = study_run.evaluator(
        params=jax.tree.map(lambda *leaves: np.stack(leaves), *params),
        examples=study_run.examples._replace(ids=RESERVED + study_run.tokens.split("test").words),
    )
    return dict(zip(others, evaluator.evaluate("other seeds", of_all), strict=True))


@dataclasses.dataclass
class AuxiliaryModels:
    """Trains auxiliary models on the run's training examples, and compares them with its model.

    Methods raise a `UserError` if the data or the source of the initial values differ from the
    run's, or if training diverges.
    """

    study_run: StudyRun
    epochs: int
    adversary_epochs: int
    adversary_start: AdversaryStart

    def trained_on_labels(self) -> list[ModelComparison]:
        """Returns models trained on the labels: with other attention, or without recurrence."""
        uniform = {"attention": "uniform", "attention_options": {}}
        perceptron, base_params = {"encoder": "token_wise"}, self.study_run.exported.params
        models = [self._unguided(UNIFORM, uniform)]
        if base_params.get("attention"):
            models.append(self._unguided("frozen attention", {}, frozen=("attention",)))
        return [
            *models,
            self._unguided("perceptron, uniform attention", perceptron | uniform),
            self._unguided("perceptron, trained attention", perceptron),
            self._guided("perceptron, base model's attention", lambda: base_params),
        ]

    def adversaries(self, strengths: Sequence[float]) -> TradeOff:
        """Returns an adversary of each strength, in ascending order."""
        return [(strength, self._adversary(strength)) for strength in sorted(strengths)]

    def guided_by_adversary(self, strength: float) -> ModelComparison:
        """Returns a perceptron guided by the attention of the adversary of this strength."""
        name = f"perceptron, attention of adversary λ {strength:g}"
        key = f"perceptron guided by {self._adversary_key(strength)}"
        return self._guided(name, partial(self._adversary_params, strength), key)

    def _unguided(
        self, name: str, changes: dict[str, Any], frozen: tuple[str, ...] = ()
    ) -> ModelComparison:
        """Trains the base model with changes of its config on the labels."""
        model = self._variant(changes)

        def compute() -> list[Any]:
            params = self._train(name, model, CrossEntropy(), self.epochs, frozen=frozen)
            outputs = self.study_run.evaluator(model, params).evaluate(name, logits_and_attention)
            return self.study_run.compare(name, *outputs)

        return self._cached(name, compute)

    def _guided(
        self, name: str, guide: Callable[[], Params], key: str | None = None
    ) -> ModelComparison:
        """Trains a perceptron under the base architecture's attention, with `guide`'s params."""
        perceptron, base_model = self._variant({"encoder": "token_wise"}), self.study_run.model

        def guided_logits(
            model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
        ) -> Logits:
            del keys
            weights = base_model(params["guide"], tokens, lengths).weights.T
            return logits_under(model, params["perceptron"], tokens, lengths, weights)

        def compute() -> list[Any]:
            guide_params = guide()
            extras, objective = self._outputs_on_training(guide_params), GuidedCrossEntropy()
            trained = self._train(name, perceptron, objective, self.epochs, extras=extras)
            params = {"perceptron": trained, "guide": guide_params}
            logits = self.study_run.evaluator(perceptron, params).evaluate(name, guided_logits)
            return self.study_run.compare(name, logits, None)

        return self._cached(key or name, compute)

    def _adversary(self, strength: float) -> ModelComparison:
        name = f"adversary, λ {strength:g}"

        def compute() -> list[Any]:
            params = self._adversary_params(strength)
            outputs = self.study_run.evaluator(params=params).evaluate(name, logits_and_attention)
            return self.study_run.compare(name, *outputs)

        key = self._adversary_key(strength)
        return ModelComparison(*self.study_run.cache.get(key, compute))

    def _adversary_params(self, strength: float) -> Params:
        """Returns an adversary's parameters; it is trained once and cached as an exported model."""
        study_run = self.study_run
        path = study_run.cache.path(self._adversary_key(strength)).with_suffix(".safetensors")
        if not path.exists():
            params = self._train(
                f"adversary, λ {strength:g}",
                study_run.model,
                Adversary(strength),
                self.adversary_epochs,
                start=self._adversary_start_params(),
                extras=self._base_on_training,
                select="least_loss",
            )
            name = f"{study_run.config.name}-{path.stem}"
            config = dataclasses.replace(study_run.config, name=name)
            export_model(path, params, config, study_run.exported.vocabulary)
        return load_model(path).params

    def _adversary_start_params(self) -> Params:
        """Returns the initial parameters of adversaries that are not random.

        Either none, or all of the base model's except the attention's.

        Deviation: the adversaries of Wiegreffe and Pinter start at random and train for up to 80
        epochs. Where a prediction is wrong and confident, their loss has almost no gradient, and a
        few epochs may end there (see docs). Attention without parameters cannot start at random,
        and at the base model itself the loss has no gradient at all.
        """
        params = self.study_run.exported.params
        if self.adversary_start == "random" or not params.get("attention"):
            return {}
        return {name: part for name, part in params.items() if name != "attention"}

    def _adversary_key(self, strength: float) -> str:
        start = f"from {self.adversary_start} {self.adversary_epochs} epochs"
        return f"adversary {strength:g} {start}"

    def _cached(self, key: str, compute: Callable[[], list[Any]]) -> ModelComparison:
        result = self.study_run.cache.get(f"{key} {self.epochs} epochs", compute)
        return ModelComparison(*result)

    def _variant(self, changes: dict[str, Any]) -> Model:
        """Returns the base model with changes of its config."""
        model = self.study_run.model
        return dataclasses.replace(model, config=dataclasses.replace(model.config, **changes))

    def _train(
        self,
        name: str,
        model: Model,
        objective: Objective,
        epochs: int,
        *,
        start: Params | None = None,
        extras: Extras = MappingProxyType({}),
        frozen: Collection[str] = (),
        select: Literal["last", "least_loss"] = "last",
    ) -> Params:
        """Trains with the run's config and the next seed; returns the selected parameters.

        Args:
          name: printed.
          model: the auxiliary model.
          objective: what is minimised.
          epochs: passes over the training examples.
          start: initial parameters by module name; modules left out are random.
          extras: arrays over the training examples that the objective reads.
          frozen: modules that keep their initial parameters, such as `attention`.
          select: the epoch to return; the authors take the least training loss.
        """
        study_run, config = self.study_run, self.study_run.config
        study_run.console.print(f"{config.name}: training {name}")
        config = dataclasses.replace(
            config,
            seed=(config.seed + 1) % 2**32,
            data=dataclasses.replace(config.data, unlabelled_batch_size=0),
            train=dataclasses.replace(config.train, epochs=epochs),
        )
        values = self._replica.initial_values(study_run.model)
        if values is not None:  # an auxiliary model may lack the other parameters
            values = values._replace(params={})
        examples = self._replica.labelled._replace(extras=extras)
        run = InMemoryRun(
            config,
            examples,
            values=values,
            start=start,
            select=select,
            divergence=auxiliary_divergence,
        )
        program = make_program(
            config, model, examples.size, study_run.mesh, objective=objective, frozen=frozen
        )
        train(run, program, console=study_run.console)
        return jax.device_put(run.params)

    def _outputs_on_training(self, params: Params) -> Extras:
        """Returns logits and attention of the base architecture on the training examples."""
        evaluator = self.study_run.evaluator(params=params, examples=self._replica.labelled)
        return base_extras(*evaluator.evaluate("base model", logits_and_attention))

    @cached_property
    def _base_on_training(self) -> Extras:
        """Logits and attention of the base model on the training examples."""
        return self._outputs_on_training(self.study_run.exported.params)

    @cached_property
    def _replica(self) -> SeedReplica:
        """The training examples and the vocabulary of the run."""
        study_run = self.study_run
        replica = make_replica(study_run.tokens, study_run.config, study_run.run_dir)
        if replica.vocabulary.words != study_run.exported.vocabulary.words:
            raise UserError(
                f"{study_run.run_dir.folder} was trained on other data than "
                f"{study_run.tokens.folder}; give the --cache of its training"
            )
        if init_from := study_run.config.train.init_from:
            environment = study_run.run_dir.environment()
            require_recorded(init_from, environment, study_run.run_dir.folder)
        return replica

"""Per-example measurements of one model's attention and attributions."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bilstm_attn.config import DataConfig
from bilstm_attn.data.splits import Examples
from bilstm_attn.explain.agreement import Agreement, kendall
from bilstm_attn.explain.attribution import (
    Attribution,
    GradientTimesInput,
    IntegratedGradients,
    LeaveOneOut,
    TokenWeights,
    completeness_error,
)
from bilstm_attn.explain.explanation import analyse, batch_config
from bilstm_attn.explain.faithfulness import (
    aopc,
    fraction_to_flip,
    infidelity,
    overlap_at,
    toward_prediction,
)
from bilstm_attn.inference.evaluate import require_finite
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.studies.attention_as_explanation import jain_wallace
from bilstm_attn.types import Keys, Lengths, Logits, Params, Tokens

TOP = 10  # size of the sets of top-ranked tokens whose overlap is measured


@dataclasses.dataclass
class Evaluator:
    """Applies analyses to a trained model, on a fixed set of examples."""

    model: Model
    params: Params
    examples: Examples
    config: DataConfig
    mesh: Mesh
    console: Console
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds that each analysis took, by name."""

    def evaluate(self, name: str, analysis: Callable[..., Any]) -> Any:
        """Returns `analysis(model, params, tokens, lengths, keys)` for every example.

        Args:
          name: shown next to the progress bar; key in `seconds`.
          analysis: a pure function; its results are arrays `[b]` or `[b t]`.
        """
        start, config = time.perf_counter(), batch_config(self.config, self.examples.size)
        with self.console.bar(name, self.examples.size, 0) as bar:
            results = analyse(
                partial(analysis, self.model),
                self.params,
                self.examples,
                config,
                self.mesh,
                advance=bar.advance,
            )
        self.seconds[name] = time.perf_counter() - start
        return results


class AttentionMeasures(NamedTuple):
    """The per-example measures of Jain and Wallace, 2019."""

    logits: np.ndarray
    max_weight: np.ndarray
    """The largest attention weight."""
    permutation: np.ndarray
    """Median change of the probability when the attention weights are permuted."""
    adversary: np.ndarray
    """Epsilon-max Jensen-Shannon divergence, in nats."""
    agreements: dict[str, Agreement]
    """Kendall's tau of attention, gradient and leave-one-out, by pair."""
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Returns the measures as plain JSON."""
        return {
            "agreements": {
                name: [agreement.taus.tolist(), agreement.p_values.tolist()]
                for name, agreement in self.agreements.items()
            },
            "seconds": self.seconds,
            **{name: getattr(self, name).tolist() for name in self._fields[:4]},
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "AttentionMeasures":
        """Inverts `as_json`."""
        agreements = {
            name: Agreement(*map(np.array, arrays)) for name, arrays in record["agreements"].items()
        }
        arrays = {name: np.array(record[name]) for name in cls._fields[:4]}
        return cls(**arrays, agreements=agreements, seconds=record["seconds"])


def measure_attention(evaluator: Evaluator) -> AttentionMeasures:
    """Runs the experiments of Jain and Wallace, 2019, with their protocol.

    The gradient is that of the probability times the input, with the attention held constant.
    Gradients and leave-one-out changes of the probability are ranked by absolute value.

    Deviation: the start token counts as a token of the text, and texts of six words or fewer
    are included; the authors leave both out.

    Raises:
      UserError: the logits are not finite.
    """
    logits, attention = evaluator.evaluate("attention", logits_and_attention)
    require_finite(logits, "these texts")
    gradient = np.abs(evaluator.evaluate("gradient", GradientTimesInput(through_attention=False)))
    logit_drop = evaluator.evaluate("leave one out", LeaveOneOut())
    probabilities = evaluator.model.task.probabilities
    before, after = probabilities(logits), probabilities(logits[:, None] - logit_drop)
    change = np.abs(before[:, None, -1] - after[..., -1])
    agreement = partial(kendall, lengths=evaluator.examples.lengths)
    return AttentionMeasures(
        logits=logits,
        max_weight=attention.max(axis=1),
        permutation=evaluator.evaluate("permutation", jain_wallace.permutation_change),
        adversary=evaluator.evaluate("adversaries", _max_divergence),
        agreements={
            "attention, gradient": agreement(attention, gradient),
            "attention, leave one out": agreement(attention, change),
            "gradient, leave one out": agreement(gradient, change),
        },
        seconds=evaluator.seconds,
    )


def logits_and_attention(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
) -> tuple[Float[Array, " b"], TokenWeights]:
    """Returns the logits `[b]` and the attention weights `[b t]`."""
    del keys
    output = model(params, tokens, lengths)
    return output.logits, output.weights


def _max_divergence(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
) -> Float[Array, " b"]:
    return jain_wallace.adversaries(model, params, tokens, lengths, keys).max_divergence()


class FaithfulnessMeasures(NamedTuple):
    """The faithfulness of one attribution, per example; see `explain.faithfulness`."""

    comprehensiveness: np.ndarray
    sufficiency: np.ndarray
    fraction_to_flip: np.ndarray
    infidelity: np.ndarray


class PairAgreement(NamedTuple):
    """The agreement of two attributions by the absolute value of their weights, per example."""

    agreement: Agreement
    overlap: np.ndarray
    """Fraction of the `TOP` top-ranked tokens that both have in common."""


class AttributionMeasures(NamedTuple):
    """Measures of all attributions."""

    faithfulness: dict[str, FaithfulnessMeasures]
    """By attribution."""
    agreements: dict[tuple[str, str], PairAgreement]
    """By unordered pair of attributions."""
    completeness_errors: np.ndarray
    """Of integrated gradients, per example."""

    def as_json(self) -> dict[str, Any]:
        """Returns the measures as plain JSON."""
        pairs = [[*pair.agreement, pair.overlap] for pair in self.agreements.values()]
        return {
            "names": list(self.faithfulness),
            "faithfulness": np.array(list(self.faithfulness.values())).tolist(),
            "agreements": np.array(pairs).tolist(),
            "completeness_errors": self.completeness_errors.tolist(),
        }

    @classmethod
    def from_json(cls, parts: Sequence[dict[str, Any]]) -> "AttributionMeasures":
        """Inverts `as_json`, concatenating the measures of several sets of examples."""

        def joined(name: str) -> np.ndarray:
            return np.concatenate([np.array(part[name], np.float64) for part in parts], axis=-1)

        names: list[str] = parts[0]["names"]
        return cls(
            {
                name: FaithfulnessMeasures(*measures)
                for name, measures in zip(names, joined("faithfulness"), strict=True)
            },
            {
                pair: PairAgreement(Agreement(taus, p_values), overlap)
                for pair, (taus, p_values, overlap) in zip(
                    itertools.combinations(names, 2), joined("agreements"), strict=True
                )
            },
            joined("completeness_errors"),
        )


def measure_attributions(
    evaluator: Evaluator, attributions: Mapping[str, Attribution]
) -> AttributionMeasures:
    """Measures the faithfulness of every attribution and the agreement of every pair."""
    lengths, names = evaluator.examples.lengths, list(attributions)
    weights, faithfulness, errors = evaluator.evaluate(
        "attributions", partial(_measure, [attributions[name] for name in names])
    )
    magnitudes = dict(zip(names, map(np.abs, weights), strict=True))
    agreements = {}
    for pair in itertools.combinations(names, 2):
        first, second = (magnitudes[name] for name in pair)
        overlap = overlap_at(jnp.asarray(first), jnp.asarray(second), jnp.asarray(lengths), TOP)
        agreements[pair] = PairAgreement(kendall(first, second, lengths), np.asarray(overlap))
    by_name = {
        name: FaithfulnessMeasures(*measures)
        for name, measures in zip(names, faithfulness, strict=True)
    }
    return AttributionMeasures(by_name, agreements, errors)


def _measure(
    attributions: Sequence[Attribution],
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    keys: Keys,
) -> tuple[list[TokenWeights], list[tuple[Logits, ...]], Logits]:
    """Returns weights and `FaithfulnessMeasures` per attribution, and completeness errors."""
    inputs = model, params, tokens, lengths
    logits = model(params, tokens, lengths).logits
    weights = [attribution(*inputs, keys) for attribution in attributions]
    # Unsigned weights do not say which label a token supports: only their magnitude is compared
    # with the change of the logit.
    direction = model.task.toward_predicted(logits)
    signed = [
        each if attribution.signed else direction[:, None] * each
        for attribution, each in zip(attributions, weights, strict=True)
    ]
    # vmap shares the logits of the perturbed inputs between the attributions.
    infidelities = jax.vmap(lambda each: infidelity(*inputs, each, keys))(jnp.stack(signed))
    measures, errors = [], jnp.zeros_like(logits)
    for number, attribution in enumerate(attributions):
        scores = toward_prediction(weights[number], direction, signed=attribution.signed)
        flips = fraction_to_flip(*inputs, scores)
        measures.append((*aopc(*inputs, scores), flips, infidelities[number]))
        if isinstance(attribution, IntegratedGradients):
            errors = completeness_error(*inputs, weights[number])
    return weights, measures, errors

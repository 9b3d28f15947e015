"""What is asked of one model's attention, over many reviews: numbers, a review each."""

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
    Attributed,
    Attribution,
    GradientTimesInput,
    IntegratedGradients,
    LeaveOneOut,
    completeness_error,
)
from bilstm_attn.explain.explained import analyse, batches_of
from bilstm_attn.explain.faithfulness import (
    aopc,
    fraction_to_flip,
    infidelity,
    overlap_at,
    toward_answer,
)
from bilstm_attn.inference.evaluate import require_finite
from bilstm_attn.nn.metrics import sigmoid
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.studies.attention_as_explanation import jain_wallace
from bilstm_attn.types import Keys, Lengths, Logits, Params, Tokens

TOP = 10  # tokens of which two attributions may have some in common


@dataclasses.dataclass
class Examiner:
    """A trained model and the reviews that it is asked about."""

    model: Model
    params: Params
    examples: Examples
    config: DataConfig  # of the run
    mesh: Mesh
    console: Console
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # that questions took

    def ask(self, what: str, analysis: Callable[..., Any]) -> Any:
        """Returns what `analysis(model, params, tokens, lengths, keys)` says of every review."""
        begun, batches = time.perf_counter(), batches_of(self.config, self.examples.size)
        with self.console.bar(what, self.examples.size, 0) as bar:
            found = analyse(
                partial(analysis, self.model),
                self.params,
                self.examples,
                batches,
                self.mesh,
                advance=bar.advance,
            )
        self.seconds[what] = time.perf_counter() - begun
        return found


class JainWallace(NamedTuple):
    """What Jain and Wallace, 2019, ask, a number a review."""

    logits: np.ndarray
    greatest_weight: np.ndarray  # of the attention
    permutation: np.ndarray  # median change of the probability
    adversary: np.ndarray  # epsilon-max JSD, in nats
    agreements: dict[str, Agreement]  # between attention, gradient and leaving words out
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain JSON."""
        return {
            "agreements": {
                name: [one.taus.tolist(), one.p_values.tolist()]
                for name, one in self.agreements.items()
            },
            "seconds": self.seconds,
            **{name: getattr(self, name).tolist() for name in self._fields[:4]},
        }

    @classmethod
    def from_json(cls, about: dict[str, Any]) -> "JainWallace":
        """Returns what `as_json` was called on."""
        agreements = {
            name: Agreement(*map(np.array, two)) for name, two in about["agreements"].items()
        }
        logits, greatest, permutation, adversary = (
            np.array(about[name]) for name in cls._fields[:4]
        )
        seconds = about["seconds"]
        return cls(logits, greatest, permutation, adversary, agreements, seconds)


def examine_attention(examiner: Examiner) -> JainWallace:
    """Returns the results of their experiments, by their protocol.

    Deviation: the start token counts as one of the review's, and reviews of six words or fewer
    stay; they leave both out.

    The gradient is that of the probability times the input, with the attention held; it and the
    change of the probability as a word is left out count by their size.

    Raises:
      UserError: the model's answers are not finite.
    """
    logits, attention = examiner.ask("attention", logits_and_attention)
    require_finite(logits, "these reviews")
    gradient = np.abs(examiner.ask("gradient", GradientTimesInput(through_attention=False)))
    fall = examiner.ask("leave one out", LeaveOneOut())
    change = np.abs(sigmoid(logits)[:, None] - sigmoid(logits[:, None] - fall))
    agree = partial(kendall, lengths=examiner.examples.lengths)
    return JainWallace(
        logits=logits,
        greatest_weight=attention.max(axis=1),
        permutation=examiner.ask("permutation", jain_wallace.permutation_change),
        adversary=examiner.ask("adversaries", _greatest_divergence),
        agreements={
            "attention, gradient": agree(attention, gradient),
            "attention, leave one out": agree(attention, change),
            "gradient, leave one out": agree(gradient, change),
        },
        seconds=examiner.seconds,
    )


def logits_and_attention(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
) -> tuple[Float[Array, " b"], Attributed]:
    """Returns what the model says, and where it looked."""
    del keys
    output = model(params, tokens, lengths)
    return output.logits, output.weights


def _greatest_divergence(
    model: Model, params: Params, tokens: Tokens, lengths: Lengths, keys: Keys
) -> Float[Array, " b"]:
    return jain_wallace.adversaries(model, params, tokens, lengths, keys).greatest()


class Faithful(NamedTuple):
    """How faithful an attribution is, a number a review."""

    comprehensiveness: np.ndarray
    sufficiency: np.ndarray
    fraction_to_flip: np.ndarray
    infidelity: np.ndarray


class Alike(NamedTuple):
    """How far two attributions agree, by the size of their weights, a number a review."""

    agreement: Agreement
    overlap: np.ndarray  # share of the top TOP tokens that they have in common


class Attributions(NamedTuple):
    """What was found about attributions, by name or pair of names."""

    faithful: dict[str, Faithful]
    alike: dict[tuple[str, str], Alike]  # each pair once
    completeness_errors: np.ndarray  # of integrated gradients, a review

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain JSON."""
        pairs = [[*pair.agreement, pair.overlap] for pair in self.alike.values()]
        return {
            "names": list(self.faithful),
            "faithful": np.array(list(self.faithful.values())).tolist(),
            "alike": np.array(pairs).tolist(),
            "completeness_errors": self.completeness_errors.tolist(),
        }

    @classmethod
    def from_json(cls, parts: Sequence[dict[str, Any]]) -> "Attributions":
        """Returns what `as_json` was called on, of some reviews and then of others."""

        def joined(name: str) -> np.ndarray:
            return np.concatenate([np.array(part[name], np.float64) for part in parts], axis=-1)

        names: list[str] = parts[0]["names"]
        return cls(
            {name: Faithful(*each) for name, each in zip(names, joined("faithful"), strict=True)},
            {
                pair: Alike(Agreement(taus, p_values), overlap)
                for pair, (taus, p_values, overlap) in zip(
                    itertools.combinations(names, 2), joined("alike"), strict=True
                )
            },
            joined("completeness_errors"),
        )


def examine_attributions(
    examiner: Examiner, attributions: Mapping[str, Attribution]
) -> Attributions:
    """Returns how faithful attributions are, and how far each two of them agree."""
    lengths, names = examiner.examples.lengths, list(attributions)
    weights, measured, errors = examiner.ask(
        "attributions", partial(_measure, [attributions[name] for name in names])
    )
    sizes = dict(zip(names, map(np.abs, weights), strict=True))
    alike = {}
    for name, other in itertools.combinations(names, 2):
        one, two = sizes[name], sizes[other]
        overlap = overlap_at(jnp.asarray(one), jnp.asarray(two), jnp.asarray(lengths), TOP)
        alike[name, other] = Alike(kendall(one, two, lengths), np.asarray(overlap))
    faithful = {name: Faithful(*each) for name, each in zip(names, measured, strict=True)}
    return Attributions(faithful, alike, errors)


def _measure(
    attributions: Sequence[Attribution],
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    keys: Keys,
) -> tuple[list[Attributed], list[tuple[Logits, ...]], Logits]:
    """Returns weights, the fields of a `Faithful` for each attribution, and completeness errors."""
    given = model, params, tokens, lengths
    logits = model(params, tokens, lengths).logits
    weights = [one(*given, keys) for one in attributions]
    # Unsigned weights have no side: what they say of the logit is compared in size alone.
    signed = [
        each if one.signed else jnp.sign(logits)[:, None] * each
        for one, each in zip(attributions, weights, strict=True)
    ]
    # The model's answers without some words are the same for each, and asked for once.
    wrong = jax.vmap(lambda each: infidelity(*given, each, keys))(jnp.stack(signed))
    measured, errors = [], jnp.zeros_like(logits)
    for number, one in enumerate(attributions):
        scores = toward_answer(weights[number], logits, signed=one.signed)
        flips = fraction_to_flip(*given, scores)
        measured.append((*aopc(*given, scores), flips, wrong[number]))
        if isinstance(one, IntegratedGradients):
            errors = completeness_error(*given, weights[number])
    return weights, measured, errors

"""What is asked of one model's attention, over many reviews: numbers, a review each."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bilstm_attn.config import DataConfig
from bilstm_attn.data.batches import Examples
from bilstm_attn.evaluate import require_finite
from bilstm_attn.explain import jain_wallace
from bilstm_attn.explain.agreement import Agreement, kendall
from bilstm_attn.explain.attribution import (
    Attributed,
    Attribution,
    GradientTimesInput,
    IntegratedGradients,
    LeaveOneOut,
    completeness_error,
)
from bilstm_attn.explain.faithfulness import (
    aopc,
    fraction_to_flip,
    infidelity,
    overlap_at,
    toward_answer,
)
from bilstm_attn.explain.reviews import analyse, batches_of
from bilstm_attn.metrics import sigmoid
from bilstm_attn.model import Model
from bilstm_attn.terminal import Show
from bilstm_attn.types import Keys, Lengths, Params, Tokens

TOP = 10  # tokens of which two attributions may have some in common


@dataclasses.dataclass
class Examiner:
    """A trained model and the reviews that it is asked about."""

    model: Model
    params: Params
    examples: Examples
    config: DataConfig  # of the run
    mesh: Mesh
    show: Show
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # that questions took

    def ask(self, what: str, analysis: Callable[..., Any]) -> Any:
        """Returns what `analysis(model, params, tokens, lengths, keys)` says of every review."""
        begun, batches = time.perf_counter(), batches_of(self.config, self.examples.size)
        with self.show.bar(what, self.examples.size, 0) as bar:
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
    """How faithful an attribution is, the mean over reviews."""

    comprehensiveness: float
    sufficiency: float
    fraction_to_flip: float
    infidelity: float


class Alike(NamedTuple):
    """How far two attributions agree, by the size of their weights, the mean over reviews."""

    tau: float
    significant: float  # share of reviews with a p-value of at most 0.05
    overlap: float  # share of the top TOP tokens that they have in common


class Attributions(NamedTuple):
    """What was found about attributions, by name or pair of names."""

    reviews: int
    faithful: dict[str, Faithful]
    alike: dict[str, dict[str, Alike]]  # each pair once
    completeness_errors: tuple[float, float]  # of integrated gradients: median and largest

    @classmethod
    def from_json(cls, about: Sequence[Any]) -> "Attributions":
        """Returns it from the lists that JSON makes of it."""
        reviews, faithful, alike, errors = about
        return cls(
            reviews,
            {name: Faithful(*each) for name, each in faithful.items()},
            {
                name: {other: Alike(*pair) for other, pair in others.items()}
                for name, others in alike.items()
            },
            tuple(errors),
        )


def examine_attributions(
    examiner: Examiner, attributions: Mapping[str, Attribution]
) -> Attributions:
    """Returns how faithful attributions are, and how far each two of them agree."""
    faithful, sizes, alike, incomplete = {}, {}, {}, (0.0, 0.0)
    lengths = examiner.examples.lengths
    for name, one in attributions.items():
        weights, *measured, errors = examiner.ask(name, partial(_measure, one))
        faithful[name] = Faithful(*(float(np.mean(each)) for each in measured))
        sizes[name] = np.abs(weights)
        if isinstance(one, IntegratedGradients):
            incomplete = float(np.median(errors)), float(np.max(errors))
    for name, other in itertools.combinations(sizes, 2):
        agreement = kendall(sizes[name], sizes[other], lengths)
        given = jnp.asarray(sizes[name]), jnp.asarray(sizes[other]), jnp.asarray(lengths)
        overlap = float(overlap_at(*given, TOP).mean())
        alike.setdefault(name, {})[other] = Alike(agreement.mean, agreement.significant, overlap)
    return Attributions(examiner.examples.size, faithful, alike, incomplete)


def _measure(
    attribution: Attribution,
    model: Model,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    keys: Keys,
) -> tuple[Array, ...]:
    """Returns weights, the fields of a `Faithful` and the completeness error, a number a review."""
    weights = attribution(model, params, tokens, lengths, keys)
    logits = model(params, tokens, lengths).logits
    scores = toward_answer(weights, logits, signed=attribution.signed)
    given = model, params, tokens, lengths
    # Unsigned weights have no side: what they say of the logit is compared in size alone.
    signed = weights if attribution.signed else jnp.sign(logits)[:, None] * weights
    return (
        weights,
        *aopc(*given, scores),
        fraction_to_flip(*given, scores),
        infidelity(*given, signed, keys),
        completeness_error(*given, weights)
        if isinstance(attribution, IntegratedGradients)
        else jnp.zeros_like(logits),
    )

"""The contract tests: our own entries pass, and a broken class of each kind fails by name."""

import jax.numpy as jnp
import numpy as np
import pytest

from bilstm_attn import testing
from bilstm_attn.data.sources import MovieReviews, Source
from bilstm_attn.data.tokenisers import TOKENISERS, Tokeniser
from bilstm_attn.nn.attention import Dot
from bilstm_attn.nn.cells import GRU
from bilstm_attn.nn.encoder import TokenWise
from bilstm_attn.nn.pooling import MaxPooling, MeanPooling
from bilstm_attn.training.objectives import OBJECTIVES, CrossEntropy, Objective, Term

# Parts of the model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "entry"),
    [
        (testing.check_cell, GRU),
        (testing.check_encoder, TokenWise),
        (testing.check_attention, Dot),
        (testing.check_pooling, MaxPooling),
    ],
)
def test_our_parts_of_the_model_keep_the_contract(check, entry):
    check(entry)


def test_a_pooling_that_reads_padding_is_found():
    class Careless(MeanPooling):
        def __call__(self, states, last, weights, mask):
            return states.mean(axis=0)

    with pytest.raises(AssertionError, match="padding changes no logit"):
        testing.check_pooling(Careless)


@pytest.mark.slow
def test_a_cell_with_a_constant_gradient_is_found():
    class Stopped(GRU):
        @staticmethod
        def gate(params, gates, carry, noise=None):
            return 0 * GRU.gate(params, gates, carry)

    with pytest.raises(AssertionError, match="gradients reach the embedding"):
        testing.check_cell(Stopped)


# Objectives


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_our_objectives_keep_the_contract(name):
    testing.check_objective(OBJECTIVES[name])


class Distillation(Objective):
    """Squared distance to a teacher's logits."""

    coefficients = {"distance": 0.5}  # noqa: RUF012

    def __call__(self, model, params, batch, keys):
        logits = model(params, batch.tokens, batch.length, keys).logits
        distance = (logits - batch.extras["teacher"]) ** 2
        return {"distance": Term((batch.weight * distance).sum(), batch.weight.sum())}


def test_an_objective_may_read_extras():
    testing.check_objective(Distillation, extras={"teacher": np.linspace(-1, 1, 6, np.float32)})


class Unnamed(CrossEntropy):
    coefficients = {"loss": 1.0}  # noqa: RUF012


class NothingMinimised(CrossEntropy):
    coefficients = {"cross_entropy": 0.0, "accuracy": 0.0}  # noqa: RUF012


class PerExample(CrossEntropy):
    def __call__(self, model, params, batch, keys):
        terms = super().__call__(model, params, batch, keys)
        return terms | {"accuracy": Term(batch.weight, batch.weight)}


class CountsOfConfidence(CrossEntropy):
    """Counts the examples whose logit is above 0, which depends on the parameters."""

    def __call__(self, model, params, batch, keys):
        terms = super().__call__(model, params, batch, keys)
        logits = model(params, batch.tokens, batch.length).logits
        count = (batch.weight * (logits > 0)).sum()
        return terms | {"accuracy": Term(terms["accuracy"].sum, count)}


class AlreadyDivided(CrossEntropy):
    """Returns means, whose sum over parts is not the mean over the batch."""

    def __call__(self, model, params, batch, keys):
        terms = super().__call__(model, params, batch, keys)
        count = jnp.maximum(terms["accuracy"].count, 1)
        return {name: Term(term.sum / count, term.count) for name, term in terms.items()}


class CountsFiller(CrossEntropy):
    """Ignores the weights of the rows."""

    def __call__(self, model, params, batch, keys):
        return super().__call__(
            model, params, batch._replace(weight=jnp.ones_like(batch.weight)), keys
        )


class DividesByWeight(CrossEntropy):
    """Divides by the number of rows, which is 0 in a batch of filler rows."""

    def __call__(self, model, params, batch, keys):
        terms = super().__call__(model, params, batch, keys)
        rows = batch.weight.sum()
        return terms | {"accuracy": Term(terms["accuracy"].sum * rows / rows, rows)}


@pytest.mark.parametrize(
    ("objective", "claim"),
    [
        (Unnamed, "the names of the terms are those of the coefficients"),
        (NothingMinimised, "at least one coefficient is not 0"),
        (PerExample, "the sum and the count of a term are scalars"),
        (CountsOfConfidence, "counts do not depend on the parameters"),
        (AlreadyDivided, "terms of a batch are the sums of the terms of its parts"),
        (CountsFiller, "a filler row of weight 0 changes no term and no gradient"),
        (DividesByWeight, "terms and gradients of a batch of filler rows are finite"),
    ],
)
def test_a_broken_objective_fails_with_the_claim_it_breaks(objective, claim):
    with pytest.raises(AssertionError, match=claim):
        testing.check_objective(objective)


# Data sets


def test_our_movie_reviews_keep_the_contract_of_a_source():
    testing.check_source(MovieReviews)


class Tickets(Source):
    """Three support tickets."""

    name, version, splits, label_names = "tickets", "1", ("train",), ("normal", "urgent")

    def __init__(self, data_dir=None, archive=None):
        self.examples = [("late", 0), ("lost", 1), ("hello", -1)]

    def size(self, split):
        return len(self.examples)

    def read(self, split):
        yield from self.examples


def test_a_small_source_keeps_the_contract():
    testing.check_source(Tickets)


class Empty(Tickets):
    def read(self, split):
        return iter(())


class WrongSize(Tickets):
    def size(self, split):
        return 4


class LabelsFromOne(Tickets):
    def read(self, split):
        return ((text, label + 1) for text, label in self.examples)


class Shuffled(Tickets):
    def read(self, split):
        self.examples.reverse()
        return iter(list(self.examples))


class OtherInstance(Tickets):
    instances = 0

    def __init__(self, data_dir=None, archive=None):
        super().__init__()
        type(self).instances += 1
        self.examples[0] = (f"late {type(self).instances}", 0)


@pytest.mark.parametrize(
    ("source", "claim"),
    [
        (type("NoTrain", (Tickets,), {"splits": ("test",)}), "the splits include train"),
        (type("Dev", (Tickets,), {"splits": ("train", "dev")}), "the splits are among train,"),
        (type("Twice", (Tickets,), {"label_names": ("a", "a")}), "label_names are distinct"),
        (type("Number", (Tickets,), {"version": 1}), "name and version are non-empty strings"),
        (Empty, "every split has an example"),
        (WrongSize, "size is the number of examples that are read"),
        (LabelsFromOne, "row 1 of split train must have the label 0 .normal., 1 .urgent."),
        (Shuffled, "reading twice gives the same order"),
        (OtherInstance, "a second instance reads the same order"),
    ],
)
def test_a_broken_source_fails_with_the_claim_it_breaks(source, claim):
    with pytest.raises(AssertionError, match=claim):
        testing.check_source(source)


# Tokenisers


@pytest.mark.parametrize("name", sorted(TOKENISERS))
def test_our_tokenisers_keep_the_contract(name):
    testing.check_tokeniser(TOKENISERS[name])


class Whitespace(Tokeniser):
    """Words between white space."""

    version = 1

    def __init__(self, longest: int = 100):
        self.longest = longest

    def __call__(self, text):
        return [word[: self.longest] for word in text.split()]

    def spans(self, text):
        spans, stop = [], 0
        for word in text.split():
            start = text.index(word, stop)
            stop = start + len(word)
            spans.append((start, stop))
        return spans


def test_a_tokeniser_with_options_keeps_the_contract():
    testing.check_tokeniser(Whitespace, {"longest": 3})


class StartsFromOne(Whitespace):
    def spans(self, text):
        return [(start + 1, stop + 1) for start, stop in super().spans(text)]


class NeverEmpty(Whitespace):
    def __call__(self, text):
        return super().__call__(text) or ["nothing"]


class EmptyWords(Whitespace):
    def __call__(self, text):
        return text.split(" ") if text else []


class LineBreaks(Whitespace):
    def __call__(self, text):
        return [text] if text else []

    def spans(self, text):
        return [(0, len(text))] if text else []


class MissingSpan(Whitespace):
    def spans(self, text):
        return super().spans(text)[:-1]


class Remembers(Whitespace):
    calls = 0

    def __call__(self, text):
        type(self).calls += 1
        return [f"{word}{type(self).calls}" for word in super().__call__(text)]


@pytest.mark.parametrize(
    ("tokeniser", "claim"),
    [
        (type("Version", (Whitespace,), {"version": "1"}), "version is an int"),
        (NeverEmpty, "an empty text has no words"),
        (EmptyWords, "words are non-empty strings"),
        (LineBreaks, "no word has a line break"),
        (MissingSpan, "every word has one span"),
        (StartsFromOne, "spans ascend, apart and inside the text"),
        (Remembers, "equal texts have equal words"),
    ],
)
def test_a_broken_tokeniser_fails_with_the_claim_it_breaks(tokeniser, claim):
    with pytest.raises(AssertionError, match=claim):
        testing.check_tokeniser(tokeniser)

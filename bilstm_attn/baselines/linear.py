"""The linear model to beat: logistic regression on binary uni- and bigrams, weighted by NB ratios.

Of word order it sees neighbours alone. It reads whole reviews, and every word that stands in
`MIN_REVIEWS` training reviews. SciPy and scikit-learn; no JAX.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from bilstm_attn.data.token_cache import Split
from bilstm_attn.errors import UserError
from bilstm_attn.nn.metrics import measure_binary

MIN_REVIEWS = 2  # an n-gram of fewer training reviews is no feature
SMOOTHING = 1.0  # alpha, added to the count of every feature
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)  # of C, rising, to choose from


class Ngrams(NamedTuple):
    """The distinct uni- and bigrams of each review: `codes[i]` stands in `reviews[i]`, once."""

    reviews: np.ndarray  # int64[n], rising
    codes: np.ndarray  # int64[n]: word w is w; words v, w in a row are (v + 1) * len(lexicon) + w
    size: int  # number of reviews


class LinearModel(NamedTuple):
    """A fitted model: `logit = bias + sum of weights of the features that stand in the review`."""

    features: np.ndarray  # int64[k], codes, rising
    weights: np.ndarray  # float64[k], NB ratio times coefficient
    bias: float

    def logits(self, ngrams: Ngrams) -> np.ndarray:
        """Returns the logit of each review, float64."""
        return ngram_matrix(ngrams, self.features) @ self.weights + self.bias


class Candidate(NamedTuple):
    """A model of one C, and what it measures on the validation reviews."""

    strength: float
    model: LinearModel
    measured: dict[str, float]


def find_ngrams(split: Split, lexicon_size: int) -> Ngrams:
    """Returns the uni- and bigrams of every review of `split`."""
    size = len(split.labels)
    words = split.words.astype(np.int64)
    reviews = np.repeat(np.arange(size), split.counts)
    inside = reviews[1:] == reviews[:-1]  # no bigram reaches into the next review
    bigrams = (words[:-1] + 1) * lexicon_size + words[1:]
    codes = np.concatenate([words, bigrams[inside]])
    reviews = np.concatenate([reviews, reviews[1:][inside]])
    kinds = (lexicon_size + 1) * lexicon_size
    pairs = np.sort(reviews * kinds + codes)  # np.unique goes through a slower hash table
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return Ngrams(pairs // kinds, pairs % kinds, size)


def select_rows(ngrams: Ngrams, rows: np.ndarray) -> Ngrams:
    """Returns the n-grams of reviews `rows`, which must rise, numbered anew from 0."""
    chosen = np.zeros(ngrams.size, bool)
    chosen[rows] = True
    kept = chosen[ngrams.reviews]
    place = np.cumsum(chosen) - 1
    return Ngrams(place[ngrams.reviews[kept]], ngrams.codes[kept], len(rows))


def count_features(ngrams: Ngrams) -> np.ndarray:
    """Returns the codes that stand in at least `MIN_REVIEWS` of the reviews, rising."""
    codes, reviews = np.unique(ngrams.codes, return_counts=True)
    return codes[reviews >= MIN_REVIEWS]


def ngram_matrix(ngrams: Ngrams, features: np.ndarray) -> csr_array:
    """Returns `f[review, feature]`, 1 where the feature stands in the review, else 0; float64."""
    place = np.searchsorted(features, ngrams.codes)
    known = np.append(features, -1)[place] == ngrams.codes
    # Liblinear takes 32-bit indices only.
    rows, columns = ngrams.reviews[known].astype(np.int32), place[known].astype(np.int32)
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(ngrams.size, len(features)))


def nb_ratio(matrix: csr_array, labels: np.ndarray) -> np.ndarray:
    """Returns the log-count ratio of each feature, float64.

    `r = log((p / |p|_1) / (q / |q|_1))`, `p = alpha + sum of f over positive reviews`, `q` the same
    over negative ones. Wang and Manning, 2012, Baselines and Bigrams, section 2.1.
    """
    p = SMOOTHING + matrix.T @ (labels == 1).astype(np.float64)
    q = SMOOTHING + matrix.T @ (labels == 0).astype(np.float64)
    return np.log((p / p.sum()) / (q / q.sum()))


def fit(
    ngrams: Ngrams, labels: np.ndarray, strengths: Sequence[float], seed: int
) -> list[LinearModel]:
    """Returns a model for each C of `strengths`.

    Minimises `|w|^2 / 2 + C * sum of cross-entropies` over `w`, the coefficients of `r * f` and the
    bias. Deviation: Wang and Manning, section 2.3, fit a support vector machine and draw its
    weights towards their mean; here logistic regression, which gives probabilities, unmixed.

    Args:
      ngrams: of the training reviews; features and ratios are counted on no others.
      labels: int8, 1 or 0.
      strengths: values of C.
      seed: of the order in which the solver visits reviews.

    Raises:
      UserError: scikit-learn is missing, or the reviews leave nothing to learn.
    """
    regression = logistic_regression()
    features = count_features(ngrams)
    if len(features) == 0 or len(np.unique(labels)) < 2:
        raise UserError(
            f"{ngrams.size:,} training reviews must share words and have both labels, but do not; "
            "hold out fewer with --validation-examples"
        )
    matrix = ngram_matrix(ngrams, features)
    ratio = nb_ratio(matrix, labels)
    weighted = matrix.multiply(ratio).tocsr()
    models = []
    for strength in strengths:
        # The dual solver reaches the optimum in seconds. The default one, lbfgs, stops short of
        # it for large C, since it asks for the largest of very many small derivatives.
        solver = regression(
            C=strength, solver="liblinear", dual=True, max_iter=10_000, random_state=seed
        )
        solver.fit(weighted, labels)
        models.append(LinearModel(features, ratio * solver.coef_[0], float(solver.intercept_[0])))
    return models


def fit_candidates(
    ngrams: Ngrams, labels: np.ndarray, training: np.ndarray, validation: np.ndarray, seed: int
) -> list[Candidate]:
    """Returns a model for each of `STRENGTHS`, fitted on rows `training`, and its measures.

    Raises:
      UserError: as `fit`.
    """
    models = fit(select_rows(ngrams, training), labels[training], STRENGTHS, seed)
    held_out = select_rows(ngrams, validation)
    return [
        Candidate(strength, model, measure_binary(model.logits(held_out), labels[validation]))
        for strength, model in zip(STRENGTHS, models, strict=True)
    ]


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Returns the one with the best validation accuracy; of equals the first."""
    return max(candidates, key=lambda candidate: candidate.measured["accuracy"])


def logistic_regression() -> Any:
    """Returns scikit-learn's class.

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError(
            f"the linear baseline needs scikit-learn ({error}); pip install -e '.[linear]'"
        ) from None
    return LogisticRegression

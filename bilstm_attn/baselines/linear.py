"""Logistic regression on binary uni- and bigrams, weighted by naive Bayes log-count ratios.

Its only word-order information is bigrams. It reads whole texts, and every n-gram that occurs in
`MIN_EXAMPLES` training examples. SciPy and scikit-learn; no JAX.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from bilstm_attn.data.token_cache import Split
from bilstm_attn.errors import UserError
from bilstm_attn.nn.metrics import measure_binary

MIN_EXAMPLES = 2  # an n-gram of fewer training examples is not a feature
SMOOTHING = 1.0  # alpha, added to the count of every feature
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)  # candidate values of C, ascending


class Ngrams(NamedTuple):
    """The distinct uni- and bigrams of every example: `codes[i]` occurs in example `rows[i]`."""

    rows: np.ndarray  # int64[n], ascending
    codes: np.ndarray  # int64[n]: word w has code w, bigram v w has (v + 1) * len(lexicon) + w
    size: int  # number of examples


class LinearModel(NamedTuple):
    """A fitted model: `logit = bias + sum of the coefficients of the features in the text`."""

    features: np.ndarray  # int64[k], codes, ascending
    coefficients: np.ndarray  # float64[k], NB ratio times the fitted coefficient
    bias: float

    def logits(self, ngrams: Ngrams) -> np.ndarray:
        """Returns the logit of each example, float64 `[n]`."""
        return ngram_matrix(ngrams, self.features) @ self.coefficients + self.bias


class Candidate(NamedTuple):
    """A model fitted with one value of C, and its metrics on the validation examples."""

    strength: float
    model: LinearModel
    metrics: dict[str, float]


def find_ngrams(split: Split, lexicon_size: int) -> Ngrams:
    """Returns the uni- and bigrams of every example of `split`."""
    size = len(split.labels)
    words = split.words.astype(np.int64)
    rows = np.repeat(np.arange(size), split.counts)
    same_row = rows[1:] == rows[:-1]  # a bigram never spans two examples
    bigrams = (words[:-1] + 1) * lexicon_size + words[1:]
    codes = np.concatenate([words, bigrams[same_row]])
    rows = np.concatenate([rows, rows[1:][same_row]])
    code_count = (lexicon_size + 1) * lexicon_size
    pairs = np.sort(rows * code_count + codes)  # np.unique uses a hash table, which is slower here
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return Ngrams(pairs // code_count, pairs % code_count, size)


def select_rows(ngrams: Ngrams, rows: np.ndarray) -> Ngrams:
    """Returns the n-grams of the examples `rows`, which must be ascending, renumbered from 0."""
    selected = np.zeros(ngrams.size, bool)
    selected[rows] = True
    mask = selected[ngrams.rows]
    new_row = np.cumsum(selected) - 1
    return Ngrams(new_row[ngrams.rows[mask]], ngrams.codes[mask], len(rows))


def count_features(ngrams: Ngrams) -> np.ndarray:
    """Returns the codes that occur in at least `MIN_EXAMPLES` examples, ascending."""
    codes, counts = np.unique(ngrams.codes, return_counts=True)
    return codes[counts >= MIN_EXAMPLES]


def ngram_matrix(ngrams: Ngrams, features: np.ndarray) -> csr_array:
    """Returns `f[example, feature]`, float64: 1 if the feature occurs in the example, else 0."""
    column = np.searchsorted(features, ngrams.codes)
    is_feature = np.append(features, -1)[column] == ngrams.codes
    # Liblinear requires 32-bit indices.
    rows = ngrams.rows[is_feature].astype(np.int32)
    columns = column[is_feature].astype(np.int32)
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(ngrams.size, len(features)))


def nb_ratio(matrix: csr_array, labels: np.ndarray) -> np.ndarray:
    """Returns the log-count ratio of each feature, float64 `[k]`.

    `r = log((p / |p|_1) / (q / |q|_1))`, with `p = alpha + sum of f over examples of label 1` and
    `q` the same sum over label 0. Wang and Manning, 2012, Baselines and Bigrams, section 2.1.
    """
    p = SMOOTHING + matrix.T @ (labels == 1).astype(np.float64)
    q = SMOOTHING + matrix.T @ (labels == 0).astype(np.float64)
    return np.log((p / p.sum()) / (q / q.sum()))


def fit(
    ngrams: Ngrams, labels: np.ndarray, strengths: Sequence[float], seed: int
) -> list[LinearModel]:
    """Returns one model per value of C in `strengths`.

    Minimises `|w|^2 / 2 + C * sum of cross-entropies` over `w`, the coefficients of `r * f` and the
    bias. Deviation: Wang and Manning, section 2.3, fit a support vector machine and interpolate
    its weights with their mean; here logistic regression, which gives probabilities, without
    interpolation.

    Args:
      ngrams: n-grams of the training examples; the only source of features and ratios.
      labels: int8 `[n]`, 1 or 0.
      strengths: values of C.
      seed: seed of the order in which the solver visits examples.

    Raises:
      UserError: scikit-learn is missing, or the examples share no n-gram or have one label only.
    """
    regression = logistic_regression()
    features = count_features(ngrams)
    if len(features) == 0 or len(np.unique(labels)) < 2:
        raise UserError(
            f"the {ngrams.size:,} training examples must share words and have both labels, but do "
            "not; lower --validation-examples"
        )
    matrix = ngram_matrix(ngrams, features)
    ratio = nb_ratio(matrix, labels)
    inputs = matrix.multiply(ratio).tocsr()
    models = []
    for strength in strengths:
        # The dual solver reaches the optimum in seconds. The default one, lbfgs, stops before it
        # for large C, since its criterion is the largest of very many small derivatives.
        solver = regression(
            C=strength, solver="liblinear", dual=True, max_iter=10_000, random_state=seed
        )
        solver.fit(inputs, labels)
        models.append(LinearModel(features, ratio * solver.coef_[0], float(solver.intercept_[0])))
    return models


def fit_candidates(
    ngrams: Ngrams, labels: np.ndarray, training: np.ndarray, validation: np.ndarray, seed: int
) -> list[Candidate]:
    """Returns one model per value of C in `STRENGTHS`, with its validation metrics.

    Args:
      ngrams: n-grams of all examples.
      labels: int8 `[n]`, 1 or 0.
      training: rows to fit on, ascending.
      validation: rows to measure on, ascending.
      seed: seed of the solver.

    Raises:
      UserError: as `fit`.
    """
    models = fit(select_rows(ngrams, training), labels[training], STRENGTHS, seed)
    held_out = select_rows(ngrams, validation)
    return [
        Candidate(strength, model, measure_binary(model.logits(held_out), labels[validation]))
        for strength, model in zip(STRENGTHS, models, strict=True)
    ]


def best_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """Returns the candidate with the best validation accuracy; the first one of a tie."""
    return max(candidates, key=lambda candidate: candidate.metrics["accuracy"])


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

"""The linear baseline: features, ratios, optimum, choice of C, and what its command prints."""

import sys

import numpy as np
import pytest
from scipy.optimize import minimize
from tiny_run import load_script

from bilstm_attn.baselines import linear
from bilstm_attn.data.sources import DATASETS, Source
from bilstm_attn.data.token_cache import Split
from bilstm_attn.errors import UserError

LEXICON_SIZE = 7
GOOD, BAD, NOT, FILM = range(4)


def make_split(texts, labels=None) -> Split:
    """Returns a split of `texts`, lists of word ids."""
    words = np.array([word for text in texts for word in text], np.int32)
    offsets = np.cumsum([0, *map(len, texts)])
    return Split(words, offsets, np.array(labels or [0] * len(texts), np.int8))


def random_texts(seed: int, count: int) -> list[list[int]]:
    numbers = np.random.default_rng(seed)
    texts = [numbers.integers(LEXICON_SIZE, size=numbers.integers(6)) for _ in range(count)]
    return [[], [3], [2, 2, 2], *(text.tolist() for text in texts)]


def code(*words: int) -> int:
    """Returns the code of one word, or of two adjacent ones."""
    return words[0] if len(words) == 1 else (words[0] + 1) * LEXICON_SIZE + words[1]


def reference_matrix(texts, counted) -> tuple[list[int], np.ndarray]:
    """Returns the features of the rows `counted`, and the matrix of all texts, by dictionaries."""
    rows_with: dict[int, set[int]] = {}
    codes_in: list[set[int]] = []
    for row, text in enumerate(texts):
        codes_in.append(set())
        for start in range(len(text)):
            for width in (1, 2):
                if start + width <= len(text):
                    ngram = code(*text[start : start + width])
                    codes_in[row].add(ngram)
                    if row in counted:
                        rows_with.setdefault(ngram, set()).add(row)
    features = sorted(ngram for ngram, rows in rows_with.items() if len(rows) >= 2)
    matrix = [[int(ngram in codes) for ngram in features] for codes in codes_in]
    return features, np.array(matrix)


def test_codes_of_uni_and_bigrams_are_distinct():
    codes = [code(v) for v in range(LEXICON_SIZE)]
    codes += [code(v, w) for v in range(LEXICON_SIZE) for w in range(LEXICON_SIZE)]
    assert sorted(codes) == list(range(LEXICON_SIZE * (LEXICON_SIZE + 1)))


@pytest.mark.parametrize("seed", range(5))
def test_features_and_matrix_match_a_loop_over_dictionaries(seed):
    texts = random_texts(seed, 20)
    rows = np.array([0, 1, 2, 4, 5, 9, 14, 17, 22])
    ngrams = linear.find_ngrams(make_split(texts), LEXICON_SIZE)
    features = linear.count_features(linear.select_rows(ngrams, rows))
    expected_features, expected = reference_matrix(texts, set(rows.tolist()))
    assert features.tolist() == expected_features
    assert 0 < len(features) < len(np.unique(ngrams.codes))  # other rows have further n-grams
    np.testing.assert_array_equal(linear.ngram_matrix(ngrams, features).toarray(), expected)
    selected = linear.ngram_matrix(linear.select_rows(ngrams, rows), features)
    np.testing.assert_array_equal(selected.toarray(), expected[rows])


def test_ratio_matches_values_computed_by_hand():
    matrix = linear.csr_array(np.array([[1, 0, 1.0], [1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 1]]))
    ratio = linear.nb_ratio(matrix, np.array([1, 1, 0, 0, 0], np.int8))
    # Label 1: counts 2 1 1, smoothed 3 2 2, sum 7. Label 0: 0 3 1, smoothed 1 4 2, sum 7.
    np.testing.assert_allclose(ratio, np.log([3, 1 / 2, 1]), rtol=0, atol=1e-15)
    ratio = linear.nb_ratio(matrix, np.array([1, 0, 0, 0, 0], np.int8))
    # Label 1: 1 0 1, smoothed 2 1 2, sum 5. Label 0: 1 4 1, smoothed 2 5 2, sum 9.
    np.testing.assert_allclose(ratio, np.log([9 / 5, 9 / 25, 9 / 5]), rtol=0, atol=1e-15)


@pytest.mark.parametrize("strength", [0.1, 3.0])
def test_fit_reaches_the_minimum_that_a_general_optimiser_finds(strength):
    texts = random_texts(seed=1, count=30)
    labels = np.array([sum(text) % 2 for text in texts], np.int8)
    ngrams = linear.find_ngrams(make_split(texts), LEXICON_SIZE)
    [model] = linear.fit(ngrams, labels, [strength], seed=0)
    matrix = linear.ngram_matrix(ngrams, model.features).toarray()
    inputs = np.c_[matrix * linear.nb_ratio(linear.csr_array(matrix), labels), np.ones(len(labels))]
    sign = np.where(labels == 1, 1, -1)

    def loss(w):
        return w @ w / 2 + strength * np.logaddexp(0, -sign * (inputs @ w)).sum()

    def gradient(w):
        return w - strength * inputs.T @ (sign / (1 + np.exp(sign * (inputs @ w))))

    best = minimize(loss, np.zeros(inputs.shape[1]), jac=gradient, options={"gtol": 1e-8}).x
    # Liblinear stops when the largest violation of the dual's conditions is 1e-4 or below.
    np.testing.assert_allclose(model.logits(ngrams), inputs @ best, rtol=0, atol=1e-3)


def test_bigrams_learn_a_negation_that_words_cannot():
    positive, negative = [[GOOD], [NOT, BAD]], [[BAD], [NOT, GOOD]]
    texts = [[FILM] * films + text for text in positive + negative for films in range(3)]
    labels = np.repeat([1, 0], 6).astype(np.int8)
    [model] = linear.fit(linear.find_ngrams(make_split(texts), 4), labels, [3.0], seed=0)
    unseen = make_split([[FILM] * 5 + text for text in positive + negative])
    assert (model.logits(linear.find_ngrams(unseen, 4)) > 0).tolist() == [True, True, False, False]


def test_validation_examples_change_no_candidate():
    texts = random_texts(seed=2, count=30)
    labels = np.array([len(text) % 2 for text in texts], np.int8)
    training, validation = np.arange(20), np.arange(20, 33)
    ngrams = linear.find_ngrams(make_split(texts), LEXICON_SIZE)
    before = linear.fit_candidates(ngrams, labels, training, validation, seed=0)
    changed_texts = [*texts[:20], *([GOOD, BAD, BAD] for _ in validation)]
    changed_labels = np.concatenate([labels[:20], 1 - labels[20:]])
    ngrams = linear.find_ngrams(make_split(changed_texts), LEXICON_SIZE)
    after = linear.fit_candidates(ngrams, changed_labels, training, validation, seed=0)
    assert [candidate.strength for candidate in before] == list(linear.STRENGTHS)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old.model.features, new.model.features)
        np.testing.assert_array_equal(old.model.coefficients, new.model.coefficients)
        assert old.metrics != new.metrics


def test_best_candidate_of_a_tie_has_the_smallest_strength():
    model = linear.LinearModel(np.zeros(1), np.zeros(1), 0.0)
    accuracies = [0.7, 0.9, 0.9, 0.8]
    candidates = [
        linear.Candidate(strength, model, {"accuracy": accuracy})
        for strength, accuracy in zip((0.1, 1, 3, 10), accuracies, strict=True)
    ]
    assert linear.best_candidate(candidates).strength == 1


@pytest.mark.parametrize(("texts", "labels"), [([[1], [1]], [1, 1]), ([[1], [2]], [1, 0])])
def test_examples_of_one_label_or_without_shared_words_are_an_error(texts, labels):
    ngrams = linear.find_ngrams(make_split(texts), LEXICON_SIZE)
    message = "the 2 training examples must share words and have both labels"
    with pytest.raises(UserError, match=message):
        linear.fit(ngrams, np.array(labels), [1.0], seed=0)


class Tiny(Source):
    """Texts whose first word determines the label, except for two of the five test texts."""

    name, version, splits = "tiny", "1", ("train", "test")

    def __init__(self, data_dir=None, archive=None):
        pass

    def size(self, split):
        return 40 if split == "train" else 5

    def read(self, split):
        for row in range(self.size(split)):
            has_wrong_label = split == "test" and row < 2
            yield f"{'good' if row % 2 else 'bad'} film {row // 2}", row % 2 ^ has_wrong_label


class WithoutTest(Tiny):
    name, splits = "without_test", ("train",)


@pytest.fixture
def baseline(monkeypatch, tmp_path):
    """Runs scripts/linear_baseline.py on a data set of this file, with its cache in `tmp_path`."""
    for source in (Tiny, WithoutTest):
        monkeypatch.setitem(DATASETS, source.name, source)
    main = load_script("linear_baseline")
    return lambda dataset, *arguments: main("--cache", tmp_path, "--dataset", dataset, *arguments)


def test_command_reports_the_test_split_after_choosing_on_validation(baseline, capsys):
    assert baseline("tiny", "--validation-examples", 10) == 0
    out = capsys.readouterr().out
    assert "C 3.0   validation accuracy 100.00 %" in out
    assert "test split, measured once, after fitting all 40 training examples:" in out
    assert "\naccuracy           0.600000\n" in out
    assert "\nC                  0.03\n" in out
    # good, bad, film; good film, bad film; and 20 numbers, each in two texts, alone and after film.
    assert "\nfeatures           45\n" in out


def test_command_reports_validation_where_there_is_no_test_split(baseline, capsys):
    assert baseline("without_test", "--validation-examples", 10) == 0
    out = capsys.readouterr().out
    assert "without_test has no test split; validation, on which C was chosen:" in out
    assert "\naccuracy           1.000000\n" in out


def test_no_validation_examples_is_an_error_before_any_work(baseline, tmp_path):
    with pytest.raises(UserError, match="--validation-examples must be above 0 to choose C on"):
        baseline("tiny", "--validation-examples", 0)
    assert not list(tmp_path.iterdir())


def test_missing_scikit_learn_is_an_error_before_any_work(baseline, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UserError, match=r"scikit-learn .*pip install -e '\.\[linear\]'"):
        baseline("tiny")
    assert not list(tmp_path.iterdir())

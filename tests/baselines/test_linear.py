"""The linear baseline: its matrix, its ratio, its optimum, and what it may look at."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from bilstm_attn.baselines import linear
from bilstm_attn.data.sources import DATASETS, Source
from bilstm_attn.data.token_cache import Split
from bilstm_attn.errors import UserError

LEXICON_SIZE = 7
SCRIPT = Path(__file__).parents[2] / "scripts" / "linear_baseline.py"
GOOD, BAD, NOT, FILM = range(4)


def make_split(reviews, labels=None) -> Split:
    """Returns a split of `reviews`, lists of words."""
    words = np.array([word for review in reviews for word in review], np.int32)
    offsets = np.cumsum([0, *map(len, reviews)])
    return Split(words, offsets, np.array(labels or [0] * len(reviews), np.int8))


def random_reviews(seed: int, count: int) -> list[list[int]]:
    numbers = np.random.default_rng(seed)
    drawn = [numbers.integers(LEXICON_SIZE, size=numbers.integers(6)) for _ in range(count)]
    return [[], [3], [2, 2, 2], *(review.tolist() for review in drawn)]


def code(*words: int) -> int:
    """Returns the code of a word or of two."""
    return words[0] if len(words) == 1 else (words[0] + 1) * LEXICON_SIZE + words[1]


def loop(reviews, counted) -> tuple[list[int], np.ndarray]:
    """Returns features of reviews `counted` and the matrix of `reviews`, from dictionaries."""
    seen: dict[int, set[int]] = {}
    found: list[dict[int, int]] = []
    for row, review in enumerate(reviews):
        found.append({})
        for at in range(len(review)):
            for width in (1, 2):
                if at + width <= len(review):
                    ngram = code(*review[at : at + width])
                    found[row][ngram] = 1
                    if row in counted:
                        seen.setdefault(ngram, set()).add(row)
    features = sorted(ngram for ngram, rows in seen.items() if len(rows) >= 2)
    matrix = [[found[row].get(ngram, 0) for ngram in features] for row in range(len(reviews))]
    return features, np.array(matrix)


def test_codes_of_uni_and_bigrams_are_distinct():
    codes = [code(v) for v in range(LEXICON_SIZE)]
    codes += [code(v, w) for v in range(LEXICON_SIZE) for w in range(LEXICON_SIZE)]
    assert sorted(codes) == list(range(LEXICON_SIZE * (LEXICON_SIZE + 1)))


@pytest.mark.parametrize("seed", range(5))
def test_matrix_is_that_of_a_loop_over_dictionaries(seed):
    reviews = random_reviews(seed, 20)
    rows = np.array([0, 1, 2, 4, 5, 9, 14, 17, 22])
    ngrams = linear.find_ngrams(make_split(reviews), LEXICON_SIZE)
    features = linear.count_features(linear.select_rows(ngrams, rows))
    wanted_features, wanted = loop(reviews, set(rows.tolist()))
    assert features.tolist() == wanted_features
    assert 0 < len(features) < len(np.unique(ngrams.codes))  # some n-grams are new elsewhere
    np.testing.assert_array_equal(linear.ngram_matrix(ngrams, features).toarray(), wanted)
    part = linear.ngram_matrix(linear.select_rows(ngrams, rows), features)
    np.testing.assert_array_equal(part.toarray(), wanted[rows])


def test_ratio_is_the_formula_by_hand():
    matrix = linear.csr_array(np.array([[1, 0, 1.0], [1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 1]]))
    ratio = linear.nb_ratio(matrix, np.array([1, 1, 0, 0, 0], np.int8))
    # Positive: counts 2 1 1, smoothed 3 2 2, of 7. Negative: 0 3 1, smoothed 1 4 2, of 7.
    np.testing.assert_allclose(ratio, np.log([3, 1 / 2, 1]), rtol=0, atol=1e-15)
    ratio = linear.nb_ratio(matrix, np.array([1, 0, 0, 0, 0], np.int8))
    # Positive: 1 0 1, smoothed 2 1 2, of 5. Negative: 1 4 1, smoothed 2 5 2, of 9.
    np.testing.assert_allclose(ratio, np.log([9 / 5, 9 / 25, 9 / 5]), rtol=0, atol=1e-15)


@pytest.mark.parametrize("strength", [0.1, 3.0])
def test_fit_reaches_the_optimum_of_its_docstring(strength):
    reviews = random_reviews(seed=1, count=30)
    labels = np.array([sum(review) % 2 for review in reviews], np.int8)
    ngrams = linear.find_ngrams(make_split(reviews), LEXICON_SIZE)
    [model] = linear.fit(ngrams, labels, [strength], seed=0)
    matrix = linear.ngram_matrix(ngrams, model.features).toarray()
    inputs = np.c_[matrix * linear.nb_ratio(linear.csr_array(matrix), labels), np.ones(len(labels))]
    sign = np.where(labels == 1, 1, -1)

    def loss(w):
        return w @ w / 2 + strength * np.logaddexp(0, -sign * (inputs @ w)).sum()

    def derivative(w):
        return w - strength * inputs.T @ (sign / (1 + np.exp(sign * (inputs @ w))))

    best = minimize(loss, np.zeros(inputs.shape[1]), jac=derivative, options={"gtol": 1e-8}).x
    # Liblinear stops when the largest violation of the dual's conditions is 1e-4 or below.
    np.testing.assert_allclose(model.logits(ngrams), inputs @ best, rtol=0, atol=1e-3)


def test_bigrams_learn_a_negation_that_words_cannot():
    positive, negative = [[GOOD], [NOT, BAD]], [[BAD], [NOT, GOOD]]
    reviews = [[FILM] * pad + review for review in positive + negative for pad in range(3)]
    labels = np.repeat([1, 0], 6).astype(np.int8)
    [model] = linear.fit(linear.find_ngrams(make_split(reviews), 4), labels, [3.0], seed=0)
    unseen = make_split([[FILM] * 5 + review for review in positive + negative])
    assert (model.logits(linear.find_ngrams(unseen, 4)) > 0).tolist() == [True, True, False, False]


def test_candidates_see_no_validation_review():
    reviews = random_reviews(seed=2, count=30)
    labels = np.array([len(review) % 2 for review in reviews], np.int8)
    training, validation = np.arange(20), np.arange(20, 33)
    ngrams = linear.find_ngrams(make_split(reviews), LEXICON_SIZE)
    before = linear.fit_candidates(ngrams, labels, training, validation, seed=0)
    others = [*reviews[:20], *([GOOD, BAD, BAD] for _ in validation)]
    changed = np.concatenate([labels[:20], 1 - labels[20:]])
    ngrams = linear.find_ngrams(make_split(others), LEXICON_SIZE)
    after = linear.fit_candidates(ngrams, changed, training, validation, seed=0)
    assert [one.strength for one in before] == list(linear.STRENGTHS)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.model.features, other.model.features)
        np.testing.assert_array_equal(one.model.weights, other.model.weights)
        assert one.measured != other.measured


def test_of_equally_accurate_candidates_the_smallest_strength_is_chosen():
    model = linear.LinearModel(np.zeros(1), np.zeros(1), 0.0)
    accuracies = [0.7, 0.9, 0.9, 0.8]
    candidates = [
        linear.Candidate(strength, model, {"accuracy": accuracy})
        for strength, accuracy in zip((0.1, 1, 3, 10), accuracies, strict=True)
    ]
    assert linear.choose(candidates).strength == 1


@pytest.mark.parametrize(("reviews", "labels"), [([[1], [1]], [1, 1]), ([[1], [2]], [1, 0])])
def test_reviews_with_nothing_to_learn_are_an_error(reviews, labels):
    ngrams = linear.find_ngrams(make_split(reviews), LEXICON_SIZE)
    with pytest.raises(UserError, match="2 training reviews must share words and have both labels"):
        linear.fit(ngrams, np.array(labels), [1.0], seed=0)


class Tiny(Source):
    """Reviews whose first word tells the label; in the test split two of five lie."""

    name, version, splits = "tiny", "1", ("train", "test")

    def __init__(self, data_dir=None, archive=None):
        pass

    def size(self, split):
        return 40 if split == "train" else 5

    def read(self, split):
        for row in range(self.size(split)):
            lies = split == "test" and row < 2
            yield f"{'good' if row % 2 else 'bad'} film {row // 2}", row % 2 ^ lies


class Untested(Tiny):
    name, splits = "untested", ("train",)


def run_script(monkeypatch, tmp_path, *arguments: str) -> int:
    for source in (Tiny, Untested):
        monkeypatch.setitem(DATASETS, source.name, source)
    spec = importlib.util.spec_from_file_location("linear_baseline", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "linear_baseline", script)  # tyro resolves annotations there
    spec.loader.exec_module(script)
    return script.main(["--cache", str(tmp_path), *arguments])


def test_script_reports_the_test_split_after_choosing_on_validation(monkeypatch, tmp_path, capsys):
    assert (
        run_script(monkeypatch, tmp_path, "--dataset", "tiny", "--validation-examples", "10") == 0
    )
    out = capsys.readouterr().out
    assert "C 3.0   validation accuracy 100.00 %" in out
    assert "test split, once, after fitting all 40 training reviews:" in out
    assert "\naccuracy           0.600000\n" in out
    assert "\nC                  0.03\n" in out
    # Good, bad, film; good film, bad film; and of all reviews, two a number, 20 and 20 with film.
    assert "\nfeatures           45\n" in out


def test_script_says_that_there_is_no_test_split(monkeypatch, tmp_path, capsys):
    arguments = ("--dataset", "untested", "--validation-examples", "10")
    assert run_script(monkeypatch, tmp_path, *arguments) == 0
    out = capsys.readouterr().out
    assert "untested has no test split; validation, where C was chosen:" in out
    assert "\naccuracy           1.000000\n" in out


def test_script_needs_validation_reviews(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--validation-examples must be above 0"):
        run_script(monkeypatch, tmp_path, "--dataset", "tiny", "--validation-examples", "0")


def test_without_scikit_learn_the_script_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UserError, match=r"scikit-learn .*pip install -e '\.\[linear\]'"):
        run_script(monkeypatch, tmp_path, "--dataset", "tiny")
    assert not list(tmp_path.iterdir())

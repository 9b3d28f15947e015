"""Every metric compared with scikit-learn or a loop from its definition; ties and edge cases."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from bilstm_attn.nn import metrics


def random_logits_and_labels(seed, size=997, ties=False):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=size).astype(np.float32) * 3
    if ties:
        logits = np.round(logits)
    labels = (generator.random(size) < metrics.sigmoid(logits * 0.7 + 0.3)).astype(np.int8)
    return logits, labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_match_scikit_learn(seed, ties):
    logits, labels = random_logits_and_labels(seed, ties=ties)
    measured = metrics.measure_binary(logits, labels)
    predicted, probability = logits > 0, metrics.sigmoid(logits)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "loss": sklearn_metrics.log_loss(labels, probability),
        "f1": sklearn_metrics.f1_score(labels, predicted),
        "roc_auc": sklearn_metrics.roc_auc_score(labels, logits),
    }
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("ties", [False, True])
def test_calibration_error_is_the_sum_over_bins(ties):
    logits, labels = random_logits_and_labels(4, ties=ties)
    bins = metrics.CALIBRATION_BINS
    probability = metrics.sigmoid(logits)
    confidence = np.maximum(probability, 1 - probability)
    correct = (logits > 0) == (labels == 1)
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(logits, labels) == pytest.approx(total, abs=1e-12)


def test_large_correct_logits_are_perfect_and_large_wrong_logits_have_a_finite_loss():
    logits, labels = np.array([1e4, -1e4, 88.0], np.float32), np.array([1, 0, 1])
    perfect = {"accuracy": 1, "loss": 0, "f1": 1, "roc_auc": 1, "calibration_error": 0}
    assert metrics.measure_binary(logits, labels) == pytest.approx(perfect, abs=1e-12)
    assert metrics.cross_entropy(-logits, labels) == pytest.approx((2e4 + 88) / 3)


def test_a_logit_of_zero_predicts_label_0():
    assert metrics.accuracy(np.zeros(4, np.float32), np.array([0, 0, 0, 1])) == 0.75
    assert metrics.roc_auc(np.zeros(4, np.float32), np.array([0, 0, 0, 1])) == 0.5


def test_roc_auc_of_a_single_label_is_nan():
    measured = metrics.measure_binary(np.array([-1.0, -2.0], np.float32), np.array([0, 0]))
    assert np.isnan(measured["roc_auc"])
    assert measured["f1"] == 0
    assert measured["accuracy"] == 1

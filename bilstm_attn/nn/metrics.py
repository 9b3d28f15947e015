"""Metrics of a binary classifier, computed exactly in float64 from the logit of every example.

`logits[n]` are the logits of label 1, `labels[n]` are 0 or 1, and n is at least 1.
"""

import numpy as np

CALIBRATION_BINS = 15


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns the probability of label 1, `1 / (1 + exp(-logit))`, in float64."""
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the fraction of examples classified correctly; a logit of 0 predicts label 0."""
    return float(np.mean((logits > 0) == (labels == 1)))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of `-log p(label)`, in nats."""
    signed = np.where(labels == 1, logits, -logits).astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, -signed)))


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns `2 TP / (2 TP + FP + FN)` for label 1; 0 if the denominator is 0."""
    predicted, actual = logits > 0, labels == 1
    positives = predicted.sum() + actual.sum()
    return float(2 * (predicted & actual).sum() / positives) if positives else 0.0


def roc_auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the probability that an example of label 1 has a higher logit than one of label 0.

    Ties count one half. Hanley and McNeil, 1982: the Mann-Whitney statistic, from mean ranks. NaN
    if one label is absent.
    """
    _, index, count = np.unique(logits, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[index]
    positives = int((labels == 1).sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    above = rank[labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns `sum_bin fraction(bin) |accuracy(bin) - mean confidence(bin)|`.

    Guo et al., 2017, arXiv:1706.04599, eq. 3 (ECE). Confidence is the probability of the predicted
    label, in `CALIBRATION_BINS` equal bins of (0, 1].
    """
    probability = sigmoid(logits)
    confidence = np.maximum(probability, 1 - probability)
    correct = (logits > 0) == (labels == 1)
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1
    gaps = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def measure_binary(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns all metrics by name; the loss is in nats."""
    return {
        "accuracy": accuracy(logits, labels),
        "loss": cross_entropy(logits, labels),
        "f1": f1(logits, labels),
        "roc_auc": roc_auc(logits, labels),
        "calibration_error": calibration_error(logits, labels),
    }

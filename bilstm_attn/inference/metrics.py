"""Measures of a binary classifier, exact, in float64, from every review's logit."""

import numpy as np

CALIBRATION_BINS = 15


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns the probability of the positive label, float64."""
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of reviews whose logit has the label's sign; a logit of 0 says negative."""
    return float(np.mean((logits > 0) == (labels == 1)))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of `-log p(label)`, in nats."""
    signed = np.where(labels == 1, logits, -logits).astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, -signed)))


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns `2 TP / (2 TP + FP + FN)` of the positive label; 0 if there is nothing to count."""
    said, true = logits > 0, labels == 1
    positives = said.sum() + true.sum()
    return float(2 * (said & true).sum() / positives) if positives else 0.0


def roc_auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the chance that a positive review's logit exceeds a negative one's, ties half.

    Hanley and McNeil, 1982: the Mann-Whitney statistic, from mean ranks. NaN with one label only.
    """
    _, place, count = np.unique(logits, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    positives = int((labels == 1).sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    above = rank[labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns `sum_bin share(bin) |accuracy(bin) - mean confidence(bin)|`.

    Guo et al., 2017, arXiv:1706.04599, eq. 3 (ECE); confidence is the probability of the label
    said, in `CALIBRATION_BINS` equal bins of (0, 1].
    """
    positive = sigmoid(logits)
    confidence = np.maximum(positive, 1 - positive)
    right = (logits > 0) == (labels == 1)
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1
    gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns every measure over reviews with `logits[n]` and `labels[n]` (1 or 0), n above 0."""
    return {
        "accuracy": accuracy(logits, labels),
        "loss": cross_entropy(logits, labels),
        "f1": f1(logits, labels),
        "roc_auc": roc_auc(logits, labels),
        "calibration_error": calibration_error(logits, labels),
    }

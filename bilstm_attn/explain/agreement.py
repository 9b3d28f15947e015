"""Rank agreement of two attributions of the same texts."""

from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

SIGNIFICANCE_LEVEL = 0.05


class Agreement(NamedTuple):
    """Kendall's tau per example, over the example's own tokens.

    NaN for one token, and where all weights of an example are equal.
    """

    taus: np.ndarray  # float64[n]
    p_values: np.ndarray

    @property
    def _finite(self) -> np.ndarray:
        return self.taus[~np.isnan(self.taus)]

    @property
    def mean(self) -> float:
        """The mean tau over examples where it is defined."""
        return float(self._finite.mean()) if self._finite.size else np.nan

    @property
    def spread(self) -> float:
        """The standard deviation of tau over examples where it is defined."""
        return float(self._finite.std()) if self._finite.size else np.nan

    @property
    def significant(self) -> float:
        """The fraction of examples with a p-value of at most 0.05."""
        return float((self.p_values <= SIGNIFICANCE_LEVEL).mean())


def kendall(first: np.ndarray, second: np.ndarray, lengths: np.ndarray) -> Agreement:
    """Returns tau-b and its p-value between two sets of token weights `[n t]`, per example.

    Kendall, 1945; p-values as SciPy computes them by default.
    """
    results = [
        kendalltau(a[:length], b[:length]) if length > 1 else (np.nan, np.nan)
        for a, b, length in zip(first, second, lengths, strict=True)
    ]
    taus, p_values = np.array(results, np.float64).reshape(-1, 2).T
    return Agreement(taus, p_values)

"""How far two attributions of a review agree."""

from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

SIGNIFICANT = 0.05


class Agreement(NamedTuple):
    """Kendall's tau of some reviews, each over its own tokens.

    Not a number for one token, nor for weights that are all alike.
    """

    taus: np.ndarray  # float64[n]
    p_values: np.ndarray

    @property
    def _found(self) -> np.ndarray:
        return self.taus[~np.isnan(self.taus)]

    @property
    def mean(self) -> float:
        """The mean tau."""
        return float(self._found.mean()) if self._found.size else np.nan

    @property
    def spread(self) -> float:
        """The standard deviation over reviews."""
        return float(self._found.std()) if self._found.size else np.nan

    @property
    def significant(self) -> float:
        """The share of reviews with a p-value of at most 0.05."""
        return float((self.p_values <= SIGNIFICANT).mean())


def kendall(ones: np.ndarray, others: np.ndarray, lengths: np.ndarray) -> Agreement:
    """Returns the tau-b and its p-value between two weights a token `[n t]`, for each review.

    Kendall, 1945; SciPy's default p-value.
    """
    found = [
        kendalltau(one[:length], other[:length]) if length > 1 else (np.nan, np.nan)
        for one, other, length in zip(ones, others, lengths, strict=True)
    ]
    taus, p_values = np.array(found, np.float64).reshape(-1, 2).T
    return Agreement(taus, p_values)

"""Bootstrap over pictures: how far a score, or the difference of two, would move on other pictures of the same kind.

Every metric here is a function of sums over pictures, so a resample is a row of counts and all resamples are one
matrix product (Efron and Tibshirani 1993, chapter 13; paired as in Koehn 2004, section 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def resampled_sums(columns: NDArray[np.number], resamples: int, seed: int) -> Floats:
    """Sums of `columns` (N, C) over N pictures drawn with replacement, `resamples` times; (resamples, C).

    The same seed draws the same pictures, whatever the columns are: that is what makes two systems a pair.
    """
    pictures = len(columns)
    draws = np.random.default_rng(seed)
    columns = columns.astype(np.float64)
    sums = np.empty((resamples, columns.shape[1]))
    for start in range(0, resamples, 100):
        rows = min(100, resamples - start)
        drawn = draws.integers(pictures, size=(rows, pictures)) + np.arange(rows)[:, None] * pictures
        times = np.bincount(drawn.ravel(), minlength=rows * pictures).reshape(rows, pictures)
        sums[start : start + rows] = times @ columns
    return sums


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values (resamples,)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

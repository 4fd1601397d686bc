"""Whether one number predicts the order of another: Spearman's rank correlation and its bootstrap interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

NUM_BOOTSTRAP = 10_000


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the correlation of the ranks; 0 where one side is all equal."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(stats.spearmanr(one, other).statistic)


def interval(predictor: NDArray[np.float64], accuracy: NDArray[np.float64]) -> list[float]:
    """Return the 95 % bootstrap interval of `spearman`: layers drawn with replacement, and seeds for each of them.

    predictor [L]; accuracy [L, seeds].
    """
    rng = np.random.default_rng(0)
    layers, seeds = accuracy.shape
    found = []
    for _ in range(NUM_BOOTSTRAP):
        chosen = rng.integers(layers, size=layers)
        drawn = rng.integers(seeds, size=(layers, seeds))
        found.append(spearman(predictor[chosen], np.take_along_axis(accuracy[chosen], drawn, axis=1).mean(axis=1)))
    return [float(value) for value in np.percentile(found, [2.5, 97.5])]

"""Whether one number predicts the order of another: Spearman's rank correlation and its bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

NUM_BOOTSTRAP = 10_000
FEWEST = 5  # layers of an interval: of fewer, many draws hold one layer alone, whose correlation is not defined


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the correlation of the ranks; 0 where one side is all equal."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(stats.spearmanr(one, other).statistic)


def interval(predictor: NDArray[np.float64], accuracy: NDArray[np.float64]) -> list[float]:
    """Return the 95 % bootstrap interval of `spearman`: layers drawn with replacement, and seeds for each of them.

    predictor [L]; accuracy [L, seeds].
    """
    return percentiles(drawn_correlations([predictor], accuracy)[0])


def drawn_correlations(
    predictors: Sequence[NDArray[np.float64]], accuracy: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Return each predictor's `spearman` in every draw of layers and of their seeds [NUM_BOOTSTRAP].

    The draws are the same for all of them, so that the differences of two have an interval of their own.
    """
    rng = np.random.default_rng(0)
    num_layers, num_seeds = accuracy.shape
    layers, seeds = [], []
    for _ in range(NUM_BOOTSTRAP):
        layers.append(rng.integers(num_layers, size=num_layers))
        seeds.append(rng.integers(num_seeds, size=(num_layers, num_seeds)))
    drawn = np.take_along_axis(accuracy[np.array(layers)], np.array(seeds), axis=2).mean(axis=2)
    return [of_ranks(predictor[np.array(layers)], drawn) for predictor in predictors]


def percentiles(values: NDArray[np.float64]) -> list[float]:
    """Return the ends of the middle 95 % of what was drawn."""
    return [float(value) for value in np.percentile(values, [2.5, 97.5])]


def of_ranks(these: NDArray[np.float64], those: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute `spearman` of each row of two arrays [N,L] at once: the correlation of their ranks; [N]."""
    ranks = (stats.rankdata(values, axis=1) for values in (these, those))
    one, other = (values - values.mean(axis=1, keepdims=True) for values in ranks)
    norms = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.divide((one * other).sum(axis=1), norms, out=np.zeros(len(norms)), where=norms > 0)

"""Whether one number predicts the order of another: Spearman's rank correlation and its bootstrap interval.

The interval draws layers independently of each other. Neighbouring layers of one network are alike, so it is too
narrow for them: it takes for certain a correlation that both sides only owe to depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

NUM_BOOTSTRAP = 10_000
FEWEST = 5  # layers for an interval: with fewer, many draws hold a single layer, whose correlation is undefined


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the correlation of the ranks; 0 where all values of one side are equal."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(stats.spearmanr(one, other).statistic)


def partial_spearman(one: NDArray[np.float64], other: NDArray[np.float64], given: NDArray[np.float64]) -> float:
    """Return the partial correlation of two sides' ranks, given the ranks of a third.

    0 where the third determines a side.
    """
    both, of_one, of_other = spearman(one, other), spearman(one, given), spearman(other, given)
    left = (1 - of_one**2) * (1 - of_other**2)
    return float((both - of_one * of_other) / left**0.5) if left > 1e-12 else 0.0


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
    """Return the ends of the middle 95 % of the drawn values."""
    return [float(value) for value in np.percentile(values, [2.5, 97.5])]


def of_ranks(these: NDArray[np.float64], those: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute `spearman` of each row of two arrays [N,L] at once: the correlation of their ranks; [N]."""
    ranks = (stats.rankdata(values, axis=1) for values in (these, those))
    one, other = (values - values.mean(axis=1, keepdims=True) for values in ranks)
    norms = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.divide((one * other).sum(axis=1), norms, out=np.zeros(len(norms)), where=norms > 0)

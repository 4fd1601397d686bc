"""Rank correlations of many draws at once, and their interval, against SciPy's one by one."""

import numpy as np
import pytest
from scipy import stats

from ops.rank_correlation import interval, of_ranks


def test_many_at_once():
    """With ties on one side; a side that is all equal has none."""
    rng = np.random.default_rng(0)
    these, those = rng.integers(0, 4, (30, 7)).astype(float), rng.normal(size=(30, 7))
    one_by_one = [stats.spearmanr(one, other).statistic for one, other in zip(these, those, strict=True)]
    assert of_ranks(these, those) == pytest.approx(one_by_one)
    assert of_ranks(np.ones((1, 3)), np.arange(3.0)[None]).tolist() == [0.0]


def test_an_interval():
    """As wide as SciPy's own bootstrap of the same layers, whose draws are others; a clear order excludes zero."""
    rng = np.random.default_rng(1)
    predictor = np.arange(15.0)
    accuracy = (predictor + rng.normal(scale=4, size=15))[:, None]
    low, high = interval(predictor, accuracy)
    other = stats.bootstrap(
        (predictor, accuracy[:, 0]),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=600,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.06)
    assert 0 < low < stats.spearmanr(predictor, accuracy[:, 0]).statistic < high <= 1

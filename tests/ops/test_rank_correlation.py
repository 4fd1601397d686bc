"""Rank correlations of many draws at once, and their interval, against SciPy's one by one."""

import numpy as np
import pytest
from scipy import stats

from ops import rank_correlation
from ops.rank_correlation import drawn_correlations, interval, of_ranks, partial_spearman, percentiles, spearman


def test_many_at_once():
    """With ties on one side; a side that is all equal has none."""
    rng = np.random.default_rng(0)
    these, those = rng.integers(0, 4, (30, 7)).astype(float), rng.normal(size=(30, 7))
    one_by_one = [stats.spearmanr(one, other).statistic for one, other in zip(these, those, strict=True)]
    assert of_ranks(these, those) == pytest.approx(one_by_one)
    assert of_ranks(np.ones((1, 3)), np.arange(3.0)[None]).tolist() == [0.0]


def test_what_is_left_given_a_third():
    """As the correlation of what a straight line over the third's ranks leaves of both; nothing of what it explains."""
    rng = np.random.default_rng(4)
    depth = np.arange(18.0)
    one, other = depth + rng.normal(scale=5, size=18), depth + rng.normal(scale=5, size=18)
    left = [
        ranks - np.polyval(np.polyfit(stats.rankdata(depth), ranks, 1), stats.rankdata(depth))
        for ranks in map(stats.rankdata, (one, other))
    ]
    assert partial_spearman(one, other, depth) == pytest.approx(np.corrcoef(*left)[0, 1])
    assert abs(partial_spearman(one, other, depth)) < spearman(one, other)
    assert partial_spearman(depth**3, other, depth) == 0.0


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


def test_seeds_are_drawn_for_every_layer(monkeypatch):
    """Draw by draw, from the same random numbers."""
    monkeypatch.setattr(rank_correlation, "NUM_BOOTSTRAP", 200)
    rng = np.random.default_rng(2)
    predictor, accuracy = np.arange(15.0), np.arange(15.0)[:, None] + rng.normal(scale=9, size=(15, 3))
    draws, found = np.random.default_rng(0), []
    for _ in range(200):
        layers, seeds = draws.integers(15, size=15), draws.integers(3, size=(15, 3))
        means = [accuracy[layer, of_layer].mean() for layer, of_layer in zip(layers, seeds, strict=True)]
        found.append(spearman(predictor[layers], np.array(means)))
    assert interval(predictor, accuracy) == pytest.approx(np.percentile(found, [2.5, 97.5]).tolist(), abs=1e-12)


def test_draws_are_the_same_for_all_predictors():
    """So that what all of them miss says nothing of their differences."""
    rng = np.random.default_rng(3)
    predictor, noise = np.arange(15.0), rng.normal(size=15)
    accuracy = np.arange(15.0)[:, None] + rng.normal(scale=1, size=(15, 3))
    found = drawn_correlations([predictor, noise, predictor**3, -predictor], accuracy)
    assert percentiles(found[0]) == interval(predictor, accuracy)
    assert (found[0] == found[2]).all()
    assert found[3] == pytest.approx(-found[0])
    assert percentiles(found[0] - found[1])[0] > 0

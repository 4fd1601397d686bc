"""Intervals against worked examples, and the sentences."""

import pytest
from scipy import stats

from ops.review.seed_noise import difference, paired, quantile, sentence, welch


def test_student_t():
    """Against a printed table."""
    assert [quantile(df) for df in (1, 2, 10, 30, 1000)] == pytest.approx(
        [12.706, 4.303, 2.228, 2.042, 1.962], abs=5e-4
    )


def test_welch():
    """Against scipy's own test, whose degrees of freedom are 2.94."""
    these, those = [2.0, 4.0, 6.0], [0.0, 1.0, 2.0]
    found, low_high = welch(these, those), stats.ttest_ind(these, those, equal_var=False).confidence_interval(0.95)
    assert found.value == 3
    assert found.interval == pytest.approx(tuple(low_high))
    assert found.within_noise


def test_pairs_take_away_what_seeds_share():
    """Seeds differ by 10, the methods by 1 at every seed: noise for Welch, none for pairs."""
    these, those = {"0": 11.0, "1": 21.1, "2": 31.0}, {"0": 10.0, "1": 20.0, "2": 30.0}
    assert difference(these, those).within_noise is False
    assert difference(these, those).test == "paired t, n = 3 seeds"
    assert welch(list(these.values()), list(those.values())).within_noise is True


def test_paired():
    """Against scipy's own test."""
    these, those = [1.5, 2.5, 4.0], [0.5, 0.5, 1.0]
    found = paired([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.interval == pytest.approx(tuple(stats.ttest_rel(these, those).confidence_interval(0.95)))


def test_other_seeds_are_no_pairs():
    assert difference({"0": 1.0, "1": 2.0}, {"0": 1.0, "2": 2.0}).test == "Welch's t, n = 2 and 2"


def test_equal_values():
    found = welch([1.0, 1.0], [1.0, 1.0])
    assert (found.value, found.half_width, found.within_noise) == (0, 0, True)


def test_sentences():
    noise = difference({"0": 0.5, "1": 0.7}, {"0": 0.6, "1": 0.5})
    assert sentence("kd", "alone", noise).startswith("kd is 5.00 points above alone, which is within seed noise (95 %")
    one = difference({"0": 0.5}, {"0": 0.6, "1": 0.7})
    assert sentence("kd", "alone", one) == (
        "kd is 15.00 points below alone; with n = 1 and 2 runs, nothing can be said about seed noise."
    )


def test_a_sentence_of_a_loss():
    found = difference({"0": 0.5, "1": 0.7}, {"0": 0.4, "1": 0.4})
    assert sentence("kd", "alone", found, percent=False).startswith("kd is 0.2000 above alone, which is within")

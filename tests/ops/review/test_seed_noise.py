"""Intervals against worked examples, and the sentences."""

import pytest

from ops.review.seed_noise import difference, paired, quantile, sentence, welch


def test_student_t():
    assert quantile(2) == 4.303
    assert quantile(2.9) == 4.303
    assert quantile(1000) == 2.042


def test_welch_by_hand():
    """Means 4 and 1, variances 4 and 1 of 3 each: t(2.94, down to 2) sqrt(4/3 + 1/3)."""
    found = welch([2.0, 4.0, 6.0], [0.0, 1.0, 2.0])
    assert found.value == 3
    assert found.half_width == pytest.approx(4.303 * (5 / 3) ** 0.5)
    assert found.within_noise


def test_pairs_take_away_what_seeds_share():
    """Seeds differ by 10, the methods by 1 at every seed: noise for Welch, none for pairs."""
    these, those = {"0": 11.0, "1": 21.1, "2": 31.0}, {"0": 10.0, "1": 20.0, "2": 30.0}
    assert difference(these, those).within_noise is False
    assert difference(these, those).test == "paired t, n = 3 seeds"
    assert welch(list(these.values()), list(those.values())).within_noise is True


def test_paired_by_hand():
    found = paired([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.half_width == pytest.approx(4.303 * 1 / 3**0.5)


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

"""Intervals against worked examples, and the sentences."""

import pytest

from ops.review.seed_noise import difference, paired, sentence, welch


def test_welch():
    """By hand: variances of 4 and 1 over 3 runs each give 2.94 degrees of freedom, whose t at 97.5 % is 3.2188."""
    found = welch([2.0, 4.0, 6.0], [0.0, 1.0, 2.0])
    half_width = 3.2188 * (4 / 3 + 1 / 3) ** 0.5
    assert found.value == 3
    assert found.interval == pytest.approx((3 - half_width, 3 + half_width), abs=1e-3)
    assert found.within_noise


def test_pairs_take_away_what_seeds_share():
    """Seeds differ by 10, the methods by 1 at every seed: noise for Welch, none for pairs."""
    these, those = {"0": 11.0, "1": 21.1, "2": 31.0}, {"0": 10.0, "1": 20.0, "2": 30.0}
    assert difference(these, those).within_noise is False
    assert difference(these, those).test == "paired t, n = 3 seeds"
    assert welch(list(these.values()), list(those.values())).within_noise is True


def test_paired():
    """By hand: t of 2 degrees of freedom at 97.5 % is 4.302653, of a printed table."""
    found = paired([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.interval == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_other_seeds_are_no_pairs():
    assert difference({"0": 1.0, "1": 2.0}, {"0": 1.0, "2": 2.0}).test == "Welch's t, n = 2 and 2"


@pytest.mark.parametrize("gains", [[0.1, 0.1, 0.1], [0.51 - 0.41, 0.61 - 0.51, 0.71 - 0.61]])
def test_equal_differences_say_nothing_of_noise(gains):
    """Also where they are equal but for rounding, whose interval would be as narrow as that."""
    found = difference(dict(zip("abc", gains, strict=True)), dict.fromkeys("abc", 0.0))
    assert (found.interval, found.within_noise) == (None, None)
    assert sentence("kd", "alone", found) == (
        "kd is 10.00 points above alone; with equal differences at n = 3 seeds, nothing can be said about seed noise."
    )


def test_equal_values_say_nothing_of_noise():
    found = welch([1.0, 1.0], [0.5, 0.5, 0.5])
    assert (found.value, found.interval, found.test) == (0.5, None, "equal values at n = 2 and 3")
    one_side = welch([1.0, 1.0], [0.5, 0.4])
    assert one_side.interval == pytest.approx((0.55 - 12.7062 * 0.05, 0.55 + 12.7062 * 0.05), abs=1e-4)


def test_one_seed_has_no_interval():
    assert paired([0.25]).interval is None


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

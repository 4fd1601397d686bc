"""Whether a difference is more than the noise between seeds: intervals, and the sentence for them."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A difference of two means.

    interval: the 95 % one; None where the values do not vary or are too few. test: what the interval rests on, or why
    there is none.
    """

    value: float
    interval: tuple[float, float] | None
    test: str

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval contains 0; None where there is no interval."""
        return None if self.interval is None else self.interval[0] <= 0 <= self.interval[1]


def difference(these: Mapping[str, float], those: Mapping[str, float]) -> Difference:
    """Return the mean of `these` minus that of `those`, both {seed: value}, with its interval.

    The interval is that of pairs of equal seeds if both sides have the same seeds, else Welch's.
    """
    if these.keys() == those.keys() and len(these) > 1:
        return paired([these[seed] - those[seed] for seed in these])
    return welch(list(these.values()), list(those.values()))


def paired(differences: Sequence[float]) -> Difference:
    """Return the mean of paired differences, with the interval of the paired t-test.

    No interval where all are equal, as differences on few images can be by chance: that says nothing about the noise.
    """
    value, n = statistics.mean(differences), len(differences)
    if n < 2 or all_equal(differences):
        return Difference(value, None, "one seed" if n == 1 else f"equal differences at n = {n} seeds")
    return Difference(value, interval_of(stats.ttest_1samp(differences, 0)), f"paired t, n = {n} seeds")


def welch(these: Sequence[float], those: Sequence[float]) -> Difference:
    """Return the difference of two means whose variances may differ, with the interval of Welch's t-test.

    No interval where a side has a single value, or neither side varies.
    """
    value, n1, n2 = statistics.mean(these) - statistics.mean(those), len(these), len(those)
    if min(n1, n2) < 2:
        return Difference(value, None, "one run each" if n1 == n2 else f"n = {n1} and {n2} runs")
    if all_equal(these) and all_equal(those):
        return Difference(value, None, f"equal values at n = {n1} and {n2}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy's, where one side does not vary
        found = stats.ttest_ind(these, those, equal_var=False)
    return Difference(value, interval_of(found), f"Welch's t, n = {n1} and {n2}")


def all_equal(values: Sequence[float]) -> bool:
    """Return whether values are equal except for the rounding of differences."""
    return math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)


def interval_of(test: Any) -> tuple[float, float]:
    """Return the 95 % interval from the result of one of SciPy's t-tests."""
    low, high = test.confidence_interval(0.95)
    return float(low), float(high)


def sentence(one: str, other: str, found: Difference, percent: bool = True) -> str:
    """Return what a difference says, such as 'kd is 1.80 points above alone: ...'. percent: in points of a rate."""
    form, scale, unit = (".2f", 100, " points") if percent else (".4f", 1, "")
    size, direction = f"{abs(found.value) * scale:{form}}{unit}", "above" if found.value >= 0 else "below"
    said = f"{one} is {size} {direction} {other}"
    if found.interval is None:
        return f"{said}; with {found.test}, nothing can be said about seed noise."
    low, high = (f"{bound * scale:+{form}}" for bound in found.interval)
    verdict = "which is within seed noise" if found.within_noise else "more than seed noise"
    return f"{said}, {verdict} (95 % interval {low} to {high}; {found.test})."

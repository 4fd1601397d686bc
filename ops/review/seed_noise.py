"""Whether a difference is more than the noise between seeds: intervals, and the sentence for them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A difference of two means.

    half_width: of its 95 % interval; None where a side has a single run. test: what the interval rests on.
    """

    value: float
    half_width: float | None
    test: str

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval contains 0; None where there is no interval."""
        return None if self.half_width is None else abs(self.value) <= self.half_width

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None where a side has a single run."""
        return None if self.half_width is None else (self.value - self.half_width, self.value + self.half_width)


def difference(these: Mapping[str, float], those: Mapping[str, float]) -> Difference:
    """Return the mean of `these` minus that of `those`, both {seed: value}, with its interval.

    Of pairs of equal seeds where all seeds have one, else Welch's.
    """
    if these.keys() == those.keys() and len(these) > 1:
        return paired([these[seed] - those[seed] for seed in these])
    return welch(list(these.values()), list(those.values()))


def paired(differences: Sequence[float]) -> Difference:
    """Return the mean of paired differences d: mean(d) +- t s / sqrt(n), n - 1 degrees of freedom."""
    n = len(differences)
    half_width = quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(statistics.mean(differences), half_width, f"paired t, n = {n} seeds")


def welch(these: Sequence[float], those: Sequence[float]) -> Difference:
    """Return the difference of two means whose variances may differ.

    mean - mean +- t sqrt(s1^2/n1 + s2^2/n2), with Welch and Satterthwaite's degrees of freedom.
    """
    value = statistics.mean(these) - statistics.mean(those)
    n1, n2 = len(these), len(those)
    if min(n1, n2) < 2:
        return Difference(value, None, "one run each" if n1 == n2 else f"n = {n1} and {n2} runs")
    a, b = statistics.variance(these) / n1, statistics.variance(those) / n2
    freedom = (a + b) ** 2 / (a**2 / (n1 - 1) + b**2 / (n2 - 1)) if a + b else n1 + n2 - 2
    return Difference(value, quantile(freedom) * math.sqrt(a + b), f"Welch's t, n = {n1} and {n2}")


def quantile(freedom: float) -> float:
    """Return Student's t at 97.5 %: 95 % of the distribution lie between it and its negative."""
    return float(stats.t.ppf(0.975, freedom))


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

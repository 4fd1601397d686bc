"""Whether a difference is more than the noise between seeds: intervals, and the sentence for them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Student's t at 97.5 % for 1 to 30 degrees of freedom; beyond them the last is kept, which errs on the wide side.
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Difference:
    """Of two means. half_width: of its 95 % interval; None where a side has a single run. test: what that rests on."""

    value: float
    half_width: float | None
    test: str

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval contains 0; None where there is no interval."""
        return None if self.half_width is None else abs(self.value) <= self.half_width

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.half_width is None else (self.value - self.half_width, self.value + self.half_width)


def difference(these: Mapping[str, float], those: Mapping[str, float]) -> Difference:
    """The mean of `these` minus that of `those`, both {seed: value}: pairs of equal seeds where all seeds have one,
    else Welch's interval."""
    if these.keys() == those.keys() and len(these) > 1:
        return paired([these[seed] - those[seed] for seed in these])
    return welch(list(these.values()), list(those.values()))


def paired(differences: Sequence[float]) -> Difference:
    """mean(d) +- t s / sqrt(n), n - 1 degrees of freedom."""
    n = len(differences)
    half_width = quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(statistics.mean(differences), half_width, f"paired t, n = {n} seeds")


def welch(these: Sequence[float], those: Sequence[float]) -> Difference:
    """mean - mean +- t sqrt(s1^2/n1 + s2^2/n2), with Welch and Satterthwaite's degrees of freedom, rounded down."""
    value = statistics.mean(these) - statistics.mean(those)
    n1, n2 = len(these), len(those)
    if min(n1, n2) < 2:
        return Difference(value, None, f"n = {n1} and {n2}")
    a, b = statistics.variance(these) / n1, statistics.variance(those) / n2
    freedom = (a + b) ** 2 / (a**2 / (n1 - 1) + b**2 / (n2 - 1)) if a + b else n1 + n2 - 2
    return Difference(value, quantile(freedom) * math.sqrt(a + b), f"Welch's t, n = {n1} and {n2}")


def quantile(freedom: float) -> float:
    """Student's t at 97.5 %, for degrees of freedom rounded down."""
    return T_975[min(max(int(freedom), 1), len(T_975)) - 1]


def sentence(one: str, other: str, found: Difference, percent: bool = True) -> str:
    """Return what a difference says, such as 'kd is 1.80 points above alone: ...'. percent: in points of a rate."""
    form, scale, unit = (".2f", 100, " points") if percent else (".4f", 1, "")
    size, direction = f"{abs(found.value) * scale:{form}}{unit}", "above" if found.value >= 0 else "below"
    said = f"{one} is {size} {direction} {other}"
    if found.interval is None:
        return f"{said}; with {found.test} runs, nothing can be said about seed noise."
    low, high = (f"{bound * scale:+{form}}" for bound in found.interval)
    verdict = "which is within seed noise" if found.within_noise else "more than seed noise"
    return f"{said}, {verdict} (95 % interval {low} to {high}; {found.test})."

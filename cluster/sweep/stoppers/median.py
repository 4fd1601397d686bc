"""The median rule: a run stops once even its best score is worse than the median of other runs' averages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field

from cluster.metric_names import Mode
from cluster.sweep.stoppers.base import Curve, Stopper


class Median(Stopper):
    """The median stopping rule (Golovin et al., Google Vizier, KDD 2017), with a grace period as in Ray Tune.

    A run stops at epoch t if its best score so far is worse than the median of the other runs' running averages: of
    every run that has come to epoch t, the mean of its scores from grace_epochs to t.
    """

    rule: Literal["median"] = "median"
    """The name of the rule."""

    min_runs: int = Field(default=3, ge=1)
    """No run is stopped before this many others have come as far."""

    def running_average(self, run: Curve, epoch: float) -> float | None:
        """Return the mean score from grace_epochs to an epoch; None for a run without one, or not that far yet."""
        if not run or run[-1].epoch < epoch:
            return None
        scores = [report.score for report in run if self.grace_epochs <= report.epoch <= epoch]
        mean = statistics.fmean(scores) if scores else math.nan
        return mean if math.isfinite(mean) else None

    def reason(self, run: Curve, others: Sequence[Curve], mode: Mode, write: Callable[[float], str] = str) -> str:
        """Return why a run ends with its last report; empty where it goes on."""
        epoch, score = run[-1]
        if epoch < self.grace_epochs:
            return ""
        averages = [mean for other in others if (mean := self.running_average(other, epoch)) is not None]
        if len(averages) < self.min_runs:
            return ""
        sign, median = 1 if mode == "max" else -1, statistics.median(averages)
        finite = [report.score for report in run if math.isfinite(report.score)]
        best = max(finite, key=lambda one: sign * one) if finite else score
        if sign * best >= sign * median:
            return ""  # where no score is a number, the comparison is false
        return (
            f"its best, {write(best)}, is worse than {write(median)}, the median of the running averages of the "
            f"{len(averages)} other runs that have come as far"
        )

    def summary(self) -> str:
        """Return what the rule does, in a few words."""
        return f"by the median rule from epoch {self.grace_epochs}, once {self.min_runs} other runs have come as far"

"""Asynchronous successive halving: at certain epochs, only the best runs go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from cluster.metric_names import Mode
from cluster.sweep.stoppers.base import Curve, Stopper


class Asha(Stopper):
    """Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020).

    Rungs are at the epochs grace_epochs * reduction_factor**k. A run that comes to a rung is compared with those that
    came there before it, and stops if its score is below their quantile 1 - 1/reduction_factor, interpolated linearly.
    It is compared once a rung, with its first report there, and nobody waits for anybody: the first one always goes on.
    """

    rule: Literal["asha"] = "asha"
    """The name of the rule."""

    reduction_factor: int = Field(default=3, ge=2)
    """Of the runs that come to a rung, the best 1/reduction_factor go on."""

    def rung(self, epoch: float) -> int:
        """Return the last rung at or before an epoch; 0 before the first."""
        rung = 0
        following = self.grace_epochs
        while following <= epoch:
            rung, following = following, following * self.reduction_factor
        return rung

    def score_at(self, rung: int, run: Curve) -> float | None:
        """Return the score with which a run came to a rung; None for one that has not come there."""
        return next((score for epoch, score in run if self.rung(epoch) == rung), None)

    def reason(self, run: Curve, others: Sequence[Curve], mode: Mode, write: Callable[[float], str] = str) -> str:
        """Return why a run ends with its last report; empty where it goes on."""
        epoch, score = run[-1]
        rung = self.rung(epoch)
        if rung == 0 or self.score_at(rung, run[:-1]) is not None:
            return ""
        found = [other for curve in others if (other := self.score_at(rung, curve)) is not None]
        there = [other for other in found if np.isfinite(other)]
        sign = 1 if mode == "max" else -1
        share = 100 * (1 - 1 / self.reduction_factor)
        if not there or sign * score >= np.percentile([sign * other for other in there], share):
            return ""  # where the score is not a number, the comparison is false
        better = sum(not sign * score >= sign * other for other in there)
        return (
            f"{better} of the {len(there)} runs that came to rung {rung} before it are better, and the best "
            f"1/{self.reduction_factor} go on"
        )

    def summary(self) -> str:
        """Return what the rule does, in a few words."""
        return f"by ASHA from epoch {self.grace_epochs}, all but 1/{self.reduction_factor}"

"""Which images an epoch shows where classes differ much in size: the rarer ones more often, each in another view.

An epoch has as many rows as there are images, and a class has the same share of them in every epoch. A class's images
are shown in rounds, each a permutation of them: no image comes again before all others of its class have, and its
r-th showing is its view r. Order and view are pure functions of (seed, epoch, position), as the full shuffle is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.views.draws import Stream
from pipelines.views.order import permutation

Ids = NDArray[np.int64]
Sampling = Literal["images", "sqrt", "classes"]

# A class of n images has a share of an epoch in proportion to n to this power.
POWERS: dict[Sampling, float] = {"images": 1.0, "sqrt": 0.5, "classes": 0.0}


@dataclass(frozen=True, eq=False)
class ClassSampling:
    """How often the images of each class are shown. power: of `POWERS`; labels [N]: the class of each sample."""

    power: float
    labels: NDArray[np.integer]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the order is a function of, besides a seed and an epoch."""
        return sha256(str(self.power).encode() + self.labels.astype("<i8").tobytes()).hexdigest()

    @cached_property
    def counts(self) -> Ids:
        """The number of images of each class [K]."""
        return np.bincount(self.labels).astype(np.int64)

    @cached_property
    def rows(self) -> Ids:
        """The number of rows of each class in an epoch [K]: its share of N, rounded so that they sum to N.

        What is left over by rounding down goes to the largest remainders, among equal ones to the first.
        """
        shares = np.where(self.counts > 0, self.counts.astype(np.float64) ** self.power, 0.0)
        exact = len(self.labels) * shares / shares.sum()
        rows = np.floor(exact).astype(np.int64)
        left = len(self.labels) - int(rows.sum())
        rows[np.argsort(rows - exact, kind="stable")[:left]] += 1
        return rows

    @cached_property
    def _of_class(self) -> Ids:
        """The sample ids, class by class."""
        return np.argsort(self.labels, kind="stable").astype(np.int64)

    def showings(self, seed: int, epoch: int, positions: Ids) -> tuple[Ids, Ids]:
        """Return the sample ids at positions of an epoch, and how often each was shown before: [P] -> ([P], [P])."""
        ends = np.cumsum(self.rows)
        slots = permutation(len(self.labels), seed, epoch, Stream.EPOCH_ORDER)(positions)
        labels = np.searchsorted(ends, slots, side="right")
        # The rows of a class, counted through all epochs, go through its images round by round.
        row = epoch * self.rows[labels] + slots - (ends - self.rows)[labels]
        rounds, places = np.divmod(row, self.counts[labels])
        ids, first = np.empty_like(slots), np.cumsum(self.counts) - self.counts
        of_round, numbers = np.unique(np.stack((labels, rounds)), axis=1, return_inverse=True)
        for number, (label, this) in enumerate(of_round.T.tolist()):
            mine = numbers.ravel() == number
            within = permutation(int(self.counts[label]), seed, this, Stream.CLASS_ORDER, label)
            ids[mine] = self._of_class[first[label] + within(places[mine])]
        return ids, rounds

"""The order for data larger than a node's disk: shards in random order, then samples within a window of some of them.

An epoch reads one window after the other, so that a node needs room for two of them and fetches every byte once. It is,
like the full shuffle, a pure function of (seed, epoch), computed at any position by itself. Samples that are mixed find
their partners within one shard: every epoch of a view then has them in one window.

How far it is from a full shuffle, as `ops.benchmarks.shuffle` finds it on 1,281,167 samples in 558 shards, each a
random part of them, as in this project's packs: batches of 256 have 226 of 1,000 classes (standard deviation 4
to 5) whatever the window. What is lost is mixing: of two samples of a batch, 96 % were in one window of the epoch
before with windows of 1 shard, 25 % with 4, 9 % with 16; neighbours lie 0.08 %, 25 % and 31 % of the data apart
(random: 33 %). Shards in order of class are another matter, with 3, 11 and 41 classes in a batch:
`pipelines.data.shards` refuses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from pipelines.views.draws import Stream
from pipelines.views.order import permutation

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Windows:
    """Which samples lie together, and how many shards are shuffled as one.

    size: shards of a window; stored [N]: sample ids in the order in which they lie; starts [S+1]: where each shard
    begins in that, and N.
    """

    size: int
    stored: NDArray[np.integer]
    starts: Ids

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the order is a function of, besides a seed and an epoch."""
        digest = sha256(str(self.size).encode())
        for numbers in (self.stored, self.starts):
            digest.update(numbers.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return len(self.starts) - 1

    def samples(self, seed: int, epoch: int, places: Ids) -> Ids:
        """Return the sample ids at places of an epoch: [P] -> [P]."""
        return self.stored[self._shuffled(seed, epoch, places, self.starts)].astype(np.int64)

    def pairs(self, seed: int, epoch: int, places: Ids) -> Ids:
        """Return the pairs, as `WindowSlots` numbers them, at places of an epoch that shows pairs: [P] -> [P]."""
        return self._shuffled(seed, epoch, places, self.starts // 2)

    def windows(self, seed: int, epoch: int) -> list[Ids]:
        """Return the shards of every window of an epoch, in order."""
        shards = permutation(self.num_shards, seed, epoch, Stream.SHARD_ORDER)(np.arange(self.num_shards))
        return np.array_split(shards, -(-self.num_shards // self.size))

    def _shuffled(self, seed: int, epoch: int, places: Ids, bounds: Ids) -> Ids:
        """Return the item at each place, where shard s has the items from bounds[s] to bounds[s + 1]."""
        windows = self.windows(seed, epoch)
        shards, sizes = np.concatenate(windows), np.diff(bounds)
        ends = np.cumsum(sizes[shards])
        window_ends = ends[np.cumsum([len(window) for window in windows]) - 1]
        window = np.searchsorted(window_ends, places, side="right")
        shuffled = np.empty_like(places)
        for number in np.unique(window).tolist():
            mine = window == number
            first = int(window_ends[number - 1]) if number else 0
            within = permutation(int(window_ends[number]) - first, seed, epoch, Stream.WINDOW_ORDER, number)
            shuffled[mine] = first + within(places[mine] - first)
        at = np.searchsorted(ends, shuffled, side="right")
        return bounds[shards[at]] + shuffled - (ends[at] - sizes[shards[at]])

    @cached_property
    def position(self) -> NDArray[np.integer]:
        """Where each sample lies: the inverse of `stored` [N]."""
        position = np.empty_like(self.stored)
        position[self.stored] = np.arange(len(self.stored), dtype=self.stored.dtype)
        return position


@dataclass(frozen=True)
class WindowSlots:
    """Sample id -> slot, in one pairing: slots 2k and 2k + 1 are partners and lie in one shard.

    Of an odd number of samples one, drawn for each pairing, has the last slot and no partner. A shard's odd sample
    counts as its neighbour's.
    """

    windows: Windows
    seed: int
    pairing: int

    def __call__(self, ids: Ids) -> Ids:
        """Return the slots of samples."""
        positions = self.windows.position[ids].astype(np.int64)
        if self._alone is None:
            return self._permuted(positions, inverse=False)
        alone = positions == self._alone
        positions -= positions > self._alone
        slots = np.full_like(positions, len(self.windows.stored) - 1)
        slots[~alone] = self._permuted(positions[~alone], inverse=False)
        return slots

    def inverse(self, slots: Ids) -> Ids:
        """Return the samples of slots."""
        if self._alone is None:
            return self.windows.stored[self._permuted(slots, inverse=True)].astype(np.int64)
        alone = slots == len(self.windows.stored) - 1
        positions = np.full_like(slots, self._alone)
        rest = self._permuted(slots[~alone], inverse=True)
        positions[~alone] = rest + (rest >= self._alone)
        return self.windows.stored[positions].astype(np.int64)

    @cached_property
    def _alone(self) -> int | None:
        """Where the sample without a partner lies; None for an even number of samples."""
        num = len(self.windows.stored)
        if num % 2 == 0:
            return None
        return int(permutation(num, self.seed, self.pairing, Stream.WINDOW_PARTNER)(np.zeros(1, dtype=np.int64))[0])

    def _permuted(self, values: Ids, inverse: bool) -> Ids:
        """Return values through the permutation of their shard, or back."""
        bounds = self.windows.starts // 2 * 2
        shards = np.searchsorted(bounds, values, side="right") - 1
        result = np.empty_like(values)
        for shard in np.unique(shards).tolist():
            mine, first = shards == shard, int(bounds[shard])
            size = int(bounds[shard + 1]) - first
            drawn = permutation(size, self.seed, self.pairing, Stream.WINDOW_PARTNER, shard + 1)
            through: Callable[[Ids], Ids] = drawn.inverse if inverse else drawn
            result[mine] = first + through(values[mine] - first)
        return result

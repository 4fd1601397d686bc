"""Permutations of any number of ids that take no memory: position -> id is computed, and so is its inverse."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.views.philox import words

Ids = NDArray[np.int64]
_ROUNDS = 12


class Permutation:
    """A keyed bijection of {0, ..., num - 1}: a Feistel network with cycle walking.

    The network permutes the next power of two by turns adding (xor) a keyed hash of its low half to its high half and
    the reverse; a value that falls outside is sent through again until it falls inside, which keeps the bijection
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, section 3). Fewer than two passes per
    value on average from 3 ids up.
    """

    def __init__(self, num: int, seed: int, number: int, stream: int, part: int = 0) -> None:
        self.num = num
        bits = max(2, (num - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64(2 ** (bits // 2) - 1)
        self._high_mask = np.uint64(2 ** (bits - bits // 2) - 1)
        pairs = words(seed, number, part * 2**8 + np.arange(_ROUNDS), stream, 2).astype(np.uint64)
        self._keys = pairs[:, :1] << np.uint64(32) | pairs[:, 1:]  # [rounds,1]

    def __call__(self, positions: Ids) -> Ids:
        return self._walk(positions, range(_ROUNDS))

    def inverse(self, ids: Ids) -> Ids:
        return self._walk(ids, range(_ROUNDS - 1, -1, -1))

    def _walk(self, values: Ids, rounds: range) -> Ids:
        values = np.asarray(values, dtype=np.int64)
        assert values.ndim == 1, "ids are a vector"
        assert np.all((values >= 0) & (values < self.num)), f"ids lie in [0, {self.num})"
        result = self._network(values.astype(np.uint64), rounds)
        while (outside := np.flatnonzero(result >= self.num)).size:
            result[outside] = self._network(result[outside], rounds)
        return result.astype(np.int64)

    def _network(self, values: NDArray[np.uint64], rounds: range) -> NDArray[np.uint64]:
        high, low = values >> self._low_bits, values & self._low_mask
        for r in rounds:
            if r % 2:
                low = low ^ (_hash(high + self._keys[r]) & self._low_mask)
            else:
                high = high ^ (_hash(low + self._keys[r]) & self._high_mask)
        return high << self._low_bits | low


def _hash(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the words through the finaliser of SplitMix64: every input bit reaches every output bit.

    Source: Steele, Lea, Flood, OOPSLA 2014.
    """
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=64)
def permutation(num: int, seed: int, number: int, stream: int, part: int = 0) -> Permutation:
    """Return a cached `Permutation`: its keys cost more than a batch's ids.

    part: which of several that share the other integers.
    """
    return Permutation(num, seed, number, stream, part)

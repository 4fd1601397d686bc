"""Random numbers without a state: Philox4x32-10, a counter-based generator.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: ArrayLike, key: tuple[int, int]) -> NDArray[np.uint32]:
    """Return the block of four random words of each counter: uint32 [...,4] -> [...,4]. key: two 32-bit words."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1 = (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0), product1 & _LOW
        c2, c3 = (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1), product0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def words(
    seed: int,
    number: int | NDArray[np.int64],
    ids: NDArray[np.int64],
    stream: int,
    count: int,
    first_block: int = 0,
) -> NDArray[np.uint32]:
    """Return `count` random words for each id: uint32 [B,count].

    The counter is (id: 64 bits, number: 32, stream: 16, block: 16), the key is the seed, so no two draws of one seed
    share a block. number: a view's or an epoch's, one for all ids or for each [B]; stream: what the words are for;
    first_block: where to begin, for callers that draw until they are satisfied.
    """
    num_blocks = -(-count // 4)
    assert 0 <= seed < 2**64, seed
    number = np.asarray(number, dtype=np.int64)
    assert np.all((number >= 0) & (number < 2**32)), number
    assert 0 <= stream < 2**16, stream
    assert first_block + num_blocks <= 2**16, "a stream has 2^16 blocks of four words"
    ids = np.asarray(ids, dtype=np.int64).astype(np.uint64)
    counter = np.empty((len(ids), num_blocks, 4), dtype=np.uint64)
    counter[..., 0] = (ids & _LOW)[:, None]
    counter[..., 1] = (ids >> _SHIFT)[:, None]
    counter[..., 2] = number.astype(np.uint64)[..., None]
    counter[..., 3] = (stream << 16) + np.arange(first_block, first_block + num_blocks, dtype=np.uint64)
    return philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(len(ids), 4 * num_blocks)[:, :count]


def uniforms(
    seed: int, views: int | NDArray[np.int64], sample_ids: NDArray[np.int64], stream: int, n: int
) -> NDArray[np.float64]:
    """Return n numbers in [0, 1) for each sample: float64 [B,n], exact multiples of 2^-32."""
    return words(seed, views, sample_ids, stream, n).astype(np.float64) * 2.0**-32

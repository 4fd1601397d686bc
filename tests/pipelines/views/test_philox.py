"""Philox against the published known answers, and the words drawn from it."""

import numpy as np
import pytest

from pipelines.views.philox import philox, uniforms, words

# counter, key, answer: the known-answer vectors of the Random123 distribution for philox4x32-10.
KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: list[int], key: tuple[int, int], answer: list[int]) -> None:
    assert philox(counter, key).tolist() == answer


def test_many_counters_at_once_equal_one_by_one() -> None:
    counters = np.random.default_rng(0).integers(0, 2**32, (3, 5, 4), dtype=np.uint32)
    together = philox(counters, (1, 2))
    assert together.dtype == np.uint32
    for i, j in np.ndindex(3, 5):
        assert together[i, j].tolist() == philox(counters[i, j], (1, 2)).tolist()


def test_words_are_the_blocks_of_the_documented_counter() -> None:
    seed, number, sample_id, stream = 0x0123456789ABCDEF, 7, 5 * 2**32 + 3, 9
    drawn = words(seed, number, np.array([sample_id]), stream, 6)[0]
    blocks = [philox([3, 5, 7, (9 << 16) + block], (0x89ABCDEF, 0x01234567)) for block in (0, 1)]
    assert drawn.tolist() == np.concatenate(blocks)[:6].tolist()
    assert words(seed, number, np.array([sample_id]), stream, 2, first_block=1)[0].tolist() == blocks[1][:2].tolist()


def test_more_words_begin_with_the_fewer() -> None:
    ids = np.arange(10)
    assert np.array_equal(uniforms(1, 2, ids, 3, 11)[:, :5], uniforms(1, 2, ids, 3, 5))


def test_uniforms_are_exact_multiples_in_the_unit_interval() -> None:
    drawn = uniforms(1, 0, np.arange(5000), 0, 8)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.array_equal(drawn * 2**32, np.floor(drawn * 2**32))
    counts = np.bincount((drawn.ravel() * 100).astype(int), minlength=100)
    assert ((counts - 400.0) ** 2 / 400).sum() < 160.1  # chi-square, 99 degrees of freedom, p = 1e-4


@pytest.mark.parametrize("changed", [{"seed": 2}, {"seed": 1 + 2**32}, {"view": 3}, {"stream": 4}])
def test_every_part_of_the_key_matters(changed: dict[str, int]) -> None:
    base = {"seed": 1, "view": 2, "stream": 3}
    ids = np.arange(100)
    one = uniforms(base["seed"], base["view"], ids, base["stream"], 4)
    other = {**base, **changed}
    assert not np.any(one == uniforms(other["seed"], other["view"], ids, other["stream"], 4))

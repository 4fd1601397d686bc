"""The order by windows of shards: each sample once an epoch, a window after the other, partners together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from pipelines.views.windows import Windows

PLAIN, MIXED = ViewPolicy(), ViewPolicy(mixup_alpha=0.2)
SIZES = (7, 1, 12, 30, 5, 9, 21, 2, 16, 11)


def windows_of(size: int, sizes: tuple[int, ...] = SIZES) -> Windows:
    """Shards of these sizes, their samples at random."""
    num = sum(sizes)
    stored = np.random.default_rng(3).permutation(num).astype(np.int32)
    return Windows(size, stored, np.cumsum((0, *sizes)))


def shard_of(windows: Windows, ids: np.ndarray) -> np.ndarray:
    return np.searchsorted(windows.starts, windows.position[ids], side="right") - 1


@pytest.mark.parametrize("policy", [PLAIN, MIXED, MIXED.model_copy(update={"repeats": 3})], ids=["plain", "mix", "x3"])
@pytest.mark.parametrize("sizes", [SIZES, (*SIZES, 3)], ids=["even", "odd"])
@pytest.mark.parametrize("size", [1, 3, 99])
def test_an_epoch_is_a_permutation_known_at_any_place(size: int, sizes: tuple[int, ...], policy: ViewPolicy) -> None:
    num = sum(sizes)
    plan = ViewPlan(policy, 5, num, windows_of(size, sizes))
    positions = np.arange(num)
    for epoch in range(3):
        if policy.repeats == 1:
            assert sorted(plan.order(epoch, positions)) == list(range(num))
        some = np.random.default_rng(epoch).permutation(num)[:17]
        assert np.array_equal(plan.order(epoch, some), plan.order(epoch, positions)[some])
    assert not np.array_equal(plan.order(0, positions), plan.order(1, positions))


def test_a_window_after_the_other() -> None:
    """Shards of one window stand together, and the next epoch has others together."""
    windows = windows_of(3)
    plan = ViewPlan(PLAIN, 5, sum(SIZES), windows)
    together = []
    for epoch in range(2):
        shards = shard_of(windows, plan.order(epoch, np.arange(sum(SIZES))))
        expected = windows.windows(5, epoch)
        assert max(map(len, expected)) <= 3
        ends = np.cumsum([sum(SIZES[shard] for shard in window) for window in expected])
        for window, found in zip(expected, np.split(shards, ends[:-1]), strict=True):
            assert set(found) == set(window)
        together.append({frozenset(window.tolist()) for window in expected})
    assert not together[0] & together[1]


@pytest.mark.parametrize("num", [sum(SIZES), sum(SIZES) + 3])
def test_partners_lie_together_in_every_epoch_of_a_view(num: int) -> None:
    """An involution; partners in one shard or its neighbour, and at positions 2k and 2k + 1."""
    sizes = SIZES if num == sum(SIZES) else (*SIZES, 3)
    windows = windows_of(2, sizes)
    plan = ViewPlan(MIXED.model_copy(update={"num_views": 2}), 5, num, windows)
    ids = np.arange(num)
    for view, epoch in itertools.product(range(2), range(4)):
        if epoch % 2 != view:
            continue
        partners = plan.partner(view, ids)
        assert np.array_equal(plan.partner(view, partners), ids)
        assert np.count_nonzero(partners == ids) == num % 2
        assert np.abs(shard_of(windows, partners) - shard_of(windows, ids)).max() <= 1
        order = plan.order(epoch, np.arange(num - num % 2))
        assert np.array_equal(plan.partner(view, order[::2]), order[1::2])
    assert not np.array_equal(plan.partner(0, ids), plan.partner(1, ids))
    if num % 2:
        alone = {int(ids[plan.partner(view, ids) == ids][0]) for view in range(9)}
        assert len(alone) > 2, "another one in every view"


def test_the_fingerprint_covers_the_order() -> None:
    """Size and shards are part of it; of what a view looks like, only where samples are mixed."""
    num = sum(SIZES)
    one, two = windows_of(1), windows_of(2)
    other = Windows(1, one.stored[::-1].copy(), one.starts)
    for policy in (PLAIN, MIXED):
        full = ViewPlan(policy, 5, num)
        plans = [full, *(ViewPlan(policy, 5, num, windows) for windows in (one, two, other))]
        assert len({plan.fingerprint for plan in plans}) == 4
        assert len({plan.appearance for plan in plans}) == (4 if policy is MIXED else 1)
        assert full.fingerprint == full.appearance == plans[1].without_windows.fingerprint


def test_pinned_orders() -> None:
    """Literal numbers: where these change, unfinished runs would go on in another order. Then raise VERSION."""
    num = sum(SIZES)
    stored = np.arange(num)
    windows = Windows(3, stored, np.cumsum((0, *SIZES)))
    assert ViewPlan(PLAIN, 20260101, num, windows).order(7, np.array([0, 1, 50, 113])).tolist() == [29, 62, 65, 97]
    assert ViewPlan(MIXED, 20260101, num, windows).order(7, np.array([0, 1, 50, 113])).tolist() == [37, 38, 71, 100]


def test_shares_of_shards_are_uniform() -> None:
    """Over epochs, each sample stands at each place alike: its mean place is the middle."""
    windows = windows_of(3)
    plan = ViewPlan(PLAIN, 1, sum(SIZES), windows)
    places = np.zeros(sum(SIZES))
    for epoch in range(400):
        places[plan.order(epoch, np.arange(sum(SIZES)))] += np.arange(sum(SIZES))
    mean = places / 400 / (sum(SIZES) - 1)
    assert abs(mean.mean() - 0.5) < 1e-9
    # 400 epochs of shards: a mean place is off by 0.29 / sqrt(400) = 0.014, and five times that at most
    assert np.abs(mean - 0.5).max() < 0.075

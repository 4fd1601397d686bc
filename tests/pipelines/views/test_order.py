"""Permutations without memory: that they are permutations, that they are even-handed, and what they cost."""

import tracemalloc

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.views.order import Permutation
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

SIZES = [1, 2, 3, 4, 5, 7, 8, 64, 65, 1000, 1003, 4096, 4097]
MIXED = ViewPolicy(size=8, mixup_alpha=0.2)
PLAIN = ViewPolicy(size=8)


@pytest.mark.parametrize("num", SIZES)
def test_bijection_and_inverse(num: int) -> None:
    everyone = np.arange(num)
    for number in range(5):
        permuted = Permutation(num, seed=3, number=number, stream=0)
        assert np.array_equal(np.sort(permuted(everyone)), everyone)
        assert np.array_equal(permuted.inverse(permuted(everyone)), everyone)
        assert np.array_equal(permuted(permuted.inverse(everyone)), everyone)


def test_ids_outside_are_refused() -> None:
    with pytest.raises(AssertionError, match="ids lie in"):
        Permutation(5, 0, 0, 0)(np.array([5]))


def test_all_permutations_of_three_are_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(1200):
        permuted = tuple(Permutation(3, seed, 0, 0)(np.arange(3)).tolist())
        counts[permuted] = counts.get(permuted, 0) + 1
    assert len(counts) == 6
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 25.7  # 5 degrees of freedom, p = 1e-4


def test_pairs_of_images_are_equally_likely() -> None:
    """Of 5 ids, where 0 and 1 go: 20 ordered pairs."""
    counts = np.zeros((5, 5))
    for seed in range(2000):
        first, second = Permutation(5, seed, 1, 0)(np.array([0, 1]))
        counts[first, second] += 1
    observed = counts[~np.eye(5, dtype=bool)]
    assert np.trace(counts) == 0
    assert ((observed - 100) ** 2 / 100).sum() < 50.8  # 19 degrees of freedom, p = 1e-4


def test_a_large_permutation_looks_random() -> None:
    """Eighths of the positions against eighths of the ids, and no relation between neighbours."""
    num = 64_000
    ids = Permutation(num, 11, 0, 0)(np.arange(num))
    table = np.zeros((8, 8))
    np.add.at(table, (np.arange(num) * 8 // num, ids * 8 // num), 1)
    assert ((table - 1000) ** 2 / 1000).sum() < 113.5  # at most 63 degrees of freedom, p = 1e-4
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.016  # four standard deviations
    steps = np.diff(ids) % num
    assert np.unique(steps).size > 0.6 * num  # 1 - 1/e = 0.63 expected


@pytest.mark.parametrize("policy", [PLAIN, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("num", SIZES)
def test_an_epoch_shows_every_sample_once(policy: ViewPolicy, num: int) -> None:
    plan = ViewPlan(policy, seed=5, num_samples=num)
    for epoch in range(3):
        order = plan.order(epoch, np.arange(num))
        assert np.array_equal(np.sort(order), np.arange(num))
        some = np.array([num - 1, 0, num // 2])
        assert np.array_equal(plan.order(epoch, some), order[some])


@pytest.mark.parametrize("policy", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_epochs_and_seeds_differ(policy: ViewPolicy) -> None:
    positions = np.arange(1000)
    orders = [ViewPlan(policy, seed, 1000).order(epoch, positions) for seed in (1, 2) for epoch in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(one == other) < 0.02


@pytest.mark.parametrize("num", SIZES)
def test_partners_are_mutual_and_adjacent(num: int) -> None:
    plan = ViewPlan(MIXED.model_copy(update={"num_views": 2}), seed=5, num_samples=num)
    everyone = np.arange(num)
    for epoch in range(4):
        partner = plan.partner(plan.views_at(epoch, everyone), everyone)
        assert np.array_equal(partner[partner], everyone)
        assert np.count_nonzero(partner == everyone) == num % 2
        order = plan.order(epoch, everyone)
        even = order[: num - num % 2]
        assert np.array_equal(partner[even[0::2]], even[1::2])
        assert np.array_equal(partner[order[-1:]] == order[-1:], [num % 2 == 1])


def test_partners_change_with_the_view() -> None:
    plan = ViewPlan(MIXED, 5, 1000)
    ids = np.arange(1000)
    assert np.mean(plan.partner(0, ids) == plan.partner(1, ids)) < 0.02
    assert np.array_equal(ViewPlan(PLAIN, 5, 1000).partner(0, ids), ids)


REPEATED = {
    "plain": ViewPolicy(repeats=3),
    "mixed": ViewPolicy(repeats=3, mixup_alpha=0.2),
    "stored": ViewPolicy(repeats=3, mixup_alpha=0.2, num_views=6),
}


@pytest.mark.parametrize("num", [6, 7, 12, 600, 1001])
@pytest.mark.parametrize("name", REPEATED)
def test_repeats_show_a_sample_in_views_of_its_own(name: str, num: int) -> None:
    """As DeiT's sampler: 3 rows of one sample in a row, as many rows as before, a third of the samples."""
    policy, everyone = REPEATED[name], np.arange(num)
    plan = ViewPlan(policy, seed=5, num_samples=num)
    for epoch in range(4):
        ids, views = plan.order(epoch, everyone), plan.views_at(epoch, everyone)
        assert len({*zip(ids.tolist(), views.tolist(), strict=True)}) == num, "no row twice"
        own = {3 * epoch + repeat for repeat in range(3)}
        assert set(views.tolist()) == {view % (policy.num_views or 1000) for view in own}
        whole = num - num % (6 if policy.mixes else 3)
        rows = ids[:whole].reshape(-1, 3, 2) if policy.mixes else ids[:whole].reshape(-1, 3)
        assert np.all(rows == rows[:, :1]), "rows of a sample, or of a pair, follow one another"
        assert np.unique(rows[:, 0]).size == rows[:, 0].size, "and come once"
        some = np.array([num - 1, 0, num // 2])
        assert np.array_equal(plan.order(epoch, some), ids[some])
        assert np.array_equal(plan.views_at(epoch, some), views[some])


@pytest.mark.parametrize("num", [6, 7, 600, 1001])
def test_partners_are_mutual_and_adjacent_in_every_repeat(num: int) -> None:
    plan = ViewPlan(REPEATED["mixed"], seed=5, num_samples=num)
    everyone = np.arange(num)
    for epoch in range(3):
        ids, views = plan.order(epoch, everyone), plan.views_at(epoch, everyone)
        partner = plan.partner(views, ids)
        even = num - num % 2
        assert np.array_equal(partner[:even:2], ids[1:even:2])
        assert np.array_equal(views[:even:2], views[1:even:2])
        assert np.array_equal(plan.partner(views, partner), ids)
        assert np.count_nonzero(partner == ids) == num % 2


def test_partners_differ_between_epochs_with_repeats() -> None:
    plan, ids = ViewPlan(REPEATED["mixed"], 5, 1000), np.arange(1000)
    assert np.array_equal(plan.partner(3, ids), plan.partner(5, ids))
    assert np.mean(plan.partner(2, ids) == plan.partner(3, ids)) < 0.02


def test_every_sample_has_its_turn_with_repeats() -> None:
    plan = ViewPlan(REPEATED["mixed"], 5, 1000)
    shown = np.concatenate([plan.order(epoch, np.arange(1000)) for epoch in range(60)])
    times = np.bincount(shown, minlength=1000) / 3
    assert times.min() > 5
    assert abs(times.mean() - 20) < 0.1


def test_views_that_are_no_whole_number_of_epochs_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"num_views=8 is not a multiple of repeats=3, .*; give num_views=9"):
        ViewPolicy(num_views=8, repeats=3)


def test_fourteen_million_ids_cost_no_memory() -> None:
    plan = ViewPlan(MIXED, seed=1, num_samples=14_000_003)
    plan.order(0, np.arange(8))
    tracemalloc.start()
    order = plan.order(7, np.arange(13_999_000, 14_000_003))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert np.unique(order).size == 1003
    assert order.max() > 13_000_000
    assert order.min() < 1_000_000

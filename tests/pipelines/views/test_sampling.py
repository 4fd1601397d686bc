"""Rare classes shown more often: exact shares in every epoch, every showing another view, and a pure function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from pipelines.views import sampling as sampling_module
from pipelines.views.draws import Stream
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from pipelines.views.sampling import POWERS, ClassSampling, Ids

LABELS = np.array([0] * 40 + [2] * 7 + [1] * 13 + [3] * 1, dtype=np.int32)[np.random.default_rng(0).permutation(61)]
EPOCHS = 9


def plan_of(power: float, seed: int = 5, **policy: object) -> ViewPlan:
    return ViewPlan(ViewPolicy(**policy), seed, len(LABELS), sampling=ClassSampling(power, LABELS))


def rows_of(plan: ViewPlan, epoch: int) -> list[tuple[int, int]]:
    """(sample id, view) of every row of an epoch."""
    positions = np.arange(plan.num_samples)
    return list(zip(plan.order(epoch, positions).tolist(), plan.views_at(epoch, positions).tolist(), strict=True))


@pytest.mark.parametrize("power", POWERS.values())
def test_each_class_has_its_share_of_every_epoch(power: float) -> None:
    """Rounded down, then one more for the largest remainders: written out class by class."""
    counts = Counter(LABELS.tolist())
    shares = {label: count**power for label, count in counts.items()}
    exact = {label: 61 * share / sum(shares.values()) for label, share in shares.items()}
    expected = {label: int(value) for label, value in exact.items()}
    for label in sorted(exact, key=lambda one: (-(exact[one] - int(exact[one])), one))[: 61 - sum(expected.values())]:
        expected[label] += 1
    for epoch in range(EPOCHS):
        shown = Counter(int(LABELS[i]) for i, _ in rows_of(plan_of(power), epoch))
        assert shown == {label: number for label, number in expected.items() if number}


@pytest.mark.parametrize("power", POWERS.values())
def test_the_next_showing_is_the_next_view(power: float) -> None:
    """No image comes again before all of its class have, and its views are 0, 1, 2, ... over the epochs."""
    plan = plan_of(power)
    for label in range(4):
        shown = [pair for epoch in range(EPOCHS) for pair in rows_of(plan, epoch) if LABELS[pair[0]] == label]
        times = Counter(i for i, _ in shown)
        num = int((label == LABELS).sum())
        assert set(times) == set(np.flatnonzero(label == LABELS)) or sum(times.values()) < num
        assert max(times.values()) - min(times.values()) <= 1 or len(times) < num
        assert len(set(shown)) == len(shown)
        for sample, number in times.items():
            assert sorted(view for i, view in shown if i == sample) == list(range(number))


def test_images_alone_are_as_without_it() -> None:
    """The power 1 shows each image once an epoch, in the epoch's view."""
    for epoch in range(3):
        rows = rows_of(plan_of(POWERS["images"]), epoch)
        assert sorted(rows) == [(i, epoch) for i in range(61)]


def test_any_part_of_any_epoch_alone() -> None:
    plan, some = plan_of(0.0), np.array([60, 3, 17, 3])
    assert plan.order(7, some).tolist() == plan.order(7, np.arange(61))[some].tolist()
    assert plan.views_at(7, some).tolist() == plan.views_at(7, np.arange(61))[some].tolist()
    assert plan.order(0, np.arange(61)).tolist() != plan.order(1, np.arange(61)).tolist()


def rounds_of(sampling: ClassSampling, label: int, seed: int, num_epochs: int) -> list[list[int]]:
    """A class's images in the order in which the slots of the epochs show them, round by round."""
    size, found = int(sampling.counts[label]), {}
    for epoch in range(num_epochs):
        ids, rounds = sampling.showings(seed, epoch, np.arange(len(sampling.labels)))
        for sample, this in zip(ids.tolist(), rounds.tolist(), strict=True):
            if sampling.labels[sample] == label:
                found.setdefault(this, []).append(sample)
    return [found[number] for number in sorted(found) if len(found[number]) == size]


def test_the_order_is_pinned() -> None:
    ids, rounds = ClassSampling(0.0, np.array([0, 0, 0, 1, 1, 2])).showings(5, 0, np.arange(6))
    assert (ids.tolist(), rounds.tolist()) == ([1, 5, 3, 4, 5, 0], [0, 0, 0, 0, 1, 0])


def test_the_order_goes_by_the_seed_the_round_and_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the shuffle of an epoch's rows, so that each class shows its rounds in their own order."""
    whole = sampling_module.permutation

    def of_classes(size: int, seed: int, number: int, stream: Stream, *key: int) -> Callable[[Ids], Ids]:
        return whole(size, seed, number, stream, *key) if stream is Stream.CLASS_ORDER else lambda slots: slots

    assert rows_of(plan_of(0.0, seed=5), 0) != rows_of(plan_of(0.0, seed=6), 0)
    monkeypatch.setattr(sampling_module, "permutation", of_classes)
    sampling = ClassSampling(0.0, np.repeat([0, 1], 20))
    orders = {
        (seed, label): [[sample - 20 * label for sample in one] for one in rounds_of(sampling, label, seed, 2)]
        for seed in (5, 6)
        for label in (0, 1)
    }
    every = [tuple(one) for rounds in orders.values() for one in rounds]
    assert len(every) == len(set(every)) == 8


def test_a_fixed_number_of_views_is_gone_through_again() -> None:
    """What a cache of 3 views holds is all that is shown."""
    plan, open_ended = plan_of(0.0, num_views=3), plan_of(0.0)
    for epoch in range(EPOCHS):
        assert rows_of(plan, epoch) == [(i, view % 3) for i, view in rows_of(open_ended, epoch)]


def test_fingerprints() -> None:
    """The order's says how and of which labels; how views look is the same: what is stored of them is found."""
    plain = ViewPlan(ViewPolicy(), 5, len(LABELS))
    others = [plan_of(0.0), plan_of(0.5), ViewPlan(ViewPolicy(), 5, 61, sampling=ClassSampling(0.0, np.sort(LABELS)))]
    assert len({plan.fingerprint for plan in [plain, *others]}) == 4
    assert {plan.appearance for plan in others} == {plain.appearance} == {plain.fingerprint}


def test_shares_of_many_classes_are_exact() -> None:
    """1,000 classes of 1 to 1,000 images: with equal shares, 500 or 501 rows each, which are N together."""
    labels = np.repeat(np.arange(1000), np.arange(1, 1001))
    rows = ClassSampling(0.0, labels).rows
    assert set(rows.tolist()) == {500, 501}
    assert rows.sum() == len(labels) == Fraction(1000 * 1001, 2)

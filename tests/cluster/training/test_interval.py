"""What is added up between two rows: the same means, whether or not a checkpoint lies between."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cluster.training.interval import Interval


class Rank:
    """One of two ranks that see the same."""

    device = torch.device("cpu")

    def __init__(self, number: int) -> None:
        self.first = number == 0

    def add_up(self, totals: torch.Tensor) -> torch.Tensor:
        return totals.mul_(2)  # in place, as torch's all_reduce


def interval(number: int = 0, skips: bool = False) -> Interval:
    rank: Any = Rank(number)
    return Interval(rank, 2, skips)


def add(one: Interval, *steps: float) -> None:
    for value in steps:
        one.add([torch.tensor(value), torch.tensor(value / 2)], weight=1.0)
        one.add_norm(torch.tensor(10 * value))


def test_a_checkpoint_divides_no_row():
    """Of it the first rank has the sums of all."""
    whole = interval()
    add(whole, 1.0, 2.0)
    saved = whole.so_far()
    assert saved == [4, 6, 3, 2, 30]
    add(whole, 6.0)
    resumed, other = interval(), interval(1)
    for one in (resumed, other):
        one.restore(saved)
        add(one, 6.0)
    assert other.values.tolist() == [1, 6, 3]
    resumed.values += other.values
    resumed.values /= 2  # what `Rank` doubles
    assert resumed.end() == whole.end() == [3, 1.5, 30]
    assert resumed.so_far() == [0] * 5


def test_an_earlier_checkpoint_has_none():
    one = interval()
    one.restore([])
    assert one.so_far() == [0] * 5


@pytest.mark.parametrize(("skips", "means"), [(True, [2, 1, 20]), (False, [torch.inf] * 3)])
def test_what_is_not_finite_is_left_out_where_its_steps_are(skips, means):
    one = interval(skips=skips)
    add(one, 1.0, torch.inf, 3.0)
    assert one.end() == means


def test_a_smaller_batch_alone_in_a_row():
    """Its weight counts among others, and makes its own mean no smaller."""
    one = interval()
    one.add([torch.tensor(2.0), torch.tensor(1.0)], weight=0.1)  # of each of two ranks
    assert one.end() == pytest.approx([2, 1, 0])

"""What is added up between two rows: the same means, whether or not a checkpoint lies between."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.training.interval import Interval
from cluster.training.recorder import Recorder
from kdcore.batch import Batch
from kdcore.distiller import StepOutput


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
        one.end_step(torch.tensor(10 * value))


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
    one.end_step(torch.tensor(3.0))
    assert one.end() == pytest.approx([2, 1, 3])


def test_no_part_of_a_step_that_is_left_out_is_counted():
    """Its gradient is not finite because one of its micro-batches is: the others, too, taught nothing."""
    one = interval(skips=True)
    add(one, 2.0)
    for value in (50.0, torch.nan):
        one.add([torch.tensor(value), torch.tensor(1.0)], weight=0.5)
    one.end_step(torch.tensor(torch.nan))
    one.add([torch.tensor(50.0), torch.tensor(1.0)], weight=1.0)  # of a rank whose own values are finite
    one.end_step(torch.tensor(torch.inf))
    assert one.end() == [2, 1, 20]


def test_steps_of_one_and_of_two_workers_count_alike_in_a_row():
    """A resume with other workers cuts a batch into other micro-batches; the row is the mean over its steps."""
    rank: Any = SimpleNamespace(first=True, device=torch.device("cpu"), add_up=lambda totals: totals)
    counting: Any = object.__new__(Recorder)
    counting.interval, counting.first_step, counting.log, counting.record = Interval(rank, 3, False), 1, None, None
    counting.config = SimpleNamespace(train=SimpleNamespace(batch_size=8))
    for loss, num_workers in ((2.0, 2), (1.0, 1)):
        counting.run = SimpleNamespace(micro_batch=8 // num_workers)
        size = counting.run.micro_batch
        labels = torch.zeros(size, dtype=torch.int64)
        batch = Batch(torch.zeros(size, 3, 1, 1), labels, labels, labels)
        output = StepOutput(torch.tensor(loss), {"ce": torch.tensor(loss)}, torch.zeros(size, 2), None)
        for number in range(num_workers):  # both ranks' sums, as `add_up` has them
            counting.count(2, number, batch, output)
        counting.interval.end_step(torch.tensor(1.0))
    assert counting.interval.end() == [1.5, 1.0, 1.5, 1.0]

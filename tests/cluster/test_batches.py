"""How an epoch's images are shared out: each once, in micro-batches as even as can be, whoever runs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.assembly import assemble
from cluster.batches import Batches
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.training.check import check_run
from kdcore.errors import Refused


@pytest.mark.parametrize("in_pairs", [False, True])
@pytest.mark.parametrize("num_images", [48, 44, 45, 29, 360, 1001])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 4])
def test_every_position_once(num_images: int, num_micro_batches: int, in_pairs: bool) -> None:
    batches = Batches(num_images, 24, num_micro_batches, keeps_last=True, in_pairs=in_pairs)
    for epoch in range(2):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        parts = batches.positions_of(steps, range(num_micro_batches))
        assert np.array_equal(np.concatenate(parts), np.arange(num_images))
        assert [batches.num_in(step) for step in steps][:-1] == [24] * (len(steps) - 1)
        assert sum(batches.num_in(step) for step in steps) == num_images
        last = [len(part) for part in parts[-num_micro_batches:]]
        assert max(last) - min(last) <= (3 if in_pairs else 1)
        if batches.shares_last:
            assert min(last) >= 2
        if in_pairs:  # but for the last of an odd number, partners stand together
            assert all(len(part) % 2 == 0 for part in parts[:-1])
        for number, part in zip(range(num_micro_batches), parts[-num_micro_batches:], strict=True):
            assert np.array_equal(part, batches.positions(steps[-1], number))
    assert batches.num_until(steps.stop) == 2 * num_images
    assert batches.num_until(steps.stop - 1) == 2 * num_images - batches.num_in(steps[-1])


def test_whole_batches_alone() -> None:
    """What `drop`, the default, has always been."""
    batches = Batches(45, 8, 2)
    assert (batches.steps_per_epoch, batches.images_per_epoch, batches.num_until(11)) == (5, 40, 88)
    assert batches.bounds(4).tolist() == [32, 36, 40]
    assert batches.bounds(5).tolist() == [0, 4, 8]


@pytest.mark.parametrize(("num_images", "batch_size", "workers"), [(257, 256, 2), (260, 128, 4), (33, 16, 1)])
def test_a_last_batch_too_small_is_refused_with_one_that_is_not(num_images: int, batch_size: int, workers: int) -> None:
    with pytest.raises(Refused, match=r"train.last_batch=keep: the last batch .* train.batch_size=(\d+) does") as error:
        Batches(num_images, batch_size, workers, keeps_last=True).check()
    size = int(str(error.value).partition("train.batch_size=")[2].partition(" ")[0])
    Batches(num_images, size, workers, keeps_last=True).check()
    Batches(num_images, batch_size, workers).check()


def test_where_no_size_of_batch_fits() -> None:
    expected = r"1 of 3 images, which does not give 2 to the step's one micro-batch; take train.last_batch=drop$"
    with pytest.raises(Refused, match=expected):
        Batches(3, 2, 1, keeps_last=True, in_pairs=True).check()


def test_what_trains_nothing_needs_no_whole_batch(recipe) -> None:
    """`layers`, `predict` and `cache build` took no images that are fewer than a batch of training."""
    config = parse(recipe(train__batch_size=64))
    run = assemble(config, Rank(0, 1, torch.device("cpu")))
    assert len(run.indexes["train"]) == 48
    for refused in (lambda: run.steps_per_epoch, lambda: check_run(config)):
        with pytest.raises(Refused, match=r"train.batch_size 64 is more than the 48 training images of .*; take a"):
            refused()


def test_it_is_refused_before_anything_starts(recipe) -> None:
    changes = {"train__batch_size": 15, "train__micro_batch": 5, "train__last_batch": "keep"}
    with pytest.raises(Refused, match=r"3 of 48 images, which does not give 2 to each of the step's 3 micro-batches"):
        check_run(parse(recipe(**changes)))

"""Parts of a source: chosen images, what is held out, and a sample of so many a class."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from kdcore.errors import Refused
from pipelines.data.source import Source


def test_subset_renumbers(plain_index: Source) -> None:
    ids = np.array([7, 0, 3])
    subset = plain_index.subset(ids)
    assert len(subset) == 3
    assert subset.names(np.arange(3)) == plain_index.names(ids)
    assert np.array_equal(subset.labels, plain_index.labels[ids])
    assert subset.classes == plain_index.classes
    everyone = plain_index.subset(np.arange(len(plain_index)))
    assert everyone.fingerprint == plain_index.fingerprint
    assert len({plain_index.fingerprint, subset.fingerprint, plain_index.subset(ids[::-1]).fingerprint}) == 3


def test_split_is_balanced_complete_and_repeatable(plain_index: Source) -> None:
    rest, held = plain_index.split(0.25, seed=1)
    assert np.bincount(held.labels).tolist() == [1, 1, 1]
    assert np.bincount(rest.labels).tolist() == [3, 3, 3]
    both = rest.names(np.arange(9)) + held.names(np.arange(3))
    assert sorted(both) == plain_index.names(np.arange(12))
    assert plain_index.split(0.25, seed=1)[1].fingerprint == held.fingerprint
    assert len({plain_index.split(0.25, seed)[1].fingerprint for seed in range(8)}) > 4
    assert np.all(np.diff(rest.labels) >= 0)


def test_a_sample_is_part_of_every_larger_one(plain_index: Source) -> None:
    """So many of each class, chosen by the seed; all of them are the source itself."""
    samples = [plain_index.sample(number, seed=1) for number in (1, 2, 3, 4)]
    for number, sample in enumerate(samples, 1):
        assert np.bincount(sample.labels).tolist() == [number] * 3
    names = [set(sample.table["path"].to_pylist()) for sample in samples]
    assert all(smaller < larger for smaller, larger in pairwise(names))
    assert len({plain_index.sample(2, seed).fingerprint for seed in range(8)}) > 4
    assert samples[-1].fingerprint == plain_index.fingerprint
    with pytest.raises(Refused, match=r"class '0' has 4 images in .*, not 5; choose at most 4 a class"):
        plain_index.sample(5, seed=1)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.02, [1, 1, 1, 1, 0]), (0.34, [14, 7, 3, 1, 0]), (0.98, [39, 19, 7, 2, 0])],
)
def test_classes_too_small_for_the_fraction_are_held_out_as_far_as_they_go(
    fraction: float, expected: list[int]
) -> None:
    """At least one image of two, none of one: a long tail had four refusals that named one another."""
    sizes = [40, 20, 8, 3, 1]
    source = of_sizes(sizes)
    rest, held = source.split(fraction, seed=1)
    assert held.class_counts.tolist() == expected
    assert (rest.class_counts + held.class_counts).tolist() == sizes


@pytest.mark.parametrize("sizes", [[1, 1], [1, 0]])
def test_where_nothing_can_be_held_out(sizes: list[int]) -> None:
    with pytest.raises(
        Refused,
        match=r"keeps back none of the images in root \(no class has two\); .*data.held_out=0 train.select=last",
    ):
        of_sizes(sizes).split(0.5, seed=1)


def of_sizes(sizes: list[int]) -> Source:
    """A source of classes of these sizes, of whose images nothing is known but the label."""
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    return Source("root", tuple(map(str, range(len(sizes)))), pa.table({"label": labels}))

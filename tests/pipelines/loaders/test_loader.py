"""What both loaders promise: the batch that was asked for, whatever else is asked for, however often."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.loaders.base import Request
from pipelines.views.policy import ViewPolicy
from tests.pipelines.loaders.loading import FULL, KINDS, MEAN, PLAIN, STD, loader, only, requests


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_once_with_a_partial_last_batch(kind: str, odd_index: Source) -> None:
    batches = list(loader(kind, odd_index, PLAIN).load(requests(13, 5, view=2)))
    assert [len(batch) for batch in batches] == [5, 5, 3]
    assert torch.cat([batch.sample_ids for batch in batches]).tolist() == list(range(13))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0] * 6 + [1] * 7
    for batch in batches:
        assert batch.images.shape[1:] == (3, 24, 24)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.sample_ids.dtype == torch.int64
        assert (batch.views.tolist(), batch.epoch, batch.targets) == ([2] * len(batch), 0.0, None)


@pytest.mark.parametrize("kind", KINDS)
def test_epoch_is_handed_through_and_requests_are_answered_in_order(kind: str, odd_index: Source) -> None:
    asked = [Request(view, np.array([view, 3]), epoch=view / 4) for view in (5, 1, 2)]
    got = list(loader(kind, odd_index, PLAIN).load(asked))
    assert [(batch.views.tolist(), batch.epoch, batch.sample_ids.tolist()) for batch in got] == [
        ([5, 5], 1.25, [5, 3]),
        ([1, 1], 0.25, [1, 3]),
        ([2, 2], 0.5, [2, 3]),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [PLAIN, FULL], ids=["plain", "full"])
def test_a_picture_does_not_depend_on_its_batch(kind: str, policy: ViewPolicy, odd_index: Source) -> None:
    load = loader(kind, odd_index, policy).load
    together = only(load([Request(3, np.arange(13))]))
    order = np.array([12, 0, 7, 7, 3])
    shuffled = only(load([Request(3, order)]))
    assert torch.equal(shuffled.images, together.images[order])
    assert torch.equal(shuffled.labels, together.labels[order])
    for i, alone in enumerate(load(requests(13, 1, view=3))):
        assert torch.equal(alone.images[0], together.images[i])
        assert torch.equal(alone.labels[0], together.labels[i])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repeats", [1, 2])
def test_rows_of_several_views_are_those_of_each(kind: str, repeats: int, odd_index: Source) -> None:
    load = loader(kind, odd_index, FULL.model_copy(update={"repeats": repeats})).load
    views, ids = np.array([4, 3, 3, 4, 9]), np.array([12, 12, 0, 1, 5])
    together = only(load([Request(views, ids)]))
    assert together.views.tolist() == views.tolist()
    assert together.sample_ids.tolist() == ids.tolist()
    for row, (view, one) in enumerate(zip(views.tolist(), ids.tolist(), strict=True)):
        alone = only(load([Request(view, np.array([one]))]))
        assert torch.equal(alone.images[0], together.images[row])
        assert torch.equal(alone.labels[0], together.labels[row])


def test_partners_in_the_same_view_are_decoded_once(odd_index: Source) -> None:
    pictures = loader("reference", odd_index, FULL.model_copy(update={"repeats": 2}))
    positions = np.arange(8)
    views, ids = pictures.plan.views_at(1, positions), pictures.plan.order(1, positions)
    assert views.tolist() == [2, 2, 3, 3] * 2
    job = only(pictures.jobs([Request(views, ids)]))
    assert len(job.views) == 8
    assert job.partner_rows.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_change_with_the_epoch(kind: str, odd_index: Source) -> None:
    """A view has the pixels that it has where its size is the only one."""
    changing = FULL.model_copy(update={"sizes": ((0, 16), (2, (20, 28))), "repeats": 2})
    load = loader(kind, odd_index, changing).load
    asked = [Request(np.array([view, view + 1, view]), np.array([1, 1, 7])) for view in (0, 2, 4, 100)]
    sizes = [16, 16, (20, 28), (20, 28)]
    for batch, request, size in zip(load(asked), asked, sizes, strict=True):
        alone = loader(kind, odd_index, FULL.model_copy(update={"size": size, "repeats": 2}))
        assert torch.equal(batch.images, only(alone.load([request])).images)
        assert batch.images.shape[2:] == ((size, size) if isinstance(size, int) else size)


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_are_bit_identical(kind: str, odd_index: Source) -> None:
    one, other = (list(loader(kind, odd_index, FULL).load(requests(13, 4))) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_outlive_later_ones(kind: str, odd_index: Source) -> None:
    """No batch is a view of memory that a later one is decoded into."""
    kept = list(loader(kind, odd_index, ViewPolicy.evaluation(24)).load(requests(13, 1) * 3))
    for i in range(13):
        assert torch.equal(kept[i].images, kept[i + 13].images)
        assert torch.equal(kept[i].images, kept[i + 26].images)


def test_nothing_is_decoded_twice_where_partners_are_present(odd_index: Source) -> None:
    pictures = loader("reference", odd_index, FULL)
    order = pictures.plan.order(0, np.arange(13))
    assert len(only(pictures.jobs([Request(0, order[2:8])])).views) == 6
    split_pair = only(pictures.jobs([Request(0, order[3:8])]))
    assert len(split_pair.views) == 6
    assert split_pair.views.sample_ids[5] == order[2]
    assert split_pair.views.sample_ids[split_pair.partner_rows].tolist() == [
        *order[[2, 5, 4, 7, 6]],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_all_partners_may_be_missing(kind: str, odd_index: Source) -> None:
    pictures = loader(kind, odd_index, FULL, max_batch=5)
    order = pictures.plan.order(0, np.arange(13))
    lonely = only(pictures.load([Request(0, order[0:10:2])]))
    together = only(loader(kind, odd_index, FULL).load([Request(0, order)]))
    assert torch.equal(lonely.images, together.images[0:10:2])
    assert torch.equal(lonely.labels, together.labels[0:10:2])


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_labels(kind: str, odd_index: Source) -> None:
    pictures = loader(kind, odd_index, FULL)
    batch = only(pictures.load([Request(1, np.arange(13))]))
    views = only(pictures.jobs([Request(1, np.arange(13))])).views
    labels = odd_index.labels
    own_is_one = np.where(labels == 1, views.mix_lambda, 0) + np.where(
        labels[views.partner] == 1, 1 - views.mix_lambda, 0
    )
    np.testing.assert_allclose(batch.labels[:, 1].numpy(), own_is_one, atol=1e-6)
    np.testing.assert_allclose(batch.labels.sum(dim=1).numpy(), 1, atol=1e-6)


def test_evaluation_is_torchvisions(odd_index: Source) -> None:
    """Resize, CenterCrop, ToTensor, Normalize, as published accuracies are measured."""
    transform = v2.Compose(
        [v2.Resize(28), v2.CenterCrop(24), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    batch = only(loader("reference", odd_index, ViewPolicy.evaluation(24, 24 / 28)).load([Request(0, np.arange(13))]))
    for path, image in zip(odd_index.names(np.arange(13)), batch.images, strict=True):
        expected = transform(Image.open(path).convert("RGB"))
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_padded_crop_and_flip_are_torchvisions(odd_index: Source) -> None:
    policy = ViewPolicy(size=24, crop="padded", padding=3)
    pictures = loader("reference", odd_index, policy)
    batch = only(pictures.load([Request(0, np.arange(13))]))
    views = only(pictures.jobs([Request(0, np.arange(13))])).views
    assert 0 < views.flip.sum() < 13
    for i, path in enumerate(odd_index.names(np.arange(13))):
        image = v2.functional.resize(Image.open(path).convert("RGB"), [24, 24])
        image = v2.functional.crop(v2.functional.pad(image, [3]), *(views.offset[i] + 3).tolist(), 24, 24)
        if views.flip[i]:
            image = v2.functional.horizontal_flip(image)
        expected = v2.functional.normalize(v2.functional.to_dtype(v2.functional.to_image(image), scale=True), MEAN, STD)
        torch.testing.assert_close(batch.images[i], expected, atol=1e-5, rtol=0)


def test_the_data_may_lie_elsewhere(plain_index: Source, tmp_path: Path) -> None:
    shutil.copytree(Path(plain_index.root) / "train", tmp_path / "train")
    moved = build_index(tmp_path, "train", tmp_path / "cache", progress=False)
    ask = [Request(0, np.arange(12))]
    here, there = (only(loader("reference", index, PLAIN).load(ask)) for index in (plain_index, moved))
    assert torch.equal(here.images, there.images)

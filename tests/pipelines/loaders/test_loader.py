"""What both loaders promise: the batch that was asked for, whatever else is asked for, however often."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from kdcore.errors import Refused
from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.loaders import choose, dali
from pipelines.loaders.base import BLOCK, Loader, Request, requests_of
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from tests.pipelines.pictures import picture, write_plain_folder

Item = TypeVar("Item")

KINDS = ["reference", "dali"]
FULL = ViewPolicy(
    size=24,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    erase_probability=0.5,
    erase_fill="noise",
    mixup_alpha=0.5,
    cutmix_alpha=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
)
PLAIN = ViewPolicy(size=24)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def loader(kind: str, index: Source, policy: ViewPolicy, seed: int = 4, max_batch: int = 16) -> Loader:
    return build_loader(
        kind,  # type: ignore[arg-type]
        index,
        ViewPlan(policy, seed, len(index)),
        mean=MEAN,
        std=STD,
        num_classes=len(index.classes),
        device=torch.device("cpu"),
        num_threads=2,
        max_batch=max_batch,
    )


def requests(num: int, batch: int, view: int = 0) -> list[Request]:
    return list(requests_of(np.arange(num), batch, view))


def only(items: Iterator[Item]) -> Item:
    (item,) = items
    return item


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


@pytest.mark.parametrize("kind", KINDS)
def test_an_abandoned_load_leaves_no_trace(kind: str, odd_index: Source) -> None:
    pictures = loader(kind, odd_index, PLAIN)
    expected = [batch.images for batch in pictures.load(requests(13, 4))]
    for taken in (0, 1, 2, 4):
        endless = pictures.load(itertools.cycle(requests(13, 3, view=9)))
        for _ in range(taken):
            next(endless)
        again = [batch.images for batch in pictures.load(requests(13, 4))]
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_an_overtaken_load_says_so(kind: str, odd_index: Source) -> None:
    pictures = loader(kind, odd_index, PLAIN)
    first = pictures.load(requests(13, 2))
    next(first)
    list(pictures.load(requests(13, 13)))
    with pytest.raises(AssertionError, match=r"another load\(\) has taken this loader over"):
        next(first)


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_drawn_as_needed(kind: str, odd_index: Source) -> None:
    drawn = itertools.count()
    endless = (Request(next(drawn), np.arange(2)) for _ in itertools.count())
    batches = loader(kind, odd_index, PLAIN).load(endless)
    for _ in range(3):
        next(batches)
    assert next(drawn) <= 2 * BLOCK + 1, "those of a block, which is served, of the next, and one to see its size"


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_or_too_large_request_is_the_callers_mistake(kind: str, odd_index: Source) -> None:
    for ids in (np.arange(0), np.arange(6)):
        with pytest.raises(AssertionError, match="1 to 5 samples"):
            list(loader(kind, odd_index, PLAIN, max_batch=5).load([Request(0, ids)]))


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Source, Path]:
    """A folder of six, whose file number 3 is theirs to damage after indexing."""
    write_plain_folder(tmp_path, num=6, side=120)
    index = build_index(tmp_path, "train", tmp_path / "cache", progress=False)
    return index, Path(index.names(np.array([3]))[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["truncated", "longer", "garbage", "missing", "resized"])
def test_a_bad_file_is_named(kind: str, damage: str, damaged: tuple[Source, Path]) -> None:
    index, file = damaged
    content = file.read_bytes()
    reason = "cannot be read as an image"
    if damage in ("truncated", "longer"):
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else content + b"x")
        reason += rf" \(its size is no longer the {len(content)} bytes"
    elif damage == "garbage":
        file.write_bytes(b"\x00" * len(content))
    elif damage == "missing":
        file.unlink()
        reason += r" \(No such file"
    else:  # of the same number of bytes: what follows a whole JPEG is skipped
        picture(50, 60, 0).save(file)
        file.write_bytes(file.read_bytes().ljust(len(content), b"\x00"))
        reason = "is 50x60 pixels, but 120x120 in the index"
    pictures = loader(kind, index, ViewPolicy.evaluation(24))
    with pytest.raises(Refused, match=rf"^{file} {reason}.*build the index again$"):
        list(pictures.load(requests(6, 2)))
    file.write_bytes(content)
    assert len(list(pictures.load(requests(6, 2)))) == 3, "the loader works again once the file does"


def test_the_requests_own_errors_pass_through(odd_index: Source) -> None:
    def failing() -> Iterator[Request]:
        yield Request(0, np.arange(2))
        raise RuntimeError("the caller's")

    pictures = loader("dali", odd_index, PLAIN)
    with pytest.raises(RuntimeError, match="the caller's"):
        list(pictures.load(failing()))
    assert len(list(pictures.load(requests(13, 5)))) == 3


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


def test_wrong_choices(odd_index: Source) -> None:
    plan = ViewPlan(PLAIN, 0, 13)
    rest = {"mean": MEAN, "std": STD, "num_classes": 2, "device": torch.device("cpu")}
    with pytest.raises(Refused, match="no loader 'torch'; choose 'dali', 'reference' or 'resident'"):
        build_loader("torch", odd_index, plan, **rest)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="decode='gpu' with batches on cpu; use decode='cpu'"):
        build_loader("dali", odd_index, plan, decode="gpu", **rest)  # type: ignore[arg-type]

    with pytest.raises(Refused, match="prefetch=1; give at least"):
        build_loader("dali", odd_index, plan, prefetch=1, **rest)  # type: ignore[arg-type]


def test_the_data_may_lie_elsewhere(plain_index: Source, tmp_path: Path) -> None:
    shutil.copytree(Path(plain_index.root) / "train", tmp_path / "train")
    moved = build_index(tmp_path, "train", tmp_path / "cache", progress=False)
    ask = [Request(0, np.arange(12))]
    here, there = (only(loader("reference", index, PLAIN).load(ask)) for index in (plain_index, moved))
    assert torch.equal(here.images, there.images)


def test_auto_decodes_on_the_cpu_beside_a_gpu_and_says_why(odd_index: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    said: list[str] = []
    monkeypatch.setattr(dali, "DaliLoader", lambda *_, decode_on_gpu, **__: made.append(decode_on_gpu))
    monkeypatch.setattr(choose, "Finish", lambda *_, **__: None)
    monkeypatch.setattr(choose, "warn_once", said.append)
    plan, cuda = ViewPlan(ViewPolicy(size=16), 0, len(odd_index)), torch.device("cuda", 0)
    for decode in ("auto", "cpu", "gpu"):
        build_loader("dali", odd_index, plan, mean=(0, 0, 0), std=(1, 1, 1), num_classes=2, device=cuda, decode=decode)  # type: ignore[call-overload]
    assert made == [False, False, True]
    assert [line.partition(":")[0] for line in said] == ["data.decode=auto"]

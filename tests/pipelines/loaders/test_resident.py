"""The resident loader shows the very pixels of the reference loader, whatever is asked for in whatever order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcore.errors import Refused
from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.loaders import base, resident
from pipelines.loaders.base import Loader, Request
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
NUM = 23
PADDED = {"size": (12, 10), "crop": "padded"}
POLICIES = {
    "padded": ViewPolicy(**PADDED),
    "far outside": ViewPolicy(**PADDED, padding=15),
    "as it is": ViewPolicy(**PADDED, padding=0, flip_probability=0),
    "mixup": ViewPolicy(**PADDED, mixup_alpha=0.5),
    "cutmix, erased": ViewPolicy(**PADDED, cutmix_alpha=1, erase_probability=0.5, erase_fill="noise"),
    "everything": ViewPolicy(**PADDED, mixup_alpha=0.2, cutmix_alpha=1, erase_probability=0.5, hue=0.1, contrast=0.4),
    "operations": ViewPolicy(**PADDED, auto_augment="rand-m9-mstd0.5-inc1"),
    "operations, everything": ViewPolicy(
        **PADDED,
        mixup_alpha=0.2,
        cutmix_alpha=1,
        erase_probability=0.5,
        erase_first=True,
        hue=0.1,
        auto_augment="three",
    ),
    "evaluation": ViewPolicy.evaluation((12, 10), 1.0),
    "smaller": ViewPolicy(size=(7, 9), crop="padded", padding=2),
    "larger": ViewPolicy(size=16, crop="padded", padding=0, interpolation="bicubic"),
    "evaluation, resized": ViewPolicy.evaluation((8, 6)),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    for number in range(NUM):
        path = root / "train" / f"class{number % 3}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 10, 3)).astype(np.uint8)).save(path)
    return build_index(root, "train", root / "index", progress=False)


def loader(kind: str, index: Source, policy: ViewPolicy, device: str = "cpu") -> Loader:
    return build_loader(
        kind,  # type: ignore[arg-type]
        index,
        ViewPlan(policy, 4, len(index)),
        mean=MEAN,
        std=STD,
        device=torch.device(device),
        max_batch=16,
    )


def requests(plan: ViewPlan) -> list[Request]:
    """Two epochs in batches of 7 and less, then some ids in no order, one of them twice."""
    epochs = [(epoch, plan.order(epoch, np.arange(NUM))) for epoch in (0, 1)]
    asked = [Request(epoch, ids[start : start + 7], epoch) for epoch, ids in epochs for start in range(0, NUM, 7)]
    return [*asked, Request(5, np.array([22, 0, 3, 3]))]


def assert_equal_batches(ours: Loader, theirs: Loader) -> None:
    asked = requests(theirs.plan)
    for a, b in zip(ours.load(iter(asked)), theirs.load(asked), strict=True):
        assert a.epoch == b.epoch
        assert a.images.is_contiguous(memory_format=torch.channels_last)
        for name in ("images", "labels", "sample_ids", "views"):
            assert torch.equal(getattr(a, name).cpu(), getattr(b, name)), name


@pytest.mark.parametrize("name", POLICIES)
def test_the_reference_loaders_pixels(name: str, index: Source) -> None:
    assert_equal_batches(loader("resident", index, POLICIES[name]), loader("reference", index, POLICIES[name]))


@pytest.mark.parametrize("name", ["padded", "operations", "operations, everything"])
def test_dalis_pixels(name: str, index: Source) -> None:
    """Where nothing is resized, DALI gives the other loaders' bits, and operations cannot tell them apart."""
    assert_equal_batches(loader("dali", index, POLICIES[name]), loader("reference", index, POLICIES[name]))


def test_changing_sizes_are_refused(index: Source) -> None:
    with pytest.raises(Refused, match=r"views.sizes names others; take data.loader=dali"):
        loader("resident", index, ViewPolicy(**PADDED, sizes=((1, 8),)))


def test_blocks_of_requests_change_nothing(index: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BLOCK", 2)
    policy = POLICIES["everything"]
    assert_equal_batches(loader("resident", index, policy), loader("reference", index, policy))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["padded", "as it is", "evaluation"])
def test_uint8_pixels_on_a_gpu(name: str, index: Source) -> None:
    """The gather is exact on any device; of the normalisation a GPU may round the last bit otherwise."""
    ours, theirs = loader("resident", index, POLICIES[name], "cuda"), loader("reference", index, POLICIES[name])
    asked = requests(theirs.plan)
    for (_, a), (_, b) in zip(ours.decode(ours.jobs(asked)), theirs.decode(theirs.jobs(asked)), strict=True):
        assert torch.equal(a.cpu(), b)


def test_loaders_of_one_process_share_the_pictures(index: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loader("resident", index, POLICIES["padded"])
    monkeypatch.setattr(Source, "read", lambda *_: pytest.fail("read again"))
    second = loader("resident", index, POLICIES["mixup"])
    assert next(iter(first.load([Request(0, np.arange(3))]))).images.shape == (3, 3, 12, 10)
    assert next(iter(second.load([Request(0, np.arange(3))]))).images.shape == (3, 3, 12, 10)


def test_views_that_are_resized_one_by_one_are_refused(index: Source) -> None:
    with pytest.raises(Refused, match=r"views.crop=resized takes another part of an image for each; take data.loader"):
        loader("resident", index, ViewPolicy(size=12))


def test_data_of_several_sizes_are_refused(odd_index: Source) -> None:
    with pytest.raises(Refused, match=r"needs images of one size, but .* has .*x.* and .*x.*; take data.loader"):
        loader("resident", odd_index, ViewPolicy(size=12, crop="padded"))


def test_data_that_do_not_fit_are_refused(index: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_free_bytes", lambda device: 1000)
    monkeypatch.setattr(resident, "_resident", {})
    with pytest.raises(Refused, match=r"23 images of .* take 0\.0 GiB, but cpu has 0\.0 GiB free; take"):
        loader("resident", index, POLICIES["padded"])


def test_files_in_the_page_cache_are_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that had just read its data set was said to be full."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemTotal:       64 kB\nMemFree:         2 kB\nMemAvailable:   40 kB\nHugePages_Total:       0\n"
    )
    monkeypatch.setattr(resident, "MEMINFO", meminfo)
    assert resident._free_bytes(torch.device("cpu")) == 40 * 1024


def test_a_file_that_cannot_be_decoded_is_named(index: Source, tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    path = tmp_path / "train" / "a" / "0.png"
    Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(path)
    broken = build_index(tmp_path, "train", tmp_path / "index", progress=False)
    path.write_bytes(b"no picture any more")
    with pytest.raises(Refused, match=r"0\.png cannot be read as an image"):
        loader("resident", broken, POLICIES["padded"])

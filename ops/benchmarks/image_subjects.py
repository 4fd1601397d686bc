"""What `ops.benchmarks.images` compares: this project's sources and loader, and what others offer for the same images.

A subject has its images in a container of its own. `fetch` gives numbers of encoded images as they are had, in random
order where the subject can; `batches` gives numbers of pictures as a training loop gets them: cropped at random to 224
pixels, flipped, float32, normalised. Every library that is not declared is imported where it is used; a subject that
cannot be had is left out by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from pipelines.data.index import build_index
from pipelines.data.packing import SourcePacking, build_pack
from pipelines.data.source import Source
from pipelines.loaders.base import Request
from pipelines.loaders.choose import build_loader
from pipelines.places import Place
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

FETCHED, BATCH, SIDE = 256, 64, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Counts = Callable[[], Iterator[int]]


class Ours:
    """This project's source, and its DALI loader."""

    def __init__(self, root: Path, index_dir: Path, threads: int) -> None:
        self.source = build_index(root, "train", index_dir, progress=False)
        self.threads = threads

    def fetch(self) -> Iterator[int]:
        """Yield batches of encoded images, at random."""
        rng = np.random.default_rng(0)
        while True:
            yield len(self.source.read(rng.integers(0, len(self.source), FETCHED)))

    def batches(self) -> Iterator[int]:
        """Yield batches of the DALI loader, in the plan's order."""
        plan = ViewPlan(ViewPolicy(size=SIDE, crop="resized"), 0, len(self.source))
        loader = build_loader(
            "dali",
            self.source,
            plan,
            mean=MEAN,
            std=STD,
            num_classes=len(self.source.classes),
            device=torch.device("cpu"),
            num_threads=self.threads,
            max_batch=BATCH,
        )
        yield from map(len, loader.load(_requests(plan)))


def _requests(plan: ViewPlan) -> Iterator[Request]:
    """Yield whole batches for ever."""
    epoch = 0
    while True:
        for start in range(0, plan.num_samples - BATCH + 1, BATCH):
            positions = np.arange(start, start + BATCH)
            yield Request(plan.views_at(epoch, positions), plan.order(epoch, positions))
        epoch += 1


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Any data set of (encoded image, label), decoded and cut as torchvision does."""

    def __init__(self, encoded: Callable[[int], tuple[bytes, int]], num: int) -> None:
        self.encoded, self.num, self.cut = encoded, num, cutting()

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        content, label = self.encoded(number)
        return picture(content, self.cut), label


def cutting() -> Callable[[torch.Tensor], torch.Tensor]:
    """Return torchvision's random crop, flip and normalisation."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def picture(content: bytes, cut: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return an encoded image as a network sees it."""
    return cut(decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB))


class MapStyle:
    """Others' data sets that give any sample by its number."""

    def __init__(self, encoded: Callable[[int], tuple[bytes, int]], num: int, workers: int) -> None:
        self.encoded, self.num, self.workers = encoded, num, workers

    def fetch(self) -> Iterator[int]:
        """Yield batches of encoded images, at random."""
        rng = np.random.default_rng(0)
        while True:
            yield len([self.encoded(int(number)) for number in rng.integers(0, self.num, FETCHED)])

    def batches(self) -> Iterator[int]:
        """Yield batches of torch's loader."""
        pictures = Pictures(self.encoded, self.num)
        loader = DataLoader(pictures, BATCH, shuffle=True, num_workers=self.workers, multiprocessing_context="fork")
        while True:
            yield from (len(images) for images, _ in loader)


class WebDataset:
    """The webdataset library on a tar, shuffled in its buffer."""

    def __init__(self, tar: Path, workers: int) -> None:
        self.tar, self.workers = tar, workers

    def samples(self) -> Any:
        """Return (encoded image, label as text), for ever."""
        import webdataset

        shards = webdataset.WebDataset(str(self.tar), shardshuffle=False, empty_check=False)
        return shards.repeat().shuffle(1000).to_tuple("jpg", "cls")

    def fetch(self) -> Iterator[int]:
        """Yield batches of encoded images, shuffled in a buffer."""
        samples = iter(self.samples())
        while True:
            yield len([next(samples) for _ in range(FETCHED)])

    def batches(self) -> Iterator[int]:
        """Yield batches of torch's loader."""
        cut = cutting()
        pictures: IterableDataset[Any] = self.samples().map_tuple(lambda content: picture(content, cut), int)
        loader = DataLoader(pictures, BATCH, num_workers=self.workers, multiprocessing_context="fork")
        yield from (len(images) for images, _ in loader)


def encoded_file(folder: ImageFolder, number: int) -> tuple[bytes, int]:
    """Return a file of an image folder, and its label."""
    path, label = folder.samples[number]
    return Path(path).read_bytes(), label


def write_pack(source: Source, place: Path) -> None:
    """Write this project's pack."""
    build_pack(SourcePacking(source), Place.of(place, "pack"), "train")


def open_mds(source: Source, folder: Path) -> Callable[[int], tuple[bytes, int]]:
    """Write mosaicml-streaming's shards, and return how a sample of them is had."""
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}) as writer:
        for number, label in enumerate(source.labels.tolist()):
            writer.write({"image": source.read(np.array([number]))[0], "label": label})
    opened = StreamingDataset(local=str(folder), batch_size=BATCH)

    def encoded(number: int) -> tuple[bytes, int]:
        sample = opened[number]
        return sample["image"], sample["label"]

    return encoded


class _Encoded:
    """A sample by its number, for litdata's own processes."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, number: int) -> dict[str, Any]:
        return {"image": self.source.read(np.array([number]))[0], "label": int(self.source.labels[number])}


def open_litdata(source: Source, folder: Path) -> Callable[[int], tuple[bytes, int]]:
    """Write litdata's chunks, and return how a sample of them is had."""
    import litdata

    litdata.optimize(
        fn=_Encoded(source), inputs=list(range(len(source))), output_dir=str(folder), chunk_bytes="64MB", num_workers=1
    )
    opened = litdata.StreamingDataset(str(folder))

    def encoded(number: int) -> tuple[bytes, int]:
        sample = opened[number]
        return sample["image"], sample["label"]

    return encoded

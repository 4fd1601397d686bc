"""What `ops.benchmarks.images` compares: this project's sources and loader, and what others offer for the same images.

A subject has its images in a container of its own. `fetch` yields numbers of encoded images as they are read, in random
order where the subject can; `batches` yields numbers of pictures as a training loop gets them: cropped at random to 224
pixels, flipped, float32, normalised. Every library that is not a declared dependency is imported where it is used; a
subject that is not available is left out by name.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

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


class Subject(Protocol):
    """What is measured: two iterators over numbers of images."""

    def fetch(self) -> Iterator[int]:
        """Yield batches of encoded images."""

    def batches(self) -> Iterator[int]:
        """Yield batches of pictures."""


class Ours:
    """This project's source, and its DALI loader."""

    def __init__(self, root: Path, threads: int) -> None:
        self.source = build_index(root, "train", root.parent / "index", progress=False)
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
            device=torch.device("cpu"),
            num_threads=self.threads,
            max_batch=BATCH,
        )
        yield from map(len, loader.load(_requests(plan)))


def _requests(plan: ViewPlan) -> Iterator[Request]:
    """Yield whole batches without end."""
    epoch = 0
    while True:
        for start in range(0, plan.num_samples - BATCH + 1, BATCH):
            positions = np.arange(start, start + BATCH)
            yield Request(plan.views_at(epoch, positions), plan.order(epoch, positions))
        epoch += 1


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Any data set of (encoded image, label), decoded and cropped as torchvision does."""

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
    """Other libraries' data sets that return any sample by its number."""

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
        loader = DataLoader(
            pictures,
            BATCH,
            shuffle=True,
            num_workers=self.workers,
            multiprocessing_context="fork",
            persistent_workers=True,
        )
        while True:
            yield from (len(images) for images, _ in loader)


class WebDataset:
    """The webdataset library on a tar, shuffled in its buffer."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.tar, self.workers = folder / "train.tar", workers

    def samples(self) -> Any:
        """Return an endless iterable of (encoded image, label as text)."""
        shards = import_module("webdataset").WebDataset(str(self.tar), shardshuffle=False, empty_check=False)
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


def write_tar(source: Source, folder: Path) -> None:
    """Write a WebDataset tar, in random order, with labels by number."""
    with tarfile.open(folder / "train.tar", "w") as tar:
        for number in np.random.default_rng(0).permutation(len(source)):
            content, label = encoded_of(source, int(number))
            for name, part in ((f"{number:06d}.jpg", content), (f"{number:06d}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(part)
                tar.addfile(member, BytesIO(part))


def write_pack(source: Source, folder: Path) -> None:
    """Write this project's pack."""
    build_pack(SourcePacking(source), Place.of(folder, "pack"), "train")


def write_mds(source: Source, folder: Path) -> None:
    """Write mosaicml-streaming's shards."""
    with import_module("streaming").MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}) as writer:
        for number in range(len(source)):
            content, label = encoded_of(source, number)
            writer.write({"image": content, "label": label})


def write_litdata(source: Source, folder: Path) -> None:
    """Write litdata's chunks."""
    numbers = list(range(len(source)))
    fn = partial(_litdata_sample, source)
    import_module("litdata").optimize(fn=fn, inputs=numbers, output_dir=str(folder), chunk_bytes="64MB", num_workers=1)


def _litdata_sample(source: Source, number: int) -> dict[str, Any]:
    """Return a sample, in litdata's own process."""
    content, label = encoded_of(source, number)
    return {"image": content, "label": label}


def encoded_of(source: Source, number: int) -> tuple[bytes, int]:
    """Return an encoded image of this project's source, and its label."""
    (content,) = source.read(np.array([number]))
    return bytes(content), int(source.labels[number])


def open_files(folder: Path, workers: int) -> MapStyle:
    """Return torchvision's image folder."""
    samples = ImageFolder(str(folder / "train")).samples
    return MapStyle(lambda number: (Path(samples[number][0]).read_bytes(), samples[number][1]), len(samples), workers)


def open_mds(folder: Path, workers: int) -> MapStyle:
    """Return mosaicml-streaming's data set."""
    opened = import_module("streaming").StreamingDataset(local=str(folder), batch_size=BATCH)
    return MapStyle(lambda number: (opened[number]["image"], opened[number]["label"]), len(opened), workers)


def open_litdata(folder: Path, workers: int) -> MapStyle:
    """Return litdata's data set."""
    opened = import_module("litdata").StreamingDataset(str(folder))
    return MapStyle(lambda number: tuple(opened[number].values()), len(opened), workers)


OTHERS = ("torchvision", "webdataset", "mosaicml-streaming", "litdata")  # whose versions are recorded
WRITERS = {"tar": write_tar, "pack": write_pack, "mds": write_mds, "litdata": write_litdata}
# {name: (container, what opens it)}; "files" is there from the start.
SUBJECTS: dict[str, tuple[str, Callable[[Path, int], Subject]]] = {
    "stillhouse, files": ("files", Ours),
    "stillhouse, tar": ("tar", Ours),
    "stillhouse, pack": ("pack", Ours),
    "torchvision, files": ("files", open_files),
    "webdataset, tar": ("tar", WebDataset),
    "mosaicml-streaming, MDS": ("mds", open_mds),
    "litdata, chunks": ("litdata", open_litdata),
}

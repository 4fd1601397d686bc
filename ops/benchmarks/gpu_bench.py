"""What the parts of `ops.benchmarks.gpu` share: the device, its recipes, images, and how a call is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cluster.assembly import Assembly, assemble
from cluster.rank import Rank, set_up_torch, synchronise
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from kdcore.batch import Batch

REPEATS = 5  # timings of each call, in turns; the median and the range are written
PICTURES = 512  # JPEGs that are written where no folder is given, 500 x 375, typical of ImageNet
KD = [{"term": "ce", "weight": 1.0}, {"term": "kd", "weight": 1.0, "temperature": 4.0}]
PAIRS: dict[str, dict[str, Any]] = {
    "cifar_resnet56 > cifar_resnet20, 32 px, batch 64": {
        "student": {"model": "cifar_resnet20"}, "teacher": {"model": "cifar_resnet56", "random": True},
        "views": {"size": 32, "crop": "padded"}, "batch": 64, "last": "layer3",
    },
    "resnet34 > resnet18, 224 px, batch 256": {
        "student": {"model": "resnet18"}, "teacher": {"model": "resnet34", "random": True},
        "views": {"size": 224, "crop": "resized"}, "batch": 256, "last": "layer4",
    },
}  # fmt: skip


class Bench:
    """What the parts share: the device, how long to measure, and images."""

    def __init__(self, device: torch.device, seconds: float, folder: Path, images: Path | None) -> None:
        self.device, self.seconds, self.folder = device, seconds, folder
        self.images = images or write_pictures(folder / "pictures", PICTURES, (500, 375))
        self.small = write_pictures(folder / "small", 1024, (32, 32))
        self.rank = Rank(0, 1, device)

    def recipe(self, pair: str, **changes: Any) -> RunConfig:
        """Return a recipe of one of PAIRS; changes: of whole sections."""
        chosen = PAIRS[pair]
        is_small = chosen["views"]["crop"] == "padded"
        data: dict[str, Any] = {
            "name": "gpu",
            "output_dir": str(self.folder / "out"),
            "data": {
                "root": str(self.small if is_small else self.images),
                "loader": "resident" if is_small else "dali",
                "num_threads": 8,
            },
            "views": chosen["views"],
            "student": chosen["student"],
            "teacher": chosen["teacher"],
            "method": KD,
            "optimizer": {"opt": "momentum", "lr": 0.05},
            "train": {"epochs": 1000, "batch_size": chosen["batch"]},
            "scaling": {"num_workers": 0},
            "tracking": {"system_metrics": False},
        }
        for name, section in changes.items():
            data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
        return parse(data)

    def assembled(self, pair: str, **changes: Any) -> Assembly:
        """Return a recipe's parts on the device, with torch set up as for training."""
        config = self.recipe(pair, **changes)
        set_up_torch(config.train.deterministic)
        return assemble(config, self.rank)

    def milliseconds(self, calls: dict[str, Callable[[], object]]) -> dict[str, Any]:
        """Return the milliseconds of one call of each, measured in turns: the median and range of REPEATS timings."""
        share, found = self.seconds / len(calls) / REPEATS, {name: list[float]() for name in calls}
        for call in calls.values():
            for _ in range(6):  # warm-up: autotuning, capture of graphs
                call()
        for _ in range(REPEATS):
            for name, call in calls.items():
                self.wait()
                begun, number = time.perf_counter(), 0
                while number < 3 or time.perf_counter() - begun < share:
                    call()
                    number += 1
                self.wait()
                found[name].append((time.perf_counter() - begun) / number * 1000)
        return {name: {"median": statistics.median(v), "range": [min(v), max(v)]} for name, v in found.items()}

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        synchronise(self.device)


def repeated(run: Assembly) -> Iterator[Batch]:
    """Yield a run's training batches without end."""
    while True:
        yield from run.train_batches(0)


def held(run: Assembly) -> Iterator[Batch]:
    """Yield the same batch of a run again and again, so that no loader is measured."""
    batch = next(repeated(run))
    while True:
        yield batch


def write_pictures(folder: Path, number: int, size: tuple[int, int]) -> Path:
    """Write an image folder of two classes with smooth random pictures of (width, height); return it."""
    generator = np.random.default_rng(0)
    for split, share in (("train", number), ("val", max(4, number // 4))):
        for index in range(share):
            place = folder / split / f"class{index % 2}"
            place.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 256, (max(2, size[1] // 8), max(2, size[0] // 8), 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(place / f"{index:05d}.jpg", quality=90)
    return folder

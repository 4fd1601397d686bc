"""What augmentation policies cost: images/s here, by timm and by torchvision, on one thread, and kernels per batch.

From real crops of 224 x 224 pixels, uint8, to a normalised batch in float32 under each policy: here as the loaders do
it (draws included), by the originals picture by picture through Pillow, and by torchvision's own transforms on tensors.
The contestants take turns, so that other load on the machine affects them alike; a number is the median over rounds.
Processor time, not wall time, on a CPU. With --device cuda the pictures are on the GPU here, time is wall time, and the
originals stay on the CPU.

    python -m ops.benchmarks.augmentation --data IMAGES

--data: an image folder with train/ and val/ (any photographs).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD
from timm.data.auto_augment import rand_augment_transform
from torch.profiler import ProfilerActivity, profile
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from cluster.rank import synchronise
from ops.console import console, say, table
from ops.facts import spread, write
from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.loaders.base import Job, Loader, Request
from pipelines.loaders.choose import build_loader
from pipelines.loaders.render import Finish
from pipelines.views.plan import ViewPlan, Views
from pipelines.views.policy import ViewPolicy

SIZE, BATCH = 224, 64
MEAN = (124, 116, 104)
POLICIES = ("none", "rand-m9-mstd0.5-inc1", "ra-2-9", "aa-imagenet", "aa-cifar", "aa-svhn", "trivial", "three")
EVERYTHING = ViewPolicy(
    size=SIZE,
    interpolation="bicubic",
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    erase_probability=0.25,
    erase_fill="noise",
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
    repeats=3,
)
BILINEAR = InterpolationMode.BILINEAR
Contestant = Callable[[], object]


def main() -> None:
    """Measure every policy, and write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    device = torch.device(args.device)
    crops = real_crops(args.data)
    policies: dict[str, dict[str, Any]] = {}
    for name in POLICIES:
        contestants = {"here": here(name, crops, device)} | dict(originals(name, crops))
        speeds = take_turns(contestants, args.rounds, device)
        policies[name] = {
            "images_per_second": {one: spread(values) for one, values in speeds.items()},
            "kernels_per_batch": kernels(contestants["here"], device),
        }
        say(f"{name}: {', '.join(f'{one} {statistics.median(v):.0f}' for one, v in speeds.items())}")
    results = {"batch": BATCH, "size": SIZE, "device": args.device, "policies": policies}
    if device.type == "cpu":
        index = build_index(args.data, "train", "outputs/augmentation")
        spent = {num: on_training_thread(index, num, args.rounds) for num in (64, 256)}
        results["training_thread_ms"] = {num: {w: spread(v) for w, v in ways.items()} for num, ways in spent.items()}
        of_ways = [[str(num), *(f"{statistics.median(v):.2f}" for v in ways.values())] for num, ways in spent.items()]
        console.print(table("ms a batch of the training thread", ["pictures", *spent[64]], of_ways))
    path = write("augmentation", results)
    columns = ["here", "timm", "torchvision, Pillow", "torchvision, tensors"]
    rows = []
    for name, found in policies.items():
        medians = {one: statistics.median(each["values"]) for one, each in found["images_per_second"].items()}
        shown = [f"{medians[column]:.0f}" if column in medians else "" for column in columns]
        rows.append([name, *shown, str(found["kernels_per_batch"] or "")])
    console.print(table("images/s, one thread", ["policy", *columns, "kernels a batch here"], rows))
    say(f"written: {path}")


def real_crops(root: str) -> torch.Tensor:
    """Return the crops of one batch before they are finished: uint8 [B,H,W,3]."""
    index = build_index(root, "train", "outputs/augmentation")
    plan = ViewPlan(ViewPolicy(size=SIZE), 0, len(index))
    loader = build_loader("reference", index, plan, mean=(0, 0, 0), std=(1 / 255,) * 3, device=torch.device("cpu"))
    ids = plan.order(0, np.arange(BATCH) % len(index))
    (batch,) = loader.load([Request(0, ids)])
    return batch.images.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous()


class Undecoded(Loader):
    """A loader whose decoding costs nothing: what is left is all else that data costs."""

    pictures: torch.Tensor

    def decode(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, torch.Tensor]]:
        for job in jobs:
            yield job, self.pictures[: len(job.views)]


def on_training_thread(index: Source, num: int, rounds: int) -> dict[str, list[float]]:
    """Return {what: milliseconds of each round} of the thread that takes a batch of `num` pictures with everything on.

    Decoding costs nothing. Besides taking a batch: what drawing its views there, or making all of it there, would cost.
    """
    plan, device = ViewPlan(EVERYTHING, 0, len(index)), torch.device("cpu")
    finish = Finish(EVERYTHING, 0, mean=IMAGENET_MEAN, std=IMAGENET_STD, num_classes=1000, device=device)
    loader = Undecoded(index, plan, finish, num)
    loader.pictures = torch.randint(0, 256, (2 * num, SIZE, SIZE, 3), dtype=torch.uint8)
    ids, views = plan.order(0, np.arange(num)), iter(range(10**9))
    _, shown, partner_rows = loader.rows(Request(0, ids))
    labels = torch.zeros(len(shown), dtype=torch.int64)

    def draw() -> Views:
        return loader.views(np.full(len(shown), next(views)), shown)

    def make() -> object:
        return finish(loader.pictures, draw(), partner_rows, labels)

    batches = loader.load(Request(view, ids) for view in range(rounds + 1))
    ways: dict[str, Contestant] = {"taken": lambda: next(batches), "drawn there": draw, "made there": make}
    spent: dict[str, list[float]] = {title: [] for title in ways}
    for number in range(rounds + 1):
        for title, run in ways.items():
            started = time.thread_time()
            run()
            if number:
                spent[title].append(1e3 * (time.thread_time() - started))
    return spent


def here(name: str, crops: torch.Tensor, device: torch.device) -> Contestant:
    """Return a function that draws the batch's views and finishes it, each time in another view."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic" if "rand" in name else "bilinear"
    policy = ViewPolicy(size=SIZE, auto_augment=None if name == "none" else name, interpolation=interpolation)
    plan = ViewPlan(policy, 0, BATCH)
    finish = Finish(policy, 0, mean=IMAGENET_MEAN, std=IMAGENET_STD, num_classes=1, device=device)
    images, sides, views = crops.to(device), np.full(BATCH, 300), iter(range(10**9))
    rows, labels = np.arange(BATCH), torch.zeros(BATCH, dtype=torch.int64, device=device)

    def run() -> torch.Tensor:
        return finish(images, plan.views(next(views), rows, sides, sides), rows, labels)[0]

    return run


def originals(name: str, crops: torch.Tensor) -> Iterator[tuple[str, Contestant]]:
    """Yield (name, function that applies the policy to each picture) of the libraries that have the policy."""
    pictures = [Image.fromarray(crop.numpy()) for crop in crops]
    tensors = list(crops.permute(0, 3, 1, 2).contiguous())
    as_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    if name.startswith("rand"):
        timms = rand_augment_transform(name, {"img_mean": MEAN, "interpolation": Image.Resampling.BICUBIC})
        for operation in timms.ops:  # Pillow 12 and newer refuses to keep 0 bits; 1 bit costs the same
            if operation.name.startswith("Posterize"):
                operation.level_fn = lambda level, _: (max(1, 4 - int(level / 10 * 4)),)
        as_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
        yield "timm", lambda: torch.stack([as_tensor(timms(picture)) for picture in pictures])
        return
    policy = [] if name == "none" else [torchvisions(name)]
    by_pillow, by_tensor = v2.Compose([*policy, v2.ToImage(), *as_float]), v2.Compose([*policy, *as_float])
    yield "torchvision, Pillow", lambda: torch.stack([by_pillow(picture) for picture in pictures])
    yield "torchvision, tensors", lambda: torch.stack([by_tensor(tensor) for tensor in tensors])


def torchvisions(name: str) -> torch.nn.Module:
    """Return torchvision's transform of a policy; for 3-Augment, which it lacks, DeiT III's three from its classes."""
    if name == "three":
        blur = v2.GaussianBlur(9, (0.1, 2.0))
        return v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), blur])
    made = {
        "ra-2-9": lambda: v2.RandAugment(2, 9, interpolation=BILINEAR),
        "aa-imagenet": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, interpolation=BILINEAR),
        "aa-cifar": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, interpolation=BILINEAR),
        "aa-svhn": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.SVHN, interpolation=BILINEAR),
        "trivial": lambda: v2.TrivialAugmentWide(interpolation=BILINEAR),
    }
    return made[name]()  # type: ignore[no-any-return]


def take_turns(contestants: dict[str, Contestant], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return {contestant: images/s of each round}, after one round that does not count."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            clock = time.perf_counter if device.type == "cuda" else time.process_time
            started = clock()
            run()
            synchronise(device)
            if number:
                speeds[name].append(BATCH / (clock() - started))
    return speeds


def kernels(run: Contestant, device: torch.device) -> int | None:
    """Return the number of kernels that one batch launches on a GPU; None on a CPU, which works in small parts."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
    return sum(event.name == "cudaLaunchKernel" for event in found.events())


if __name__ == "__main__":
    main()

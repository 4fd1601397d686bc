"""A whole loader of training images on a CPU, next to bare DALI and timm's: processor milliseconds per image.

From full-size JPEGs to normalised batches in float32: `plain` is a random crop and a flip; `colours` adds jitter of
brightness, contrast and saturation, erasing by noise and Mixup; `deit` RandAugment, erasing, Mixup and CutMix. Subjects
take turns, each in a process of its own, with one thread for torch and --workers threads (here, DALI) or processes
(timm). The processor time of the process and its children counts, from the ninth batch on.

    python -m ops.benchmarks.loader --images imagenet-fullsize-96.tar
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timm.data
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from ops.benchmarks.image_subjects import cutting, picture
from ops.benchmarks.images import write_folder
from ops.benchmarks.startup import used
from ops.console import console, say, table
from ops.facts import spread, version, write
from pipelines.data.index import build_index
from pipelines.loaders.base import Request
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

SIZE, BATCH = 224, 64
# Batches that do not count, and that do. Ray Data works an epoch ahead: 12 batches with 8 copies of 96 images.
BATCHES, EPOCHS = (8, 10), (12, 36)
MEAN, STD = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
RAND = "rand-m9-mstd0.5-inc1"
ERASING = {"erase_probability": 0.25, "erase_fill": "noise", "erase_first": True}
COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
OURS: dict[str, dict[str, Any]] = {
    "plain": {},
    "colours": {**COLOURS, **ERASING, "mixup_alpha": 0.2},
    "deit": {**ERASING, "auto_augment": RAND, "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "interpolation": "bicubic"},
}
TIMMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"color_jitter": None}, {}),
    "colours": ({"color_jitter": (0.4, 0.4, 0.4), "re_prob": 0.25, "re_mode": "pixel"}, {"mixup_alpha": 0.2}),
    "deit": (
        {"auto_augment": RAND, "re_prob": 0.25, "re_mode": "pixel", "interpolation": "bicubic"},
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
    ),
}


def ours(root: Path, workers: int, setting: str) -> Iterator[object]:
    """Yield this project's batches by DALI."""
    source = build_index(root, "train", root.parent / "index", progress=False)
    plan = ViewPlan(ViewPolicy(size=SIZE, **OURS[setting]), 0, len(source))
    loader = build_loader(
        "dali",
        source,
        plan,
        mean=MEAN,
        std=STD,
        device=torch.device("cpu"),
        num_threads=workers,
        max_batch=BATCH,
    )
    starts = range(0, plan.num_samples - BATCH + 1, BATCH)
    positions = ((epoch, start + np.arange(BATCH)) for epoch in range(10**6) for start in starts)
    return loader.load(Request(plan.views_at(*place), plan.order(*place)) for place in positions)


def timms(root: Path, workers: int, setting: str) -> Iterator[object]:
    """Yield the batches of timm's loader, mixed as its training script does."""
    of_loader, of_mixing = TIMMS[setting]
    # Pillow 12 and newer refuses to keep 0 bits; 1 bit costs the same.
    timm.data.auto_augment.LEVEL_TO_ARG["PosterizeIncreasing"] = lambda level, _: (max(1, 4 - int(level / 10 * 4)),)
    options = {"interpolation": "bilinear", **of_loader}
    loader = timm.data.create_loader(
        timm.data.create_dataset("", str(root / "train")),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        use_prefetcher=False,
        num_workers=workers,
        mean=MEAN,
        std=STD,
        **options,
    )
    mix = timm.data.Mixup(**of_mixing, num_classes=1000) if of_mixing else None
    for images, labels in (batch for _ in cycle([None]) for batch in loader):
        yield mix(images, labels) if mix else (images, labels)


def bare_dali(root: Path, workers: int, setting: str) -> Iterator[object]:
    """Yield the batches of DALI with its own reader and random crops."""
    from nvidia import dali

    fn: Any = dali.fn
    pipeline = dali.Pipeline(batch_size=BATCH, num_threads=workers, device_id=None, prefetch_queue_depth=2)
    with pipeline:
        encoded, labels = fn.readers.file(file_root=str(root / "train"), random_shuffle=True)
        images = fn.resize(fn.decoders.image_random_crop(encoded), size=[SIZE, SIZE])
        scaled = [[255 * value for value in values] for values in (MEAN, STD)]
        flip = fn.random.coin_flip()
        pipeline.set_outputs(fn.crop_mirror_normalize(images, mean=scaled[0], std=scaled[1], mirror=flip), labels)
    pipeline.build()
    while True:
        yield pipeline.run()


def torchcodecs(root: Path, workers: int, setting: str) -> Iterator[object]:
    """Yield the batches of torch's loader over pictures that torchcodec decodes and torchvision crops."""
    decode, cut = import_module("torchcodec.decoders").decode_jpeg, cutting()

    def opened(path: str) -> torch.Tensor:
        return cut(decode(path))

    images = ImageFolder(str(root / "train"), loader=opened)
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True)
    while True:
        yield from loader


def ray_datas(root: Path, workers: int, setting: str) -> Iterator[object]:
    """Yield the batches of Ray Data over pictures that torchvision decodes and crops in tasks."""
    import ray.data

    def developed(row: dict[str, Any]) -> dict[str, Any]:
        return {"image": picture(row["bytes"], cut).numpy()}

    ray.init("local", num_cpus=workers + 1, log_to_driver=False, logging_level="ERROR")
    cut = cutting()
    data = ray.data.read_binary_files(str(root / "train"), shuffle="files").map(developed)
    while True:
        yield from data.iter_torch_batches(batch_size=BATCH, drop_last=True)


OTHERS: dict[str, tuple[Callable[[Path, int, str], Iterator[object]], str]] = {
    "here, plain": (ours, "plain"),
    "torchcodec, plain": (torchcodecs, "plain"),
    "Ray Data, plain": (ray_datas, "plain"),
}
SUBJECTS: dict[str, tuple[Callable[[Path, int, str], Iterator[object]], str]] = {
    "here, plain": (ours, "plain"),
    "bare DALI, plain": (bare_dali, "plain"),
    "timm, plain": (timms, "plain"),
    "here, colours": (ours, "colours"),
    "timm, colours": (timms, "colours"),
    "here, deit": (ours, "deit"),
    "timm, deit": (timms, "deit"),
}


def take_turn(name: str, root: Path, workers: int, warm: int, counted: int) -> float:
    """Return processor milliseconds per image of one subject in this process."""
    torch.set_num_threads(1)
    subject, setting = (OTHERS | SUBJECTS)[name]
    batches, process = subject(root, workers, setting), psutil.Process()
    for _ in range(warm):
        next(batches)
    started = used(process)
    for _ in range(counted):
        next(batches)
    return 1e3 * (used(process) - started) / (counted * BATCH)


def main() -> None:
    """Measure every subject in turn, and write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER|TAR", help="JPEGs")
    parser.add_argument("--copies", type=int, default=10, help="of each image (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes (%(default)s)")
    parser.add_argument(
        "--others", action="store_true", help="instead: torchcodec and Ray Data, of crop and flip alone"
    )
    parser.add_argument("--turn", choices=OTHERS | SUBJECTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        print(take_turn(args.turn, args.images, args.workers, *(EPOCHS if args.others else BATCHES)), flush=True)
        return
    measured = OTHERS if args.others else SUBJECTS
    found: dict[str, list[float]] = {name: [] for name in measured}
    with tempfile.TemporaryDirectory() as folder:
        num = write_folder(args.images, Path(folder) / "files", args.copies)
        command = [sys.executable, "-m", "ops.benchmarks.loader", "--images", f"{folder}/files"]
        command += ["--workers", str(args.workers), *(["--others"] if args.others else []), "--turn"]
        for number in range(args.rounds):
            for name in measured:
                done = subprocess.run([*command, name], stdout=subprocess.PIPE, text=True, check=True)
                found[name].append(float(done.stdout.split()[-1]))
            # After every round: a run that is cut off leaves whole rounds.
            others = {name: version(name) for name in ("torchcodec", "ray")}
            content = {"num_images": num, "workers": args.workers, "batch": BATCH, "cpu_ms": spreads(found)}
            content |= {"load": os.getloadavg()[0], "others": others}
            path = write("loader_others" if args.others else "loader", content)
            say(f"round {number + 1}: {', '.join(f'{name} {values[-1]:.2f}' for name, values in found.items())}")
    rows = [[name, f"{np.median(values):.2f}", ratio(found, name)] for name, values in found.items()]
    console.print(
        table(f"CPU ms an image, n = {args.rounds}", ["", "median", "over here, its lowest to highest"], rows)
    )
    say(f"written: {path}")


def spreads(found: dict[str, list[float]]) -> dict[str, Any]:
    """Return the spread of every subject."""
    return {name: spread(values) for name, values in found.items()}


def ratio(found: dict[str, list[float]], name: str) -> str:
    """Return a subject's cost over this project's in the same round: median, lowest and highest."""
    base = found[f"here, {name.rpartition(', ')[2]}"]
    ratios = np.array(found[name]) / np.array(base)
    return f"{np.median(ratios):.2f} [{ratios.min():.2f}-{ratios.max():.2f}]"


if __name__ == "__main__":
    main()

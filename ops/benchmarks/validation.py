"""Validation of a ResNet-18 next to timm's: processor milliseconds per image, of full-size JPEGs at 224 pixels.

timm's is a script of its parts as its validate.py puts them together: data set, loader with worker processes, a pass in
inference mode after one that does not count, accuracies by `timm.utils`. Both with batches of 64, channels-last, one
thread for torch and two threads or processes that load. Subjects take turns, each in a process of its own; the whole
pass counts, children included.

    python -m ops.benchmarks.validation --images imagenet-fullsize-96.tar
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ops.benchmarks.images import write_folder
from ops.benchmarks.startup import used
from ops.console import say
from ops.facts import spread, write

NETWORK, SIZE, BATCH, WORKERS, SPLIT = "resnet18", 224, 64, 2, "train"


def here(root: Path) -> tuple[float, int]:
    """Return the processor seconds of this project's pass over the images, and their number."""
    from cluster.assembly import assemble
    from cluster.passes import evaluate
    from cluster.rank import Rank
    from cluster.recipe.reading import parse
    from pipelines.loaders.base import Request

    recipe: dict[str, Any] = {
        "name": "validation",
        "output_dir": str(root.parent / "runs"),
        "data": {"root": str(root), "val_split": SPLIT, "num_threads": WORKERS, "evaluation_batch": BATCH},
        "views": {"size": SIZE},
        "student": {"model": NETWORK},
        "method": [{"term": "ce", "weight": 1.0}],
        "optimizer": {"opt": "sgd", "lr": 0.1},
        "train": {"epochs": 1, "batch_size": BATCH},
        "scaling": {"num_workers": 0},
    }
    run = assemble(parse(recipe), Rank(0, 1, torch.device("cpu")))
    number = len(run.indexes["val"])
    with torch.no_grad():
        run.student.eval()(images_at_random())
    loader = run.evaluation_loader("val")
    next(loader.load([Request(0, np.arange(1))]))  # imports DALI, as torch's loader is imported for the other
    started = used(psutil.Process())
    evaluate(run.student, loader, number, run.rank)
    return used(psutil.Process()) - started, number


def timms(root: Path) -> tuple[float, int]:
    """Return the same for timm's parts."""
    import timm
    import timm.data
    import timm.utils

    data = timm.data.create_dataset("", str(root), split=SPLIT, is_training=False, batch_size=BATCH)
    network = timm.create_model(NETWORK, num_classes=len(data.reader.class_to_idx))
    network = network.to(memory_format=torch.channels_last).eval()
    config = timm.data.resolve_data_config({"img_size": SIZE}, model=network)
    options: dict[str, Any] = {name: config[name] for name in ("interpolation", "mean", "std", "crop_pct")}
    loader = timm.data.create_loader(
        data, (3, SIZE, SIZE), BATCH, is_training=False, use_prefetcher=False, num_workers=WORKERS, **options
    )
    criterion, losses, firsts = torch.nn.CrossEntropyLoss(), timm.utils.AverageMeter(), timm.utils.AverageMeter()
    with torch.inference_mode():
        network(images_at_random())
        started = used(psutil.Process())
        for pixels, labels in loader:
            logits = network(pixels.contiguous(memory_format=torch.channels_last))
            losses.update(criterion(logits, labels).item(), len(logits))
            first, _ = timm.utils.accuracy(logits, labels, topk=(1, 5))
            firsts.update(first.item(), len(logits))
    return used(psutil.Process()) - started, len(data)


def images_at_random() -> torch.Tensor:
    """Return a batch that does not count."""
    return torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)


SUBJECTS = {"here": here, "timm": timms}


def main() -> None:
    """Measure both in turns, and write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER|TAR", help="JPEGs")
    parser.add_argument("--copies", type=int, default=2, help="of each image (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--turn", choices=SUBJECTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.turn:
        seconds, number = SUBJECTS[args.turn](args.images)
        print(1e3 * seconds / number, flush=True)
        return
    found: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    with tempfile.TemporaryDirectory() as folder:
        number = write_folder(args.images, Path(folder) / "files", args.copies)
        command = [sys.executable, "-m", "ops.benchmarks.validation", "--images", f"{folder}/files", "--turn"]
        for turn in range(args.rounds):
            for name, values in found.items():
                done = subprocess.run([*command, name], stdout=subprocess.PIPE, text=True, check=True)
                values.append(float(done.stdout.split()[-1]))
            say(f"round {turn + 1}: {', '.join(f'{name} {values[-1]:.2f}' for name, values in found.items())}")
            # After every round: a run that is cut off leaves whole rounds.
            cpu_ms = {name: spread(values) for name, values in found.items()}
            path = write("validation", {"load": os.getloadavg()[0], "num_images": number, "cpu_ms": cpu_ms})
    say(f"written: {path}")


if __name__ == "__main__":
    main()

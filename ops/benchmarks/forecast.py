"""What `cache plan` forecasts, next to what then happened: seconds of a build, and of an epoch with the teacher.

Forecast and work take turns in one process; ResNet-56 > ResNet-20 at 32 pixels. Both are in wall seconds, so on a busy
machine both jump.

    python -m ops.benchmarks.forecast
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from cluster.assembly import assemble
from cluster.cache.job import build
from cluster.cache.outlook import outlook
from cluster.rank import Rank, set_up_torch
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.training.loop import TrainingLoop, new_state
from ops.benchmarks.families import write_images
from ops.benchmarks.step import PAIRS, recipe_of, write_teacher
from ops.console import console, say, table
from ops.facts import spread, write

CPU = torch.device("cpu")
PAIR, PER_CLASS, VIEWS = "resnet56 > resnet20, 32 px", 256, 4


def seconds_of_build(config: RunConfig) -> float:
    """Build the cache from scratch, and return the seconds that it takes."""
    assert config.cache is not None
    shutil.rmtree(config.cache.dir, ignore_errors=True)
    started = time.perf_counter()
    build(config)
    return time.perf_counter() - started


def seconds_of_epoch(config: RunConfig) -> float:
    """Train an epoch with the teacher online, and return the seconds that its steps take."""
    run = assemble(config, Rank(0, 1, CPU), reuse_index=True)
    loop, batches = TrainingLoop(run, new_state(run)), run.train_batches(0)
    loop.step(batches)  # warm-up: threads and allocation
    started = time.perf_counter()
    for _ in range(run.steps_per_epoch):
        loop.step(batches)
    return time.perf_counter() - started


def main() -> None:
    """Forecast and work in turns, and write and print the ratio of the seconds taken to those forecast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of a forecast (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_up_torch(deterministic=True)
    found: dict[str, list[float]] = {"a build": [], "an epoch with the teacher": []}
    with tempfile.TemporaryDirectory() as name:
        recipe = recipe_of(Path(name), PAIR)
        write_images(Path(name) / f"images-{PAIRS[PAIR][2]}", per_class=PER_CLASS, side=PAIRS[PAIR][2])
        write_teacher(recipe)
        config = parse(recipe | {"views": recipe["views"] | {"num_views": VIEWS}})
        for _ in range(args.rounds):
            seen = outlook(config, CPU, args.seconds)
            found["a build"].append(seconds_of_build(config) / seen.build_seconds)
            found["an epoch with the teacher"].append(seconds_of_epoch(config) / seen.online_seconds)
            over = {one: spread(values) for one, values in found.items()}
            path = write("forecast", {"load": os.getloadavg()[0], "over_forecast": over})  # of whole rounds, if cut off
    rows = [[one, f"{median(v):.2f}", f"{min(v):.2f} to {max(v):.2f}"] for one, v in found.items()]
    console.print(table(f"seconds over those forecast, n = {args.rounds}", ["", "median", "range"], rows))
    say(f"written: {path}")


if __name__ == "__main__":
    main()

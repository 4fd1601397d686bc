"""What a teacher cache costs: reading, a training step, and the build. All data is synthetic, and made here.

reading   rows/s of shuffled batches of 256 from a cache of more than 1 GB (1,000 logits and 2,048 features, float16),
          next to numpy.memmap on one raw file per column, and to a plain copy of as many bytes in memory
step      a training step with cached targets over the same step with no teacher (goal: at most 1.02)
build     CPU time of a unit of a build, decoding and writing included, over that of the teacher's bare forward passes
          on the same batches already in memory (goal: at most 1.10)

Each comparison in turns, A B A B. Weights are random: speed does not depend on them.

    python -m ops.benchmarks.cache
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from cluster.cache.builder import Builder
from cluster.recipe.reading import parse
from cluster.teachers.stored import TRAIN
from kdcore.configs import ModelConfig
from kdcore.models import build_model
from kdcore.terms.logits import cross_entropy, kd
from ops.benchmarks.comparisons import CPU_SECONDS
from ops.console import console, say, table
from ops.facts import spread, write
from pipelines.cache.building import Building
from pipelines.cache.columns import PlainColumn
from pipelines.cache.manifest import Part, Plan
from pipelines.cache.reader import CacheReader
from pipelines.cache.store import Unit, write_shard
from pipelines.files import make_folder
from pipelines.loaders.base import requests_of

NUM_ROWS, ROWS_PER_SHARD, BATCH = 196_608, 16_384, 256
WIDTHS = {"logits": 1000, "features.pooled": 2048}
STEPS_PER_ROUND = 8
CPU = torch.device("cpu")


def main() -> None:
    """Measure reading, steps and building, and write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--output", default="outputs", help="has a folder of the caches, removed at the end")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="cache-", dir=make_folder(Path(args.output), "--output")) as name:
        read, built = (measure(Path(name), args.rounds) for measure in (measure_reading, measure_building))
    load.append(os.getloadavg()[0])
    content = {
        "threads": args.threads,
        "load before and after": load,
        **read,
        **built,
        "results": read["results"] | built["results"],
    }
    path = write("cache", content)
    rows = [
        [name, f"{v['mean']:,.4g}", f"{v['stdev'] or 0:,.2g}", str(v["n"])] for name, v in content["results"].items()
    ]
    console.print(table("teacher cache", ["", "mean", "deviation", "n"], rows))
    say(f"written to {path}")


def run_rounds(actions: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every action once per round, one after the other; return what each returned, without the first round."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            value = action()
            if number:
                found[name].append(value)
    return found


def ratios(above: list[float], below: list[float]) -> dict[str, Any]:
    """Return the quotients of two actions, round by round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def measure_reading(folder: Path, rounds: int) -> dict[str, Any]:
    """Measure the `reading` and `step` parts, on one cache."""
    cache = synthetic_cache(folder / "cache")
    reader = CacheReader(folder / "cache", cache, TRAIN, None, CPU)
    started = time.perf_counter()
    reader.rows(0, np.arange(1))
    first_seconds = time.perf_counter() - started
    memmaps = raw_files(folder, reader)
    rng = np.random.default_rng(0)
    batches = [rng.integers(NUM_ROWS, size=BATCH) for _ in range(400)]
    targets = {name: np.empty((BATCH, width), np.float16) for name, width in WIDTHS.items()}
    # Larger than the processor's caches, and read at random places, so that copies come from memory, not from a cache.
    source = {name: np.ones((ROWS_PER_SHARD * 4, width), np.float16) for name, width in WIDTHS.items()}

    def rows_a_second(one_batch: Callable[[Any], object]) -> Callable[[], float]:
        def action() -> float:
            started = time.perf_counter()
            for ids in batches:
                one_batch(ids)
            return len(batches) * BATCH / (time.perf_counter() - started)

        return action

    found = run_rounds(
        {
            "cache, as stored": rows_a_second(lambda ids: reader.rows(0, ids)),
            "cache, as float32 tensors": rows_a_second(lambda ids: reader.outputs(0, ids)),
            "numpy.memmap": rows_a_second(
                lambda ids: [np.take(m, ids, axis=0, out=targets[n], mode="clip") for n, m in memmaps.items()]
            ),
            "copy in memory": rows_a_second(lambda ids: [copy_block(source[n], ids[0], targets[n]) for n in WIDTHS]),
        },
        rounds,
    )
    results = {f"rows/s: {name}": spread(values) for name, values in found.items()}
    results["rows/s: cache over numpy.memmap"] = ratios(found["cache, as stored"], found["numpy.memmap"])
    steps = run_rounds(training_steps(reader), STEPS_PER_ROUND * rounds)
    results |= {f"step seconds: {name}": spread(values) for name, values in steps.items()}
    pairs = ratios(steps["cached targets"], steps["no teacher"])
    results["step: cached over no teacher"] = pairs | {"median": statistics.median(pairs["values"])}
    size = {"bytes": cache.num_bytes, "rows": NUM_ROWS, "seconds to check and open": first_seconds}
    return {"cache": size, "results": results}


def copy_block(source: np.ndarray, start: int, target: np.ndarray) -> np.ndarray:
    """Copy a batch of contiguous rows into target."""
    start = start % (len(source) - len(target))
    target[:] = source[start : start + len(target)]
    return target


def synthetic_cache(directory: Path) -> Any:
    """Write a cache of random numbers."""
    columns = tuple(PlainColumn(name=name, shape=(width,), coding="float16") for name, width in WIDTHS.items())
    part = Part(num_rows=NUM_ROWS, num_views=1, columns=columns)
    plan = Plan(identity={}, parts={TRAIN: part}, rows_per_shard=ROWS_PER_SHARD, batch_size=BATCH)
    building = Building(directory, plan)
    building.write_constants({}, {})
    rng = np.random.default_rng(0)
    for unit in building.missing():
        rows = {
            name: rng.standard_normal((ROWS_PER_SHARD, w), np.float32).astype(np.float16) for name, w in WIDTHS.items()
        }
        building.shards[unit] = write_shard(directory, unit, rows, building.key)
    return building.finish()


def raw_files(folder: Path, reader: CacheReader) -> dict[str, Any]:
    """Write the same numbers as one memory-mapped file per column."""
    maps = {}
    for name, width in WIDTHS.items():
        path = folder / f"{name}.raw"
        file = np.memmap(path, np.float16, "w+", shape=(NUM_ROWS, width))
        for start in range(0, NUM_ROWS, ROWS_PER_SHARD):
            ids = np.arange(start, start + ROWS_PER_SHARD)
            file[start : start + ROWS_PER_SHARD] = reader.rows(0, ids)[name].numpy()
        file.flush()
        maps[name] = np.memmap(path, np.float16, "r", shape=(NUM_ROWS, width))
    return maps


def training_steps(reader: CacheReader, batch: int = 32) -> dict[str, Callable[[], float]]:
    """Return {name: function that times a step} of a ResNet-18 at 112 pixels, in seconds.

    With cached targets and KD, and on labels alone.
    """
    torch.manual_seed(0)
    student = build_model(ModelConfig(model="resnet18"), [str(i) for i in range(1000)])
    images, labels = torch.randn(batch, 3, 112, 112), torch.randint(1000, (batch,))
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)
    rng = np.random.default_rng(0)

    def step(cached: bool) -> float:
        started = time.perf_counter()
        targets = reader.outputs(0, rng.integers(NUM_ROWS, size=batch)) if cached else None
        logits = student(images)
        loss = cross_entropy(logits, labels)
        if targets is not None and targets.logits is not None:
            loss = 0.1 * loss + 0.9 * kd(logits, targets.logits, 4.0)
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return {"cached targets": lambda: step(cached=True), "no teacher": lambda: step(cached=False)}


def measure_building(folder: Path, rounds: int, num_images: int = 256) -> dict[str, Any]:
    """Measure the `build` part: EfficientNet-Lite0 at 224 pixels over JPEGs."""
    recipe = synthetic_recipe(folder, num_images)
    builder = Builder(parse(recipe), CPU)
    plan = builder.plan()
    constants, _ = builder.constants(plan)
    size = builder.cache.batch_size
    loader = builder.loader(TRAIN)
    batches = list(loader.load(requests_of(np.arange(num_images), size)))

    # Of all threads, DALI's too: there is no other process.
    def forward() -> float:
        started = time.process_time()
        for batch in batches:
            builder.teacher(batch)
        return time.process_time() - started

    def unit() -> float:
        started = time.process_time()
        builder.build(Unit(TRAIN, 0, 0, num_images), plan, "key", constants, lambda rows: None)
        return time.process_time() - started

    found = run_rounds({"build": unit, "forward": forward}, rounds)
    median = statistics.median(found["build"])
    return {
        "build": {"images": num_images, "batch": size, CPU_SECONDS: median},
        "results": {
            "build: images per CPU second": spread([num_images / seconds for seconds in found["build"]]),
            "build: over the bare forward pass": ratios(found["build"], found["forward"]),
        },
    }


def synthetic_recipe(folder: Path, num_images: int) -> dict[str, Any]:
    """Return a recipe on smooth JPEGs of 500 x 375 pixels, and a teacher with random weights."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_images), ("val", 2)):
        for number in range(count):
            path = folder / "images" / split / str(number % 2) / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    torch.manual_seed(0)
    teacher = build_model(ModelConfig(model="tf_efficientnet_lite0"), ("0", "1"))
    safetensors.torch.save_file(teacher.state_dict(), folder / "teacher.safetensors")
    return {
        "name": "benchmark",
        "output_dir": str(folder),
        "data": {"root": str(folder / "images"), "num_threads": 1},
        "views": {"size": 224, "num_views": 1},
        "student": {"model": "resnet18"},
        "teacher": {"model": "tf_efficientnet_lite0", "checkpoint": str(folder / "teacher.safetensors")},
        "method": [{"term": "kd", "weight": 1.0, "temperature": 4.0}],
        "optimizer": {"opt": "sgd", "lr": 0.1},
        "train": {"epochs": 1, "batch_size": 64},
        "cache": {"dir": str(folder / "built"), "batch_size": 64, "taps": ["classifier_input"]},
    }


if __name__ == "__main__":
    main()
